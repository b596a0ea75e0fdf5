// CUDA's names and a scheduler, for kernels compiled by an ordinary C++ compiler: `emulate.py` says what for.
//
// Each CUDA thread is a fiber; a cluster's run in an order drawn at random, switching where they wait. What is
// asynchronous on the GPU happens late: loads at some time before the wait for them, products when they are waited for,
// stores when their buffer is asked back. So whoever gives memory away too early reads what others have written.
#pragma once
#include <ucontext.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emu {

using Op = std::function<void()>;
struct Dim { unsigned x = 1, y = 1, z = 1; };
constexpr unsigned kSharedBytes = 256 * 1024, kStackBytes = 128 * 1024, kLanes = 32, kLongestStall = 6;

struct Meeting {  // of so many threads
    unsigned arrived = 0, generation = 0;
};

struct Cta;

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Cta* cta = nullptr;
    Dim thread;
    unsigned index = 0;
    bool done = false;
    const std::function<bool()>* ready = nullptr;
    std::vector<Op> copies, stores, products;                   // not yet in a group
    std::deque<std::vector<Op>> copy_groups, store_groups, product_groups;  // not yet done, the oldest first
};

struct Warp {
    Meeting meeting;
    std::array<std::uint64_t, kLanes> slots;
};

struct Cta {
    unsigned char* memory = nullptr;  // shared, kSharedBytes of it
    std::unique_ptr<unsigned char[]> statics;
    Dim block;
    unsigned rank = 0, threads = 0;
    std::vector<Warp> warps;
    std::array<Meeting, 16> barriers;
};

struct Launch {
    Dim grid, block, cluster;
    unsigned shared_bytes, seed;
};

struct Machine {
    Launch launch;
    std::mt19937 random;
    std::vector<Cta> ctas;  // of the cluster that runs
    std::vector<std::unique_ptr<Fiber>> fibers;
    unsigned char* memory = nullptr;
    Meeting meeting;  // of the whole cluster
    std::vector<Op> under_way;  // loads
    unsigned passes = 0;        // of the scheduler over all threads
    ucontext_t scheduler;
    Fiber* current = nullptr;
    bool in_thread = false;  // else the scheduler runs
    std::string failure;
    std::function<void()> body;
};

inline Machine machine;
inline Fiber& self() { return *machine.current; }

// Ends the run: threads are left where they are.
[[noreturn]] inline void fail(const std::string& what) {
    if (machine.in_thread) {
        const Fiber& f = self();
        machine.failure = what + " (block " + std::to_string(f.cta->block.x) + ", thread " + std::to_string(f.index) + ")";
        setcontext(&machine.scheduler);
    }
    throw std::runtime_error(what);
}

inline void check(bool good, const char* what) {
    if (!good) fail(what);
}

template <class Ready>
void wait_until(Ready ready) {
    if (ready()) return;
    const std::function<bool()> poll = ready;
    self().ready = &poll;
    swapcontext(&self().context, &machine.scheduler);
    self().ready = nullptr;
}

// Lets others go on, now and then.
inline void dawdle() {
    if (machine.random() % 8 != 0) return;
    const unsigned until = machine.passes + machine.random() % kLongestStall;
    wait_until([until] { return machine.passes >= until; });
}

inline void meet(Meeting& meeting, unsigned count, bool wait = true) {
    const unsigned generation = meeting.generation;
    if (++meeting.arrived == count) {
        meeting.arrived = 0, ++meeting.generation;
    } else if (wait) {
        wait_until([&meeting, generation] { return meeting.generation != generation; });
    }
}

inline unsigned lane() { return self().index % kLanes; }
inline Warp& warp() { return self().cta->warps[self().index / kLanes]; }
inline void warp_sync() {
    meet(warp().meeting, std::min(kLanes, self().cta->threads - self().index / kLanes * kLanes));
}

// What each lane of the warp gives, to `f`.
template <class T, class F>
auto exchange(T mine, F f) {
    static_assert(sizeof(T) <= 8);
    Warp& w = warp();
    std::memcpy(&w.slots[lane()], &mine, sizeof(T));
    warp_sync();
    const auto of = [&w](unsigned lane) {
        T value;
        std::memcpy(&value, &w.slots[lane % kLanes], sizeof(T));
        return value;
    };
    const auto result = f(of);
    warp_sync();
    return result;
}

inline unsigned char* dynamic_shared() { return self().cta->memory; }

template <class T>
T& static_shared() {
    check(sizeof(T) <= kSharedBytes, "too much static shared memory");
    return *reinterpret_cast<T*>(self().cta->statics.get());
}

// Does the oldest groups until `most` are left.
inline void finish(std::deque<std::vector<Op>>& groups, unsigned most) {
    while (groups.size() > most) {
        for (const Op& op : groups.front()) op();
        groups.pop_front();
    }
}

inline void commit(std::vector<Op>& open, std::deque<std::vector<Op>>& groups) {
    groups.push_back(std::move(open));
    open.clear();
}

