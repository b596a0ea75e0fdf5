// The math warpgroups' loop over runs of blocks of K: while one block is promoted, the product of the next is under
// way. Two accumulators take turns, so this is for tiles of one wave and stages of one block.
#pragma once
#include "common/fp8_gemm.cuh"

template <class Config, class Scaling>
struct Fp8Runs {
    using Gemm = Fp8Gemm<Config, Scaling>;
    using Layout = typename Gemm::Layout;
    using Shared = typename Gemm::Shared;
    using Pipeline = typename Gemm::Pipeline;
    using Out = typename Config::Out;
    static constexpr u32 kAccumulators = Gemm::kAccumulators;
    static_assert(Config::kWaves == 1 && Config::kStageBlocks == 1 && Layout::kStoreByTma, "see above");

    // kCount blocks of K, a stage each. Straight code: ptxas follows products under way through branches, but not
    // around a loop. `before` is done while the first products are under way, before anything is added to `sum`;
    // `after` when one block has been.
    template <u32 kCount, class Before, class After>
    static __device__ __forceinline__ void run(const Shared& shared, float (&sum)[kAccumulators], Pipeline& pipe,
                                               u32 group, Fragment at, u32 shift, u32 lane, Before before,
                                               After after) {
        const u32 row = group * 64, ring = wgmma_tile(shared_address(shared.base));
        float product[2][kAccumulators];
        Pipeline ahead = pipe;
        const auto issue = [&](float (&to)[kAccumulators]) {
            shared.full(ahead.stage).wait(ahead.phase);
            wgmma_pin(to);
            wgmma_fence();
            Gemm::multiply(to, ring, ahead.stage, row);
            ahead.advance();
        };
        Gemm::wait_turn(group);
        issue(product[0]);
        unrolled<kCount>([&](auto j) {
            constexpr u32 i = j.value;
            if constexpr (i + 1 < kCount) issue(product[(i + 1) % 2]);
            if constexpr (i == 0) {
                Gemm::pass_turn(group);
                before();
            }
            typename Scaling::Scales scales;
            shared.scales_full(pipe.stage).wait(pipe.phase);
            scales.read(shared, pipe.stage, row + at.row, at.column, Config::kSwap ? row : 0, shift);
            wgmma_wait<(i + 1 < kCount ? 1 : 0)>();
            wgmma_pin(product[i % 2]);
            if constexpr (!Scaling::kReadsLate) Gemm::release(shared, pipe.stage, lane);
            scales.promote(sum, product[i % 2]);
            if constexpr (Scaling::kReadsLate) Gemm::release(shared, pipe.stage, lane);
            pipe.advance();
            if constexpr (i == 0) after();
        });
    }

    static __device__ __forceinline__ void compute(const Shared& shared, const TensorMap& d_map, const Out* c, Out* d,
                                                   u32 m, u32 n, u32 k) {
        const u32 thread = threadIdx.x, group = Gemm::math_group(), warp = thread / 32 % 4, lane = thread % 32;
        const Fragment at{warp * 16 + lane / 4, lane % 4 * 2};
        typename Gemm::Walk walk(shared, m, n, k);
        Pipeline pipe;
        typename Gemm::Stores::Turns turns;
        Gemm::begin_turns(group);
        for (u32 index = walk.first; index < walk.count(); index += walk.step) {
            decltype(walk.corner(0)) corner{};
            const TileNote note = Gemm::note_of(shared, walk, index, pipe, corner);
            float sum[1][kAccumulators];
#pragma unroll
            for (u32 i = 0; i < kAccumulators; ++i) sum[0][i] = 0;
            const auto nothing = [] {};
            const bool needed = group * 64 < note.rows;
            u32 left = walk.k_blocks;
#pragma unroll 1
            for (; left >= Config::kAhead && needed; left -= Config::kAhead)
                run<Config::kAhead>(shared, sum[0], pipe, group, at, note.shift, lane, nothing, nothing);
#pragma unroll 1
            for (; left > 0 && needed; --left) run<1>(shared, sum[0], pipe, group, at, note.shift, lane, nothing, nothing);
            if constexpr (Gemm::Walk::kEndsInside) {
#pragma unroll 1
                for (; left > 0; left -= left >= Config::kAhead ? Config::kAhead : 1)
                    Gemm::pass_by(shared, pipe, left >= Config::kAhead ? Config::kAhead : 1, group, lane);
            }
            Gemm::Stores::put(shared, turns, sum, d_map, result_of(corner, c, m, n), corner, at, group, warp, lane, m, n,
                              walk.rows(d));
            Gemm::fill_columns(d, corner, m, n, thread);
        }
        Gemm::end_turns(group);
        if constexpr (!Layout::kStoreWarp) tma_store_wait_read<0>();
    }
};
