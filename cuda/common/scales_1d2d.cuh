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
        // Of wgmma's columns, those under one scale of B wherever the tile begins: at a multiple of its width.
        static constexpr u32 kChunk = lowest_bit(kColumns) < kScaleBlock ? lowest_bit(kColumns) : kScaleBlock;
        static constexpr u32 kChunks = kColumns / kChunk;
        // Multiplied while the product is under way, where there are registers for it.
        static constexpr bool kEarly = Config::kSwap || kChunks <= 3;
        static constexpr u32 kScales = Config::kSwap ? kColumns / 4 : kEarly ? 2 * kChunks : 2;
        float scales[kScales];  // of tokens, if kSwap; else of the upper and the lower row, in each chunk. If late, A's.
        float b[kEarly ? 1 : Layout::kScalesB];
        u32 shift;

        // `n`: the first row of B that the fragment meets, counted from the tile's corner, which lies `shift` rows into
        // a block of 128.
        __device__ __forceinline__ void read(const Shared& shared, u32 block, u32 row, u32 column, u32 n, u32 shift) {
            const float* const from = shared.scales_a(block);
            float of_b[Layout::kScalesB];
#pragma unroll
            for (u32 j = 0; j < Layout::kScalesB; ++j) of_b[j] = shared.scales_b(block)[j];
            if constexpr (Config::kSwap) {
                const float scale = at(of_b, n, shift);
#pragma unroll
                for (u32 j = 0; j < kColumns / 8; ++j) {
                    const float2 pair = *reinterpret_cast<const float2*>(from + 8 * j + column);
                    scales[2 * j] = pair.x * scale, scales[2 * j + 1] = pair.y * scale;
                }
            } else if constexpr (kEarly) {
                const float upper = from[row], lower = from[row + 8];
#pragma unroll
                for (u32 j = 0; j < kChunks; ++j) {
                    const float scale = at(of_b, j * kChunk, shift);
                    scales[2 * j] = upper * scale, scales[2 * j + 1] = lower * scale;
                }
            } else {
                scales[0] = from[row], scales[1] = from[row + 8];
#pragma unroll
                for (u32 j = 0; j < Layout::kScalesB; ++j) b[j] = of_b[j];
                this->shift = shift;
            }
            if constexpr (kEarly) wgmma_pin(scales);
        }

        // B's scale at `n` of the tile.
        static __device__ __forceinline__ float at(const float (&b)[Layout::kScalesB], u32 n, u32 shift) {
            if constexpr (Layout::kScalesB == 1) return b[0];
            // An index that is no constant would move `b` to local memory; with kSwap, n depends on the warpgroup.
            if constexpr (!Config::kSwap && Layout::kTileN % kScaleBlock == 0) return b[n / kScaleBlock];
            const u32 block = (n + shift) / kScaleBlock;
            float found = b[0];
#pragma unroll
            for (u32 j = 1; j < Layout::kScalesB; ++j) found = block >= j ? b[j] : found;
            return found;
        }

        // sum += scale x product.
        __device__ __forceinline__ void promote(float (&sum)[kAccumulators], const float (&product)[kAccumulators]) const {
            if constexpr (Config::kSwap) {
#pragma unroll
                for (u32 i = 0; i < kAccumulators; ++i) sum[i] += scales[i / 4 * 2 + i % 2] * product[i];
            } else {
#pragma unroll
                for (u32 j = 0; j < kChunks; ++j) {
                    float upper = scales[kEarly ? 2 * j : 0], lower = scales[kEarly ? 2 * j + 1 : 1];
                    if constexpr (!kEarly) {
                        const float scale = at(b, j * kChunk, shift);
                        upper *= scale, lower *= scale;
                    }
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
