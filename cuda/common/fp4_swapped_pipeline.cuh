// A warpgroup's way through its units of a tile, with a block decoded while the one before is multiplied: the first of a
// unit, if that is there yet, under the last product of the unit before. What passes from one turn of the loop to the next
// is decoded values; no product does, or ptxas would serialise them all.
#pragma once
#include "common/barrier.cuh"
#include "common/wgmma_rs.cuh"

template <class Gemm>
struct Fp4SwappedPipeline {
    using Layout = typename Gemm::Layout;
    using Shared = typename Gemm::Shared;
    using Weights = typename Gemm::Weights;
    using Block = typename Gemm::Block;
    using Fold = typename Gemm::Fold;
    static constexpr u32 kAccumulators = Gemm::kAccumulators, kKGroups = Gemm::kKGroups;

    // Whether registers are short: then little is read ahead of its use.
    static constexpr bool kShort = 5 * kAccumulators / 2 + 72 > Gemm::kRegisters;

    // A block's weights as they are multiplied, and the scales of this thread's two rows.
    struct Decoded {
        typename Gemm::Fragments a;
        float upper, lower;

        __device__ __forceinline__ void take(const Weights& weights, u32 number, const Fold* folds) {
            const Fold first = folds[0], second = folds[8];
            constexpr u32 kAtOnce = kShort ? 1 : kBlockK / 32;  // what is read of the packed values before it is decoded
#pragma unroll
            for (u32 from = 0; from < kBlockK / 32; from += kAtOnce) {
                u32 codes[kAtOnce][4];
#pragma unroll
                for (u32 i = 0; i < kAtOnce; ++i) weights.read(codes[i], number * 4 + from + i);
#pragma unroll
                for (u32 i = 0; i < kAtOnce; ++i)
                    Gemm::decode(a[from + i], codes[i], first.table(from + i), second.table(from + i));
                if constexpr (kShort) asm volatile("" ::: "memory");
            }
            upper = first.scale(), lower = second.scale();
        }
    };

    // The thread's place in the tile.
    struct Place {
        u32 rows, row, column, lane;

        __device__ __forceinline__ Weights weights(const Shared& shared, u32 stage) const {
            return {shared.weights(stage) + row * 128 + column, lane / 4 * 16};
        }
        // Whether each block of a unit of `count` has one scale a row, and there are two.
        __device__ __forceinline__ bool plain(const Shared& shared, u32 stage, u32 count) const {
            return count == 2 && shared.together(stage, 0)[rows] && shared.together(stage, 1)[rows];
        }
    };

    struct Turn {
        u32 stage, phase;

        __device__ __forceinline__ void advance() {
            stage += kKGroups;
            if (stage >= Gemm::kStages) stage -= Gemm::kStages, phase ^= 1;
        }
    };

    // sum += scales x product, once the product under way is there; `then` is done before.
    template <class Then>
    static __device__ __forceinline__ void finish(float (&sum)[kAccumulators], float (&product)[kAccumulators],
                                                  const float* token_scales, const Decoded& of, Then then) {
        if constexpr (kShort) {
            wgmma_wait<0>();
            wgmma_pin(product);
#pragma unroll
            for (u32 j = 0; j < Gemm::kColumns / 8; ++j) {
                const float2 scale = *reinterpret_cast<const float2*>(token_scales + 8 * j);
                float* const to = &sum[4 * j];
                to[0] += of.upper * scale.x * product[4 * j], to[1] += of.upper * scale.y * product[4 * j + 1];
                to[2] += of.lower * scale.x * product[4 * j + 2], to[3] += of.lower * scale.y * product[4 * j + 3];
                asm volatile("" ::: "memory");  // so that the compiler does not gather the reads
            }
            then();
        } else {
            const typename Gemm::TokenScales scales(token_scales);
            wgmma_wait<0>();
            wgmma_pin(product);
            then();
            Gemm::promote(sum, product, scales, of.upper, of.lower);
        }
    }

    // A plain unit, whose first block is decoded. Returns whether that of the next has been; `next_count`: its blocks, or 0.
    static __device__ __forceinline__ bool multiply(const Shared& shared, float (&sum)[kAccumulators], Decoded& first,
                                                    Turn turn, const Place& at, u32 next_count) {
        const Block one(shared, turn.stage, 0, at.row, at.column), two(shared, turn.stage, 1, at.row, at.column);
        float product[kAccumulators];
        Gemm::issue(product, first.a, one.tokens);
        Decoded second;
        second.take(at.weights(shared, turn.stage), 1, two.folds);
        finish(sum, product, one.token_scales, first, [] {});
        Gemm::issue(product, second.a, two.tokens);
        Turn next = turn;
        next.advance();
        bool there = next_count > 0 && shared.full(next.stage).passed(next.phase);
        there = __all_sync(0xffffffff, there) && at.plain(shared, next.stage, next_count);
        if (there)
            first.take(at.weights(shared, next.stage), 0, shared.folds(next.stage, 0) + at.row);
        finish(sum, product, two.token_scales, second, [&] { arrive_warp(shared.empty(turn.stage), at.lane); });
        return there;
    }

    // Units `unit`, `unit` + kKGroups, ... below `end`, all of a tile, the last of which has blocks up to `blocks`, counted
    // from unit `begin` on.
    static __device__ __forceinline__ void run(const Shared& shared, float (&sum)[kAccumulators], u32& unit, u32 begin,
                                               u32 end, u32 blocks, Turn& turn, const Place& at) {
        const auto count_of = [&](u32 i) { return i < end ? min(2u, blocks - (i - begin) * 2) : 0; };
        Decoded first;
        bool there = false;
#pragma unroll 1
        for (; unit < end; unit += kKGroups, turn.advance()) {
            const u32 count = count_of(unit);
            if (!there) {
                shared.full(turn.stage).wait(turn.phase);
                if (!at.plain(shared, turn.stage, count)) {
#pragma unroll 1
                    for (u32 j = 0; j < count; ++j)
                        Gemm::multiply(sum, at.weights(shared, turn.stage), j,
                                       Block(shared, turn.stage, j, at.row, at.column),
                                       shared.together(turn.stage, j)[at.rows]);
                    arrive_warp(shared.empty(turn.stage), at.lane);
                    continue;
                }
                first.take(at.weights(shared, turn.stage), 0, shared.folds(turn.stage, 0) + at.row);
            }
            there = multiply(shared, sum, first, turn, at, count_of(unit + kKGroups));
        }
    }
};
