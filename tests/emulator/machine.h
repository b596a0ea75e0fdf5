// The machine that kernels run on: threads, warps, blocks and clusters, and who runs when. See emulator.h.
#pragma once
#include <setjmp.h>
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
    ucontext_t context;  // where it begins
    jmp_buf at;          // and once it has begun, where it waits
    bool begun = false;
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
    jmp_buf scheduler;
    Fiber* current = nullptr;
    bool in_thread = false;  // else the scheduler runs
    std::string failure;
    std::function<void()> body;
};

extern Machine machine;
inline Fiber& self() { return *machine.current; }

// Ends the run: threads are left where they are.
[[noreturn]] void fail(const std::string& what);

inline void check(bool good, const char* what) {
    if (!good) fail(what);
}

void suspend();  // until the scheduler finds the thread ready

template <class Ready>
void wait_until(Ready ready) {
    if (ready()) return;
    const std::function<bool()> poll = ready;
    self().ready = &poll;
    suspend();
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
void finish(std::deque<std::vector<Op>>& groups, unsigned most);
void commit(std::vector<Op>& open, std::deque<std::vector<Op>>& groups);

// Runs `body` in every thread of the launch. Returns what went wrong, or null.
const char* run(const Launch& launch, std::function<void()> body);

template <class... Parameters>
const char* run(void (*kernel)(Parameters...), void* const* arguments, const Launch& launch) {
    return run(launch, [=] {
        [&]<std::size_t... kIndices>(std::index_sequence<kIndices...>) {
            kernel(*static_cast<std::remove_cvref_t<Parameters>*>(arguments[kIndices])...);
        }(std::index_sequence_for<Parameters...>{});
    });
}

}  // namespace emu
