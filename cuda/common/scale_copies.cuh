// A lane's share of the copies that bring scales into a stage.
#pragma once
#include "common/tma.cuh"
#include "common/types.cuh"

// kCount scales that lie next to each other, those of a tile, for one block of K after the other. Whatever begins at a
// multiple of 4 bytes is copied by 4 bytes, `lane`, `lane + 32`, ...; where all of a tile's are there and begin at a
// multiple of 16, a lane takes four next to each other: every instruction less leaves the tensor cores more of the
// register file's ports. Beyond the last the stage keeps what it held before: nobody stores that.
template <u32 kCount>
struct ScaleCopies {
    static constexpr u32 kFours = kCount / 4;
    const float* from;
    u32 left, count, lane;
    bool by_fours;

    // From `first` of `count` scales on, those of block `block`.
    __device__ __forceinline__ ScaleCopies(const float* scales, u32 first, u32 count, u32 block, u32 lane)
        : count(count), lane(lane) {
        const u32 here = first < count ? min(kCount, count - first) : 0;
        left = here > lane ? here - lane : 0;
        by_fours = kCount >= 128 && here == kCount && count % 4 == 0 &&
                   reinterpret_cast<u64>(scales + first) % 16 == 0;
        from = scales + static_cast<u64>(block) * count + first + (by_fours ? 4 * lane : lane);
    }

    __device__ __forceinline__ void copy(float* to) const {
        if (by_fours) {
#pragma unroll
            for (u32 at = 0; at < kFours; at += 32) {
                if (at + 32 <= kFours || at + lane < kFours) async_copy<16>(to + 4 * (at + lane), from + 4 * at);
            }
        } else {
#pragma unroll
            for (u32 at = 0; at < kCount; at += 32) {
                if (at < left) async_copy<4>(to + lane + at, from + at);
            }
        }
    }

    // Instead of a block's scales.
    __device__ __forceinline__ void copy_zeros(float* to) const {
#pragma unroll
        for (u32 at = 0; at < kCount; at += 32) {
            if (at < left) async_zeros_4_bytes(to + lane + at, from);
        }
    }

    __device__ __forceinline__ void advance() { from += count; }
};