inline void some_loads(bool all) {
    auto& ops = machine.under_way;
    while (!ops.empty() && (all || machine.random() % 2)) {
        std::swap(ops[machine.random() % ops.size()], ops.back());
        const Op op = std::move(ops.back());
        ops.pop_back();
        op();
        all = false;
    }
}

inline void enter() {
    machine.body();
    Fiber& f = self();
    check(f.products.empty() && f.product_groups.empty(), "a thread ends with products under way");
    check(f.stores.empty(), "a thread ends with stores that it has not committed");
    f.done = true;
    swapcontext(&f.context, &machine.scheduler);
}

inline void run_cluster(Dim first) {
    Machine& m = machine;
    const unsigned size = m.launch.cluster.x, threads = m.launch.block.x;
    m.ctas.clear(), m.ctas.resize(size);
    m.meeting = {};
    std::memset(m.memory, 0xff, size * kSharedBytes);
    for (unsigned rank = 0; rank < size; ++rank) {
        Cta& cta = m.ctas[rank];
        cta.memory = m.memory + rank * kSharedBytes;
        cta.statics = std::make_unique<unsigned char[]>(kSharedBytes);
        cta.block = {first.x + rank, first.y, first.z};
        cta.rank = rank, cta.threads = threads;
        cta.warps.resize((threads + kLanes - 1) / kLanes);
    }
    if (m.fibers.empty()) {
        for (unsigned i = 0; i < size * threads; ++i) {
            m.fibers.push_back(std::make_unique<Fiber>());
            m.fibers.back()->stack = std::make_unique<char[]>(kStackBytes);
        }
    }
    for (unsigned i = 0; i < m.fibers.size(); ++i) {
        Fiber& f = *m.fibers[i];
        f.cta = &m.ctas[i / threads];
        f.index = i % threads, f.thread = {f.index, 0, 0}, f.done = false, f.ready = nullptr;
        f.copy_groups.clear(), f.store_groups.clear();
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.get(), f.context.uc_stack.ss_size = kStackBytes;
        makecontext(&f.context, enter, 0);
    }
    std::vector<Fiber*> order;
    for (auto& f : m.fibers) order.push_back(f.get());
    unsigned idle = 0;  // passes in which nothing happened
    while (!order.empty()) {
        bool moved = false;
        ++m.passes;
        // Whole warps in an order of their own, so that not all of a role run alike.
        const unsigned start = m.random() % order.size();
        for (unsigned i = 0; i < order.size(); ++i) {
            Fiber& f = *order[(start + i) % order.size()];
            if (f.ready != nullptr && !(*f.ready)()) continue;
            moved = true;
            m.current = &f, m.in_thread = true;
            swapcontext(&m.scheduler, &f.context);
            m.in_thread = false;
            if (!m.failure.empty()) throw std::runtime_error(m.failure);
        }
        std::erase_if(order, [](const Fiber* f) { return f->done; });
        const std::size_t before = m.under_way.size();
        some_loads(!moved);
        idle = moved || m.under_way.size() != before ? 0 : idle + 1;
        if (idle > kLongestStall && !order.empty()) {
            std::string who;
            for (const Fiber* f : order)
                if (f->index % kLanes == 0) who += " " + std::to_string(f->index);
            fail("threads of block " + std::to_string(first.x) + " wait for ever:" + who);
        }
    }
    some_loads(true);
    for (auto& f : m.fibers) finish(f->store_groups, 0);
    if (!m.under_way.empty()) fail("loads are under way when the kernel ends");
}

template <class... Parameters, std::size_t... kIndices>
void run(void (*kernel)(Parameters...), void* const* arguments, const Launch& launch,
         std::index_sequence<kIndices...>) {
    machine.launch = launch;
    machine.random.seed(launch.seed);
    machine.fibers.clear(), machine.under_way.clear(), machine.failure.clear();
    const std::size_t bytes = launch.cluster.x * kSharedBytes;
    const std::unique_ptr<unsigned char, void (*)(void*)> memory(
        static_cast<unsigned char*>(std::aligned_alloc(kSharedBytes, bytes)), std::free);
    machine.memory = memory.get();
    machine.body = [kernel, arguments] {
        kernel(*static_cast<std::remove_cvref_t<Parameters>*>(arguments[kIndices])...);
    };
    for (unsigned z = 0; z < launch.grid.z; ++z)
        for (unsigned y = 0; y < launch.grid.y; ++y)
            for (unsigned x = 0; x < launch.grid.x; x += launch.cluster.x) run_cluster({x, y, z});
}

// Returns what went wrong, or null.
template <class... Parameters>
const char* run(void (*kernel)(Parameters...), void* const* arguments, const Launch& launch) {
    static std::string wrong;
    try {
        run(kernel, arguments, launch, std::index_sequence_for<Parameters...>{});
        return nullptr;
    } catch (const std::runtime_error& error) {
        wrong = error.what();
        return wrong.c_str();
    }
}

}  // namespace emu

#define threadIdx (emu::self().thread)
#define blockIdx (emu::self().cta->block)
#define blockDim (emu::machine.launch.block)
#define gridDim (emu::machine.launch.grid)

