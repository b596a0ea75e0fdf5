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

    // A block's weights as they lie in shared memory. They are read in front of a product, since reads behind it may wait
    // for its own, and decoded under it.
    struct Packed {
        typename Gemm::Fragments codes;
        Fold upper, lower;

        __device__ __forceinline__ void read(const Weights& weights, u32 number, const Fold* folds) {
            Gemm::read(codes, weights, number);
            upper = folds[0], lower = folds[8];
        }
    };

    // What the promotion of a block takes.
    struct Scales {
        typename Gemm::TokenScales tokens;
        float upper, lower;

        __device__ __forceinline__ explicit Scales(const Block& block)
            : tokens(block.token_scales), upper(block.folds[0].scale()), lower(block.folds[8].scale()) {}

        __device__ __forceinline__ void promote(float (&sum)[kAccumulators],
                                                const float (&product)[kAccumulators]) const {
            Gemm::promote(sum, product, tokens, upper, lower);
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
        __device__ __forceinline__ void read_first(Packed& packed, const Shared& shared, u32 stage) const {
            packed.read(weights(shared, stage), 0, shared.folds(stage, 0) + row);
        }
    };

    struct Turn {
        u32 stage, phase;

        __device__ __forceinline__ void advance() {
            stage += kKGroups;
            if (stage >= Gemm::kStages) stage -= Gemm::kStages, phase ^= 1;
        }
    };

    static __device__ __forceinline__ void decode(typename Gemm::Fragments& a, const Packed& packed) {
        Gemm::decode(a, packed.codes, packed.upper, packed.lower);
    }

    static __device__ __forceinline__ void wait(float (&product)[kAccumulators]) {
        wgmma_wait<0>();
        wgmma_pin(product);
    }

    // A plain unit, whose first block is decoded. Returns whether that of the next has been; `next_count`: its blocks, or 0.
    static __device__ __forceinline__ bool multiply(const Shared& shared, float (&sum)[kAccumulators],
                                                    typename Gemm::Fragments& first, Turn turn, const Place& at,
                                                    u32 next_count) {
        const Block one(shared, turn.stage, 0, at.row, at.column), two(shared, turn.stage, 1, at.row, at.column);
        float product[kAccumulators];
        typename Gemm::Fragments second;
        Packed packed;
        packed.read(at.weights(shared, turn.stage), 1, two.folds);
        const Scales scales(one);
        Gemm::issue(product, first, one.tokens);
        decode(second, packed);
#pragma unroll
        for (u32 i = 0; i < kBlockK / 32; ++i) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) asm volatile("" : "+r"(second[i][e])::"memory");
        }
        // Here because ptxas moves nothing behind a branch: the decoding it would move behind the wait.
        Turn next = turn;
        next.advance();
        bool there = next_count > 0 && shared.full(next.stage).passed(next.phase);
        there = __all_sync(0xffffffff, there) && at.plain(shared, next.stage, next_count);
        wait(product);
        scales.promote(sum, product);

        if (there) at.read_first(packed, shared, next.stage);
        const Scales scales2(two);
        Gemm::issue(product, second, two.tokens);
        if (there) decode(first, packed);
        wait(product);
        arrive_warp(shared.empty(turn.stage), at.lane);
        scales2.promote(sum, product);
        return there;
    }

    // Units `unit`, `unit` + kKGroups, ... below `end`, all of a tile, the last of which has blocks up to `blocks`, counted
    // from unit `begin` on.
    static __device__ __forceinline__ void run(const Shared& shared, float (&sum)[kAccumulators], u32& unit, u32 begin,
                                               u32 end, u32 blocks, Turn& turn, const Place& at) {
        const auto count_of = [&](u32 i) { return i < end ? min(2u, blocks - (i - begin) * 2) : 0; };
        typename Gemm::Fragments first;
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
                Packed packed;
                at.read_first(packed, shared, turn.stage);
                decode(first, packed);
            }
            there = multiply(shared, sum, first, turn, at, count_of(unit + kKGroups));
        }
    }
};
