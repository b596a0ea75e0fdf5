// Where the columns of a product stand in D.
#pragma once
#include "common/types.cuh"

struct AllColumns {
    static constexpr bool kFills = false;
    static constexpr bool fits(u32) { return true; }
    static __device__ __forceinline__ constexpr u32 at(u32 n) { return n; }
};

// A head's kLeft + kRight columns stand in D with kMid others between the parts, which keep what they hold or, if kZeros,
// are made zero. All three span multiples of 16 bytes. N is a multiple of kLeft + kRight; `at(N)` is the width of D.
template <u32 kLeft, u32 kMid, u32 kRight, bool kZeros>
struct HeadSplits {
    static constexpr bool kFills = kZeros;
    static constexpr u32 kHead = kLeft + kRight;

    static __device__ __forceinline__ constexpr u32 heads_left(u32 n) { return (n + kRight) / kHead; }

    static __device__ __forceinline__ constexpr u32 at(u32 n) { return n + heads_left(n) * kMid; }

    // Whether boxes of so many columns, counted from column 0 of the product, never straddle a border.
    static constexpr bool fits(u32 columns) { return kLeft % columns == 0 && kRight % columns == 0; }

    // Zeros beside the left parts that end in the tile [kM, kN] at (m0, n0), by kThreads threads.
    template <u32 kM, u32 kN, u32 kThreads, class Out>
    static __device__ __forceinline__ void fill(Out* d, u32 m0, u32 n0, u32 m, u32 n, u32 thread) {
        constexpr u32 kVectors = kMid * sizeof(Out) / 16;
        if (m0 >= m || n0 >= n) return;
        const u32 height = min(kM, m - m0), end = heads_left(min(n0 + kN, n));
        for (u32 head = heads_left(n0); head < end; ++head) {
            Out* const corner = d + static_cast<u64>(m0) * at(n) + head * (kHead + kMid) + kLeft;
            for (u32 i = thread; i < height * kVectors; i += kThreads) {
                Out* const to = corner + static_cast<u64>(i / kVectors) * at(n) + i % kVectors * (16 / sizeof(Out));
                *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
            }
        }
    }
};

// `Config::Columns`, AllColumns where there is none.
template <class Config>
struct ResultColumns {
    using type = AllColumns;
};

template <class Config>
    requires requires { typename Config::Columns; }
struct ResultColumns<Config> {
    using type = typename Config::Columns;
};
