// How two CTAs with the same rows of weights share their decoding: of each 32 that a warp feeds, a CTA decodes half, two lanes
// a row, and copies what it has decoded to the other CTA's shared memory. For one CTA there is nothing to share.
//
// A stage is free once the math warps of both have read it: each CTA writes to both, and who has read a stage had it, so
// the copy from it is done as well.
#pragma once
#include "common/fp4_layout.cuh"
#include "common/tma.cuh"

template <class Config>
struct Fp4Share {
    static constexpr u32 kShares = Fp4Layout<Config>::kShares, kRows = 32 / kShares;
    static constexpr u32 kBytes = Fp4Layout<Config>::kColumnsBytes / kShares;  // of a block
    static_assert(kShares <= 2, "there is one other");

    u32 rank, warp, lane;

    __device__ __forceinline__ u32 first_row(u32 share) const { return warp * 32 + share * kRows; }
    __device__ __forceinline__ u32 first_row() const { return first_row(kShares == 1 ? 0 : rank); }

    // Whether it is this CTA's.
    __device__ __forceinline__ bool mine(u32 share) const { return kShares == 1 || share == rank; }

    // What the lane of the same row knows, of 32 lanes with a row each.
    template <class T>
    __device__ __forceinline__ T of_row(u32 share, T x) const {
        if constexpr (kShares == 1) return x;
        return __shfl_sync(0xffffffff, x, share * kRows + lane % kRows);
    }
    template <class T>
    __device__ __forceinline__ T of_row(T x) const {
        return of_row(rank, x);
    }

    // Of four exponents those of the lane's part of the row, the lowest first.
    __device__ __forceinline__ u32 of_lane(u32 exponents) const {
        return kShares == 1 ? exponents : exponents >> lane / kRows * 16;
    }

    // The warp's part of a block of decoded `weights`, which its lanes have written and fenced.
    __device__ __forceinline__ void send(const u8* weights, Barrier& full) const {
        if constexpr (kShares == 1) return;
        __syncwarp();
        if (elect_one()) copy_to_block(weights + first_row() * kBlockK, kRows * kBlockK, full, rank ^ 1);
    }
};
