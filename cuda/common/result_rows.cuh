// Which rows of a tile are stored.
#pragma once
#include "common/types.cuh"
#include "common/tma.cuh"

// Those of D; TMA leaves out what lies beyond it.
struct AllRows {
    static constexpr bool kAll = true;
    static __device__ __forceinline__ u32 bound(u32 m) { return m; }
    static __device__ __forceinline__ bool has(u32) { return true; }
    static __device__ __forceinline__ bool whole(u32) { return true; }
};

// Those of one group, which ends before row `end` of D. kIndexed: where its rows do not lie in one piece, `index` tells
// the group of each.
template <class Out, bool kIndexed>
struct GroupRows {
    static constexpr bool kAll = false;
    Out* d;
    const int* index;  // null: all rows up to `end`
    u32 group, end;

    __device__ __forceinline__ u32 bound(u32) const { return end; }

    __device__ __forceinline__ bool has(u32 row) const {
        return !kIndexed || index == nullptr || index[row] == static_cast<int>(group);
    }

    // Whether a warp's box of 16 rows is stored whole. No vote of its lanes on what `index` says: with one here, the
    // main loop's descriptors would leave the uniform registers, which costs 10 % of all layouts.
    __device__ __forceinline__ bool whole(u32 row) const { return row + 16 <= end && (!kIndexed || index == nullptr); }

    // Whether any of them is stored.
    __device__ __forceinline__ bool any(u32 row) const { return row < end; }

    // What TMA would store from a box of rows of kRowBytes, swizzled, but only the rows that are stored.
    template <u32 kRowBytes>
    __device__ __forceinline__ void store_box(const u8* box, u32 row, u32 column, u32 n, u32 lane) const {
        constexpr u32 kVectors = kRowBytes / 16, kElements = 16 / sizeof(Out);  // in a row; in a vector
#pragma unroll 1
        for (u32 i = lane; i < 16 * kVectors; i += 32) {
            const u32 at_row = row + i / kVectors, at_column = column + i % kVectors * kElements;
            if (at_row >= end || at_column >= n || !has(at_row)) continue;
            const uint4 vector = *reinterpret_cast<const uint4*>(box + swizzled<kRowBytes>(i * 16));
            *reinterpret_cast<uint4*>(d + static_cast<u64>(at_row) * n + at_column) = vector;
        }
    }
};