// ---- arithmetic ---------------------------------------------------------------------------------------------------

template <class A, class B>
constexpr auto min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b);
}
template <class A, class B>
constexpr auto max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(a) > static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b);
}
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return std::exp(a); }
inline int __ffs(unsigned v) { return v == 0 ? 0 : std::countr_zero(v) + 1; }
inline int __popc(unsigned v) { return std::popcount(v); }
inline void __nanosleep(unsigned) {}
inline unsigned __vmaxu2(unsigned a, unsigned b) {
    return max(a & 0xffffu, b & 0xffffu) | max(a >> 16, b >> 16) << 16;
}
inline unsigned __vminu2(unsigned a, unsigned b) {
    return min(a & 0xffffu, b & 0xffffu) | min(a >> 16, b >> 16) << 16;
}
template <class T>
T atomicAdd(T* at, std::type_identity_t<T> v) { return std::exchange(*at, *at + v); }
template <class T>
T atomicMin(T* at, std::type_identity_t<T> v) { return std::exchange(*at, min(*at, v)); }
template <class T>
T atomicMax(T* at, std::type_identity_t<T> v) { return std::exchange(*at, max(*at, v)); }

// ---- warps and blocks ---------------------------------------------------------------------------------------------

inline void __syncthreads() { emu::meet(emu::self().cta->barriers[0], emu::self().cta->threads); }
inline void __syncwarp(unsigned = ~0u) { emu::warp_sync(); }
template <class T>
T __shfl_sync(unsigned, T v, int from, int = 32) { return emu::exchange(v, [&](auto of) { return of(from); }); }
template <class T>
T __shfl_xor_sync(unsigned, T v, int bits, int = 32) {
    return emu::exchange(v, [&](auto of) { return of(emu::lane() ^ bits); });
}
template <class T>
T __shfl_up_sync(unsigned, T v, unsigned by) {
    return emu::exchange(v, [&](auto of) { return emu::lane() < by ? v : of(emu::lane() - by); });
}
template <class T>
T __shfl_down_sync(unsigned, T v, unsigned by) {
    return emu::exchange(v, [&](auto of) { return emu::lane() + by > 31 ? v : of(emu::lane() + by); });
}
inline unsigned __ballot_sync(unsigned, bool v) {
    return emu::exchange(v, [](auto of) {
        unsigned all = 0;
        for (unsigned i = 0; i < 32; ++i) all |= static_cast<unsigned>(of(i)) << i;
        return all;
    });
}
inline bool __any_sync(unsigned mask, bool v) { return __ballot_sync(mask, v) != 0; }
inline bool __all_sync(unsigned mask, bool v) { return __ballot_sync(mask, v) == ~0u; }
template <class T>
unsigned __match_any_sync(unsigned, T v) {
    return emu::exchange(v, [&](auto of) {
        unsigned same = 0;
        for (unsigned i = 0; i < 32; ++i) same |= static_cast<unsigned>(of(i) == v) << i;
        return same;
    });
}
template <class T>
T __reduce_max_sync(unsigned, T v) {
    return emu::exchange(v, [&](auto of) {
        T all = v;
        for (unsigned i = 0; i < 32; ++i) all = max(all, of(i));
        return all;
    });
}
template <class T>
T __reduce_add_sync(unsigned, T v) {
    return emu::exchange(v, [&](auto of) {
        T all = 0;
        for (unsigned i = 0; i < 32; ++i) all += of(i);
        return all;
    });
}

// ---- what emulate.py puts in the place of single instructions -----------------------------------------------------

// Rounds to nearest even; beyond 448 becomes 448, NaN stays.
inline unsigned to_e4m3(float v) {
    const unsigned sign = __float_as_uint(v) >> 31 << 7;
    const float magnitude = std::fabs(v);
    if (v != v) return 0x7f;
    if (magnitude >= 448) return sign | 0x7e;
    if (magnitude < 0x1p-6f) return sign | static_cast<unsigned>(std::nearbyint(magnitude * 512));
    int exponent = std::ilogb(magnitude);
    int eighths = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));
    if (eighths == 16) eighths = 8, ++exponent;
    return sign | (exponent + 7) << 3 | (eighths - 8);
}

inline unsigned byte_permute(unsigned low, unsigned high, unsigned nibbles) {
    const std::uint64_t bytes = static_cast<std::uint64_t>(high) << 32 | low;
    unsigned result = 0;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned nibble = nibbles >> 4 * i & 15, byte = bytes >> 8 * (nibble & 7) & 0xff;
        result |= (nibble & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
    }
    return result;
}

// Four matrices of 8 rows of 16 bytes: lane 8 i + r says where row r of matrix i goes.
inline void store_matrices(unsigned char* row, std::array<unsigned, 4> values) {
    for (unsigned i = 0; i < 4; ++i) {
        unsigned char* const to = emu::exchange(row, [&](auto of) { return of(8 * i + emu::lane() / 4); });
        std::memcpy(to + emu::lane() % 4 * 4, &values[i], 4);
    }
    emu::warp_sync();
}
