// The machine that kernels run on: threads, warps, blocks and clusters, and who runs when. See emulator.h.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <array>
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

namespace emu {

using Op = std::function<void()>;
struct Dim { unsigned x = 1, y = 1, z = 1; };
constexpr unsigned kSharedBytes = 256 * 1024, kStackBytes = 128 * 1024, kLanes = 32, kLongestStall = 6;

struct Meeting {  // of so many threads
    unsigned arrived = 0, generation = 0;
    bool every = true, decided = true;  // whether all who have come agree; and who came before
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

// Whether all agree.
inline bool agree(Meeting& meeting, unsigned count, bool mine) {
    meeting.every = meeting.every && mine;
    if (meeting.arrived + 1 == count) meeting.decided = std::exchange(meeting.every, true);
    meet(meeting, count);
    return meeting.decided;
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
    for (const Cta& cta : m.ctas) {
        const bool within = std::all_of(cta.memory + m.launch.shared_bytes, cta.memory + kSharedBytes,
                                        [](unsigned char byte) { return byte == 0xff; });
        if (!within) fail("block " + std::to_string(cta.block.x) + " writes beyond its shared memory");
    }
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
