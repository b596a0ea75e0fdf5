// mbarriers, cluster barriers and named barriers.
#pragma once
#include "common/types.cuh"

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// An mbarrier in shared memory. `parity` is the phase waited for: a fresh barrier passes a wait for parity 1.
struct Barrier {
    u64 state;

    __device__ __forceinline__ void init(u32 arrivals) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals) : "memory");
    }

    __device__ __forceinline__ void wait(u32 parity) {
        asm volatile(
            "{\n"
            ".reg .pred done;\n"
            "retry:\n"
            "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
            "@!done bra retry;\n"
            "}\n" ::"r"(shared_address(this)),
            "r"(parity)
            : "memory");
    }

    // Whether that phase has ended; does not wait.
    __device__ __forceinline__ bool passed(u32 parity) {
        u32 done;
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}\n"
            : "=r"(done)
            : "r"(shared_address(this)), "r"(parity)
            : "memory");
        return done != 0;
    }

    // As `wait`, and what other CTAs of the cluster wrote to shared memory before they arrived is visible after it.
    __device__ __forceinline__ void wait_cluster(u32 parity) {
        asm volatile(
            "{\n"
            ".reg .pred done;\n"
            "retry:\n"
            "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
            "@!done bra retry;\n"
            "}\n" ::"r"(shared_address(this)),
            "r"(parity)
            : "memory");
    }

    __device__ __forceinline__ void arrive() {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
    }

    // Arrives on the barrier at this offset in the shared memory of CTA `rank` of the cluster. Tells it that this
    // thread has read; ordering it after writes to shared memory, at cluster scope, would cost a fence:
    // `publish_remote`.
    __device__ __forceinline__ void arrive_remote(u32 rank) {
        asm volatile(
            "{\n"
            ".reg .b32 remote;\n"
            "mapa.shared::cluster.u32 remote, %0, %1;\n"
            "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
            "}\n" ::"r"(shared_address(this)),
            "r"(rank)
            : "memory");
    }

    __device__ __forceinline__ void publish_remote(u32 rank) {
        asm volatile(
            "{\n"
            ".reg .b32 remote;\n"
            "mapa.shared::cluster.u32 remote, %0, %1;\n"
            "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
            "}\n" ::"r"(shared_address(this)),
            "r"(rank)
            : "memory");
    }

    __device__ __forceinline__ void arrive_expect_bytes(u32 bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                     : "memory");
    }

    // One arrival, made once all earlier cp.async of this thread have landed; counted in `init`.
    __device__ __forceinline__ void arrive_after_async_copies() {
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(this)) : "memory");
    }
};

// racecheck credits a thread that arrives on an mbarrier with its own accesses alone, not with those that a __syncwarp or
// a named barrier has ordered before it. For it the tests compile kernels in which every thread arrives.
#ifdef EVERY_THREAD_ARRIVES
constexpr u32 kWarpArrivals = 32;
#else
constexpr u32 kWarpArrivals = 1;
#endif

// Arrives kWarpArrivals times, for the warp, on the barrier at this offset in each of kCtas CTAs of the cluster.
template <u32 kCtas = 1>
__device__ __forceinline__ void arrive_warp(Barrier& barrier, u32 lane) {
    if constexpr (kWarpArrivals == 1) __syncwarp();
    const bool every = kWarpArrivals > 1;
    if constexpr (kCtas == 1) {
        if (every || lane == 0) barrier.arrive();
    } else if constexpr (kWarpArrivals > 1) {
#pragma unroll
        for (u32 rank = 0; rank < kCtas; ++rank) barrier.arrive_remote(rank);
    } else {
        if (lane < kCtas) barrier.arrive_remote(lane);
    }
}

// Makes initialised barriers visible to TMA and to the other CTAs of the cluster; a barrier must follow.
__device__ __forceinline__ void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Orders this thread's shared-memory writes before reads by TMA (the async proxy).
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void named_barrier_sync(u32 id, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_barrier_arrive(u32 id, u32 threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Waits for all of them; whether `condition` holds for each.
__device__ __forceinline__ bool named_barrier_all(u32 id, u32 threads, bool condition) {
    u32 all;
    asm volatile(
        "{\n"
        ".reg .pred each, every;\n"
        "setp.ne.u32 each, %3, 0;\n"
        "barrier.cta.red.and.pred every, %1, %2, each;\n"
        "selp.u32 %0, 1, 0, every;\n"
        "}\n"
        : "=r"(all)
        : "r"(id), "r"(threads), "r"(static_cast<u32>(condition))
        : "memory");
    return all != 0;
}

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of all CTAs of the cluster; what they wrote before, also to each other's shared memory, has landed after
// it.
__device__ __forceinline__ void cluster_sync() {
    __syncwarp();
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n"
        "barrier.cluster.wait.acquire.aligned;\n" ::
            : "memory");
}

// As `cluster_sync`, but orders nothing except what has a fence of its own: enough after `fence_barrier_init`.
__device__ __forceinline__ void cluster_sync_relaxed() {
    __syncwarp();
    asm volatile(
        "barrier.cluster.arrive.relaxed.aligned;\n"
        "barrier.cluster.wait.acquire.aligned;\n" ::
            : "memory");
}

// Whether `condition`, the same for all of a warp, holds. By the vote the compiler knows the warp to be of one mind, and
// keeps what it may in uniform registers: a producer's loop then has half the instructions, each of which would take issue
// slots and ports of registers from the math warps beside it.
__device__ __forceinline__ bool whole_warp(bool condition) { return __any_sync(0xffffffff, condition); }

__device__ __forceinline__ bool elect_one() {
    u32 elected;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "elect.sync _|p, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(elected));
    return elected != 0;
}

// Programmatic dependent launch: wait until the kernels before this one have completed and their writes are visible.
__device__ __forceinline__ void wait_for_predecessor() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the next kernel start its prologue; it still waits for this whole grid before it reads.
__device__ __forceinline__ void release_successor() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

template <u32 kRegisters>
__device__ __forceinline__ void registers_increase() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <u32 kRegisters>
__device__ __forceinline__ void registers_decrease() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
