// Scales of A and of B per row and 128 of K: each element of a tile has a product of scales of its own.
#pragma once
#include "common/barrier.cuh"
#include "common/gemm_layout.cuh"
#include "common/tma.cuh"

// Scales of rows that lie along one side of a tile, rows fastest in memory: this lane's are `lane`, `lane + 32`, ...
// Rows beyond the last keep what the stage held before: nobody stores them.
template <u32 kExtent>
struct RowScales {
    const float* from;
    u32 left, rows;

    __device__ __forceinline__ RowScales(const float* scales, u32 first, u32 rows, u32 k_begin, u32 lane)
        : from(scales + static_cast<u64>(k_begin) * rows + first + lane), rows(rows) {
        const u32 extent = first < rows ? min(kExtent, rows - first) : 0;
        left = extent > lane ? extent - lane : 0;
    }

    __device__ __forceinline__ void copy_next(float* to) {
#pragma unroll
        for (u32 at = 0; at < kExtent; at += 32) {
            if (at < left) async_copy_4_bytes(to + at, from + at);
        }
        from += rows;
    }
};

template <class Config>
struct Scales1d1d {
    using Layout = SharedLayout<Config>;
    using Shared = SharedMemory<Config>;
    static constexpr u32 kColumns = Config::kColumns, kAccumulators = kColumns / 2;
    static constexpr u32 kBlocks = Config::kAhead > 0 ? 2 : Config::kStageBlocks;

    // What is read, and multiplied, while the tensor cores work costs no time after them, but registers: the scale of
    // each accumulator, or else those of the columns, or else nothing.
    static constexpr u32 kHeld = kAccumulators * (Config::kWaves + kBlocks), kFree = Config::kMathGroups > 1 ? 200 : 224;
    static constexpr bool kAllAhead = kHeld + kBlocks * kAccumulators <= kFree;
    static constexpr bool kColumnsAhead = !kAllAhead && kHeld + kBlocks * kColumns / 4 <= kFree;
    static constexpr bool kReadsLate = !kAllAhead && !kColumnsAhead;

    struct Source {
        RowScales<Layout::kTileM> a;
        RowScales<Layout::kTileN> b;
        u32 lane;

        __device__ __forceinline__ Source(const float* scales_a, const float* scales_b, u32 m0, u32 n0, u32 m, u32 n,
                                          u32 /*k*/, u32 k_begin, u32 lane)
            : a(scales_a, m0, m, k_begin, lane), b(scales_b, n0, n, k_begin, lane), lane(lane) {}

        // Starts the copies of one block of K to `scales`, and goes on to the next.
        __device__ __forceinline__ void copy_next(float* scales) {
            a.copy_next(scales + lane);
            b.copy_next(scales + Layout::kTileM + lane);
        }
    };

    struct Scales {
        float upper, lower;
        const float* columns;
        float ahead[kAllAhead ? kAccumulators : kColumnsAhead ? kColumns / 4 : 1];

        __device__ __forceinline__ void read(const Shared& shared, u32 block, u32 row, u32 column) {
            const float* const rows = Config::kSwap ? shared.scales_b(block) : shared.scales_a(block);
            columns = (Config::kSwap ? shared.scales_a(block) : shared.scales_b(block)) + column;
            upper = rows[row], lower = rows[row + 8];
            if constexpr (!kReadsLate) {
#pragma unroll
                for (u32 j = 0; j < kColumns / 8; ++j) {
                    const float2 pair = *reinterpret_cast<const float2*>(columns + 8 * j);
                    if constexpr (kAllAhead) {
                        ahead[4 * j + 0] = upper * pair.x, ahead[4 * j + 1] = upper * pair.y;
                        ahead[4 * j + 2] = lower * pair.x, ahead[4 * j + 3] = lower * pair.y;
                    } else {
                        ahead[2 * j] = pair.x, ahead[2 * j + 1] = pair.y;
                    }
                }
            }
        }

        // sum += scale x product.
        __device__ __forceinline__ void promote(float (&sum)[kAccumulators], const float (&product)[kAccumulators],
                                                u32 /*n*/, u32 /*shift*/) const {
#pragma unroll
            for (u32 j = 0; j < kColumns / 8; ++j) {
                if constexpr (kAllAhead) {
#pragma unroll
                    for (u32 i = 4 * j; i < 4 * j + 4; ++i) sum[i] += ahead[i] * product[i];
                } else {
                    float2 pair;
                    if constexpr (kColumnsAhead) {
                        pair = make_float2(ahead[2 * j], ahead[2 * j + 1]);
                    } else {
                        pair = *reinterpret_cast<const float2*>(columns + 8 * j);
                    }
                    sum[4 * j + 0] += upper * pair.x * product[4 * j + 0];
                    sum[4 * j + 1] += upper * pair.y * product[4 * j + 1];
                    sum[4 * j + 2] += lower * pair.x * product[4 * j + 2];
                    sum[4 * j + 3] += lower * pair.y * product[4 * j + 3];
                }
            }
        }
    };
};
