// Scales of A per row and 128 of K, of B per 128 x 128: one or a few of B's serve a whole tile.
#pragma once
#include "common/barrier.cuh"
#include "common/gemm_layout.cuh"
#include "common/scale_copies.cuh"

template <class Config>
struct Scales1d2d {
    using Operands = ScaledFp8<Config>;
    using Layout = SharedLayout<Config, Operands>;
    using Shared = SharedMemory<Config, Operands>;
    static constexpr u32 kColumns = Config::kColumns, kAccumulators = kColumns / 2;
    static constexpr bool kReadsLate = false;

    // This lane's scales: of A a share, of B `lane`.
    struct Source {
        ScaleCopies<Layout::kTileM> a;
        const float* from_b;
        u32 lane;
        bool has_b;

        __device__ __forceinline__ Source(const float* scales_a, const float* scales_b, u32 m0, u32 n0, u32 m, u32 n,
                                          u32 k, u32 k_begin, u32 lane)
            : a(scales_a, m0, m, k_begin, lane), lane(lane) {
            const u32 blocks_k = ceil_div(k, kBlockK), blocks_n = ceil_div(n, kScaleBlock);
            const u32 block_n = n0 / kScaleBlock;
            has_b = lane < Layout::kScalesB && block_n + lane < blocks_n;
            from_b = scales_b + static_cast<u64>(block_n + lane) * blocks_k + k_begin;
        }

        // Starts the copies of one block of K to `scales`, and goes on to the next.
        __device__ __forceinline__ void copy_next(float* scales) {
            a.copy(scales);
            if (has_b) async_copy<4>(scales + Layout::kTileM + lane, from_b);
            a.advance(), ++from_b;
        }
    };

    // What a thread needs to scale its fragment, read before the stage is given back.
    struct Scales {
        static constexpr u32 kA = Config::kSwap ? kColumns / 4 : 2;
        float a[kA], b[Layout::kScalesB];

        __device__ __forceinline__ void read(const Shared& shared, u32 block, u32 row, u32 column) {
            const float* from = shared.scales_a(block);
            if constexpr (Config::kSwap) {
#pragma unroll
                for (u32 j = 0; j < kColumns / 8; ++j) {
                    const float2 pair = *reinterpret_cast<const float2*>(from + 8 * j + column);
                    a[2 * j] = pair.x, a[2 * j + 1] = pair.y;
                }
            } else {
                a[0] = from[row], a[1] = from[row + 8];
            }
#pragma unroll
            for (u32 j = 0; j < Layout::kScalesB; ++j) b[j] = shared.scales_b(block)[j];
        }

        // B's scale at `n` of the tile, whose corner lies `shift` rows into a block of 128.
        __device__ __forceinline__ float at(u32 n, u32 shift) const {
            if constexpr (Layout::kScalesB == 1) return b[0];
            // An index that is no constant would move `b` to local memory; with kSwap, n depends on the warpgroup.
            if constexpr (!Config::kSwap && Layout::kTileN % kScaleBlock == 0) return b[n / kScaleBlock];
            const u32 block = (n + shift) / kScaleBlock;
            float found = b[0];
#pragma unroll
            for (u32 j = 1; j < Layout::kScalesB; ++j) found = block >= j ? b[j] : found;
            return found;
        }

        // sum += scale x product. `n` is the first row of B that the fragment meets, counted from the tile's corner.
        __device__ __forceinline__ void promote(float (&sum)[kAccumulators], const float (&product)[kAccumulators],
                                                u32 n, u32 shift) const {
            if constexpr (Config::kSwap) {
                const float b = at(n, shift);
#pragma unroll
                for (u32 j = 0; j < kColumns / 8; ++j) {
                    const float even = a[2 * j] * b, odd = a[2 * j + 1] * b;
                    sum[4 * j + 0] += even * product[4 * j + 0], sum[4 * j + 1] += odd * product[4 * j + 1];
                    sum[4 * j + 2] += even * product[4 * j + 2], sum[4 * j + 3] += odd * product[4 * j + 3];
                }
            } else {
                constexpr u32 kChunk = 16;  // columns under one scale wherever the tile begins
#pragma unroll
                for (u32 j = 0; j < kColumns / kChunk; ++j) {
                    const float b = at(j * kChunk, shift);
                    const float upper = a[0] * b, lower = a[1] * b;
#pragma unroll
                    for (u32 i = j * kChunk / 2; i < (j + 1) * kChunk / 2; i += 4) {
                        sum[i + 0] += upper * product[i + 0], sum[i + 1] += upper * product[i + 1];
                        sum[i + 2] += lower * product[i + 2], sum[i + 3] += lower * product[i + 3];
                    }
                }
            }
        }
    };
};
