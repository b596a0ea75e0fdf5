// Quantises x[K, M] to FP8 (e4m3) and transposes it, each of the groups that lie along K, whose sizes are in device
// memory, from a block of 128 on: one scale for each row of the result and block. What no group fills is zero.
#pragma once
#include "kernels/sm90_cast_fp8.cuh"

// The rows of x in block `block` of the result. Sizes are bounded as for the GEMM. Run by each warp for itself.
template <class Rows>
__device__ __forceinline__ Rows rows_of_block(const int* ks, u32 groups, u32 k, u32 block, u32 lane) {
    constexpr u32 kBlock = 128, kAll = 0xffffffffu;
    u32 rows_before = 0, blocks_before = 0;
#pragma unroll 1
    for (u32 first = 0; first < groups; first += 32) {
        const int given = first + lane < groups ? ks[first + lane] : 0;
        u32 end = min(static_cast<u32>(max(given, 0)), k);
#pragma unroll
        for (u32 step = 1; step < 32; step *= 2) {
            const u32 left = __shfl_up_sync(kAll, end, step);
            if (lane >= step) end = min(end + left, k);
        }
        end = min(rows_before + end, k);
        const u32 left = __shfl_up_sync(kAll, end, 1), begin = lane == 0 ? rows_before : left;
        const u32 blocks = ceil_div(end - begin, kBlock);
        u32 last = blocks;
#pragma unroll
        for (u32 step = 1; step < 32; step *= 2) {
            const u32 others = __shfl_up_sync(kAll, last, step);
            if (lane >= step) last += others;
        }
        last += blocks_before;  // the block behind the group's
        const u32 found = __ballot_sync(kAll, block < last);
        if (found) {
            const u32 group = __ffs(found) - 1, at = block - __shfl_sync(kAll, last - blocks, group);
            return {__shfl_sync(kAll, begin, group) + at * kBlock, __shfl_sync(kAll, end, group)};
        }
        rows_before = __shfl_sync(kAll, end, 31), blocks_before = __shfl_sync(kAll, last, 31);
    }
    return {0, 0};
}

template <class Config>
__global__ void __launch_bounds__(Sm90CastFp8<Config>::kThreads, Config::kMinCtas)
    sm90_k_grouped_cast_fp8(const typename Config::In* x, const int* ks, u8* data, typename Config::Scale* scale,
                            u32 groups, u32 k, u32 extent, u32 columns, float smallest) {
    using Cast = Sm90CastFp8<Config>;
    __shared__ typename Cast::Shared shared;
    const typename Cast::Problem problem{x,      nullptr, nullptr,                  data, scale,
                                         extent, columns, __float_as_uint(smallest)};
    wait_for_predecessor();
    release_successor();
    const u32 block = blockIdx.x / ceil_div(columns, Cast::kTileColumns);
    const auto rows = rows_of_block<typename Cast::Rows>(ks, groups, k, block, threadIdx.x % 32);
    Cast(problem, shared, blockIdx.x, rows).run();
}
