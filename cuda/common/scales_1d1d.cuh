// Scales of A and of B per row and 128 of K: each element of a tile has a product of scales of its own.
#pragma once
#include "common/barrier.cuh"
#include "common/gemm_layout.cuh"
#include "common/scale_copies.cuh"

template <class Config>
struct Scales1d1d {
    using Operands = Fp8ByRows<Config>;
    using Layout = SharedLayout<Config, Operands>;
    using Shared = SharedMemory<Config, Operands>;
    static constexpr u32 kColumns = Config::kColumns, kAccumulators = kColumns / 2;
    static constexpr u32 kBlocks = Config::kAhead > 1 ? 2 : Config::kStageBlocks;  // products under way

    // What is read, and multiplied, while the tensor cores work costs no time after them, but registers: the scale of
    // each accumulator, or else those of some columns, four at a time; the others follow as those are used up.
    static constexpr u32 kHeld = kAccumulators * (Config::kWaves + kBlocks);
    static constexpr u32 kFree = Config::kMathGroups == 3 ? 128 : Config::kMathGroups == 2 ? 200 : 224;
    static constexpr bool kAllAhead = kHeld + kBlocks * kAccumulators <= kFree && Config::kWaves == 1;
    static constexpr u32 kFours = kColumns / 16;
    static constexpr u32 kMost = kFree > kHeld ? (kFree - kHeld) / (4 * Config::kStageBlocks) : 0;
    static constexpr u32 kRoom = kMost > 2 ? kMost : 2;
    // Of a tile in two waves those that stay are good for both; all of them would spill.
    static constexpr bool kStay = Config::kAhead == 1 && Config::kWaves == 2;
    static constexpr u32 kFoursAhead = kStay && kFours > 7 ? 7 : Config::kAhead == 1 || kRoom > kFours ? kFours : kRoom;
    static constexpr bool kReadsLate = !kAllAhead && kFoursAhead < kFours;

    // Of groups along K one without rows has a block beyond K.
    static constexpr bool kMayHaveNone = requires { Config::kKGrouped; };

    static_assert(!Config::kSwap && kColumns % 16 == 0, "scales are read for 16 columns at once");

    // This lane's share of the scales of rows, and of those of columns: `lane`, `lane + 32`, ..., or pairs of them where
    // all of a tile's are there and addresses allow. In memory all of one block of K are together.
    struct Source {
        ScaleCopies<Layout::kTileM> a;
        const float* from_b;
        u32 left_b, n, lane, to_b;
        bool by_pairs, none = false;

        __device__ __forceinline__ Source(const float* scales_a, const float* scales_b, u32 m0, u32 n0, u32 m, u32 n,
                                          u32 k, u32 k_begin, u32 lane)
            : a(scales_a, m0, m, beyond(k, k_begin) ? 0 : k_begin, lane), n(n), lane(lane) {
            none = beyond(k, k_begin);
            left_b = n0 + lane < n ? min(Layout::kTileN, n - n0 - lane) : 0;
            by_pairs = !none && n0 + Layout::kTileN <= n && n % 2 == 0 && reinterpret_cast<u64>(scales_b + n0) % 8 == 0;
            const u32 column = by_pairs ? 2 * lane : lane;
            from_b = scales_b + static_cast<u64>(none ? 0 : k_begin) * n + n0 + column;
            to_b = Layout::kTileM + column / 2 % 4 * Operands::kScalesPitch + column / 8 * 2 + column % 2;
        }

        static __device__ __forceinline__ bool beyond(u32 k, u32 k_begin) {
            return kMayHaveNone && k_begin * kBlockK >= k;
        }

        // Starts the copies of one block of K to `scales`, and goes on to the next.
        __device__ __forceinline__ void copy_next(float* scales) {
            float* const to = scales + to_b;
            if (kMayHaveNone && none) {  // zeros: they will scale zeros
                a.copy_zeros(scales);
                copy_columns<32>([&](u32 at) {
                    if (at < left_b) async_zeros_4_bytes(to + at / 4, from_b);
                });
            } else {
                a.copy(scales);
                if (by_pairs) {
                    copy_columns<64>([&](u32 at) { async_copy<8>(to + at / 4, from_b + at); });
                } else {
                    copy_columns<32>([&](u32 at) {
                        if (at < left_b) async_copy<4>(to + at / 4, from_b + at);
                    });
                }
            }
            a.advance(), from_b += n;
        }

        // kStep: how many the warp takes at once. `to_b` grows by a quarter of what `from_b` does.
        template <u32 kStep, class Copy>
        __device__ __forceinline__ void copy_columns(Copy copy) const {
#pragma unroll
            for (u32 at = 0; at < Layout::kTileN; at += kStep) {
                if (at + kStep <= Layout::kTileN || at + lane * (kStep / 32) < Layout::kTileN) copy(at);
            }
        }
    };

    struct Scales {
        float upper, lower;
        const float4* columns;
        float ahead[kAllAhead ? kAccumulators : 1];
        float4 fours[kAllAhead ? 1 : kFoursAhead];

        __device__ __forceinline__ void read_rows(const Shared& shared, u32 block, u32 row) {
            const float* const rows = shared.scales_a(block);
            upper = rows[row], lower = rows[row + 8];
        }

        __device__ __forceinline__ void read(const Shared& shared, u32 block, u32 row, u32 column, u32 /*n*/, u32 /*shift*/) {
            read_rows(shared, block, row);
            columns = reinterpret_cast<const float4*>(shared.scales_b(block) + column / 2 * Operands::kScalesPitch);
            if constexpr (kAllAhead) {
#pragma unroll
                for (u32 i = 0; i < kFours; ++i) {
                    const float4 four = columns[i];
                    ahead[8 * i + 0] = upper * four.x, ahead[8 * i + 1] = upper * four.y;
                    ahead[8 * i + 2] = lower * four.x, ahead[8 * i + 3] = lower * four.y;
                    ahead[8 * i + 4] = upper * four.z, ahead[8 * i + 5] = upper * four.w;
                    ahead[8 * i + 6] = lower * four.z, ahead[8 * i + 7] = lower * four.w;
                }
            } else {
#pragma unroll
                for (u32 i = 0; i < kFoursAhead; ++i) fours[i] = columns[i];
            }
        }

        // sum += scale x product.
        __device__ __forceinline__ void promote(float (&sum)[kAccumulators], const float (&product)[kAccumulators]) {
            if constexpr (kAllAhead) {
#pragma unroll
                for (u32 i = 0; i < kAccumulators; ++i) sum[i] += ahead[i] * product[i];
            } else {
#pragma unroll
                for (u32 i = 0; i < kFours; ++i) {
                    const float4 four = kStay && i >= kFoursAhead ? columns[i] : fours[i % kFoursAhead];
                    if (!kStay && i + kFoursAhead < kFours) fours[i % kFoursAhead] = columns[i + kFoursAhead];
                    add_four(&sum[8 * i], &product[8 * i], four.x, four.y);
                    add_four(&sum[8 * i + 4], &product[8 * i + 4], four.z, four.w);
                    // So that the compiler does not gather the reads.
                    if (i + kFoursAhead < kFours) asm volatile("" ::: "memory");
                }
            }
        }

        __device__ __forceinline__ void add_four(float* sum, const float* product, float even, float odd) const {
            sum[0] += upper * even * product[0], sum[1] += upper * odd * product[1];
            sum[2] += lower * even * product[2], sum[3] += lower * odd * product[3];
        }
    };
};
