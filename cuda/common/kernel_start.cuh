// How a GEMM kernel starts: barriers, and then what the kernels before it have written.
#pragma once
#include "common/barrier.cuh"

// By all threads, before any begins its role. `init(lane)`, by the lanes of warp `initialiser`, sets up the barriers;
// `prepare()`, by all, may read what the kernels before this one have written.
template <bool kInCluster, class Init, class Prepare>
__device__ __forceinline__ void start_kernel(u32 warp, u32 initialiser, Init init, Prepare prepare) {
    if (warp == initialiser) {
        init(threadIdx.x % 32);
        fence_barrier_init();
    }
    if constexpr (kInCluster) {
        cluster_sync_relaxed();
    } else {
        __syncthreads();
    }
    wait_for_predecessor();
    release_successor();
    prepare();
}

// For a kernel that has nothing to prepare.
struct Nothing {
    template <class... Any>
    __device__ __forceinline__ void operator()(const Any&...) const {}
};
