// In place of the kernels' own: mbarriers, cluster barriers and named barriers of emulator.h's threads.
#pragma once
#include "common/types.cuh"

// Within the CTA's shared memory.
inline u32 shared_address(const void* pointer) {
    const auto offset = static_cast<const u8*>(pointer) - emu::self().cta->memory;
    emu::check(offset >= 0 && offset < emu::kSharedBytes, "an address is not in this block's shared memory");
    return static_cast<u32>(offset);
}

// What lies there in another CTA of the cluster.
template <class T>
T* in_block(T* local, u32 rank) {
    emu::check(rank < emu::machine.ctas.size(), "there is no such block in the cluster");
    return reinterpret_cast<T*>(reinterpret_cast<u8*>(emu::machine.ctas[rank].memory) + shared_address(local));
}

struct Barrier {
    u64 state;  // phase: 1 bit, arrivals of a phase: 15, those still to come: 16, bytes still to come: 32, signed

    u32 phase() const { return state & 1; }
    void set(u32 phase, u32 arrivals, u32 left, int bytes) {
        state = phase | static_cast<u64>(arrivals) << 1 | static_cast<u64>(left) << 16 |
                static_cast<u64>(static_cast<u32>(bytes)) << 32;
    }
    void count(u32 arrived, int bytes) {
        const u32 arrivals = state >> 1 & 0x7fff, before = state >> 16 & 0xffff;
        emu::check(arrivals != 0 && arrivals < 0x4000, "an mbarrier is used before it is initialised");
        emu::check(arrived <= before, "more arrivals on an mbarrier than it was initialised for");
        const u32 left = before - arrived;
        const int missing = static_cast<int>(state >> 32) + bytes;
        if (left == 0 && missing == 0) {
            set(phase() ^ 1, arrivals, arrivals, 0);
        } else {
            set(phase(), arrivals, left, missing);
        }
    }

    void init(u32 arrivals) { set(0, arrivals, arrivals, 0); }
    bool passed(u32 parity) const { return phase() != (parity & 1); }
    void wait(u32 parity) {
        emu::wait_until([this, parity] { return passed(parity); });
    }
    void wait_cluster(u32 parity) { wait(parity); }
    void arrive() { count(1, 0); }
    void arrive_remote(u32 rank) { in_block(this, rank)->count(1, 0); }
    void publish_remote(u32 rank) { arrive_remote(rank); }
    void arrive_expect_bytes(u32 bytes) { count(0, static_cast<int>(bytes)), count(1, 0); }
    // The copies happen some time later, and then the arrival.
    void arrive_after_async_copies() {
        emu::commit(emu::self().copies, emu::self().copy_groups);
        auto& groups = emu::self().copy_groups;
        emu::machine.under_way.push_back([this, &groups] {
            emu::finish(groups, 0);
            count(1, 0);
        });
    }
};

constexpr u32 kWarpArrivals = 1;

template <u32 kCtas = 1>
void arrive_warp(Barrier& barrier, u32 lane) {
    __syncwarp();
    if constexpr (kCtas == 1) {
        if (lane == 0) barrier.arrive();
    } else {
        if (lane < kCtas) barrier.arrive_remote(lane);
    }
}

inline void fence_barrier_init() {}
inline void fence_async_proxy() {}
inline void named_barrier_sync(u32 id, u32 threads) { emu::meet(emu::self().cta->barriers[id], threads); }
inline void named_barrier_arrive(u32 id, u32 threads) { emu::meet(emu::self().cta->barriers[id], threads, false); }
inline bool named_barrier_all(u32 id, u32 threads, bool condition) {
    return emu::agree(emu::self().cta->barriers[id], threads, condition);
}
inline u32 cluster_rank() { return emu::self().cta->rank; }
inline void cluster_sync() { emu::meet(emu::machine.meeting, emu::machine.fibers.size()); }
inline void cluster_sync_relaxed() { cluster_sync(); }
inline bool whole_warp(bool condition) { return __any_sync(0xffffffff, condition); }
inline bool elect_one() { return emu::lane() == 0; }
inline void wait_for_predecessor() {}
inline void release_successor() {}
template <u32 kRegisters>
void registers_increase() {}
template <u32 kRegisters>
void registers_decrease() {}
