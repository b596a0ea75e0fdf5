// How two CTAs with the same rows of weights share their decoding: of each 32 rows that a warp feeds, a CTA decodes half, two
// lanes a row, and copies what it has decoded to the other's shared memory. One CTA has all of them.
//
// A stage is free once the math warps of both have read it: each CTA writes to both stages, and a copy from its own is over
// when the other has read what came by it.
#pragma once
#include "common/fp4_layout.cuh"
#include "common/tma.cuh"

template <class Config>
struct Fp4Share {
    static constexpr u32 kShares = Fp4Layout<Config>::kShares, kRows = 32 / kShares;
    static constexpr u32 kBytes = Fp4Layout<Config>::kColumnsBytes / kShares;  // of a block
    static_assert(kShares <= 2, "there is one other");

    u32 rank, warp, lane;

    __device__ __forceinline__ u32 first_row() const { return warp * 32 + rank * kRows; }

    // Of the lane's row of a share: what the lane knows that has this row, of 32 lanes with a row each.
    template <class T>
    __device__ __forceinline__ T of_row(u32 share, T x) const {
        if constexpr (kShares > 1) x = __shfl_sync(0xffffffff, x, share * kRows + lane % kRows);
        return x;
    }

    // The exponents of the lane's part of a row, the lowest first.
    __device__ __forceinline__ u32 of_part(u32 exponents) const {
        return of_row(rank, exponents) >> (kShares > 1 ? lane / kRows * 16 : 0);
    }

    // The warp's rows of a block of decoded weights, which its lanes have written and fenced.
    __device__ __forceinline__ void send(const u8* weights, Barrier& full) const {
        if constexpr (kShares > 1) {
            __syncwarp();
            if (elect_one()) copy_to_block(weights + first_row() * kBlockK, kRows * kBlockK, full, rank ^ 1);
        }
    }
};
