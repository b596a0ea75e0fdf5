// The scheduler, compiled once for all kernels.
#include "machine.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

namespace emu {

Machine machine;

// From fiber to fiber without a system call, which swapcontext needs for the signals that are blocked.
void resume(Fiber& f) {
    if (_setjmp(machine.scheduler) != 0) return;
    if (f.begun) _longjmp(f.at, 1);
    f.begun = true;
    setcontext(&f.context);
}

void suspend() {
    if (_setjmp(self().at) == 0) _longjmp(machine.scheduler, 1);
}

// Ends the run: threads are left where they are.
[[noreturn]] void fail(const std::string& what) {
    if (machine.in_thread) {
        const Fiber& f = self();
        machine.failure = what + " (block " + std::to_string(f.cta->block.x) + ", thread " + std::to_string(f.index) + ")";
        _longjmp(machine.scheduler, 1);
    }
    throw std::runtime_error(what);
}

// Does the oldest groups until `most` are left.
void finish(std::deque<std::vector<Op>>& groups, unsigned most) {
    while (groups.size() > most) {
        for (const Op& op : groups.front()) op();
        groups.pop_front();
    }
}

void commit(std::vector<Op>& open, std::deque<std::vector<Op>>& groups) {
    groups.push_back(std::move(open));
    open.clear();
}

void some_loads(bool all) {
    auto& ops = machine.under_way;
    while (!ops.empty() && (all || machine.random() % 2)) {
        std::swap(ops[machine.random() % ops.size()], ops.back());
        const Op op = std::move(ops.back());
        ops.pop_back();
        op();
        all = false;
    }
}

void enter() {
    machine.body();
    Fiber& f = self();
    check(f.products.empty() && f.product_groups.empty(), "a thread ends with products under way");
    check(f.stores.empty(), "a thread ends with stores that it has not committed");
    f.done = true;
    suspend();
}

void run_cluster(Dim first) {
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
        f.index = i % threads, f.thread = {f.index, 0, 0}, f.begun = f.done = false, f.ready = nullptr;
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
            resume(f);
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

const char* run(const Launch& launch, std::function<void()> body) {
    static std::string wrong;
    Machine& m = machine;
    m.launch = launch, m.body = std::move(body);
    m.random.seed(launch.seed);
    m.failure.clear();
    const std::unique_ptr<unsigned char, void (*)(void*)> memory(
        static_cast<unsigned char*>(std::aligned_alloc(kSharedBytes, launch.cluster.x * kSharedBytes)), std::free);
    m.memory = memory.get();
    const char* fault = nullptr;
    try {
        for (unsigned z = 0; z < launch.grid.z; ++z)
            for (unsigned y = 0; y < launch.grid.y; ++y)
                for (unsigned x = 0; x < launch.grid.x; x += launch.cluster.x) run_cluster({x, y, z});
    } catch (const std::runtime_error& error) {
        wrong = error.what();
        fault = wrong.c_str();
    }
    m.fibers.clear(), m.under_way.clear();  // the stacks of one kernel are more than may stay for each
    return fault;
}

}  // namespace emu
