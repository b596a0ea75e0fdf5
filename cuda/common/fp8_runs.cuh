// The math warpgroups' loop over blocks of K one by one, their scales read before the product is issued (kAhead = 1), or
// over runs of kAhead blocks: while one is promoted, the product of the next is under way, in a second accumulator.
// A tile's result leaves while the first products of the next tile are under way.
#pragma once
#include "common/fp8_gemm.cuh"

template <class Config, class Scaling>
struct Fp8Runs {
    using Gemm = Fp8Gemm<Config, Scaling>;
    using Layout = typename Gemm::Layout;
    using Shared = typename Gemm::Shared;
    using Pipeline = typename Gemm::Pipeline;
    using Out = typename Config::Out;
    static constexpr u32 kAccumulators = Gemm::kAccumulators, kWaves = Config::kWaves, kGroups = Config::kMathGroups;
    // The registers that C takes meanwhile must be free beside sums, products and scales.
    static constexpr bool kLate = Layout::kOutByRing && Config::kColumns <= 128 && kWaves == 1;
    static constexpr bool kTurns = kWaves == 1;  // two waves keep the warpgroups apart by themselves
    static_assert((kWaves == 1 || Config::kAhead == 1) && Config::kStageBlocks == 1 && Layout::kStoreByTma, "see above");
    static_assert(!kLate || Layout::kOutStages + 2 <= Config::kStages, "two blocks of K beside the last tile's result");

    // One block of K. `before` is done while the first product is under way, before anything is added to `sum`.
    template <class Before>
    static __device__ __forceinline__ void block(const Shared& shared, float (&sum)[kWaves][kAccumulators],
                                                 Pipeline& pipe, u32 group, Fragment at, u32 shift, u32 lane,
                                                 Before before) {
        typename Scaling::Scales scales;
        shared.scales_full(pipe.stage).wait(pipe.phase);
        scales.read(shared, pipe.stage, group * 64 + at.row, at.column);
        shared.full(pipe.stage).wait(pipe.phase);
#pragma unroll
        for (u32 w = 0; w < kWaves; ++w) {
            const u32 row = (w * kGroups + group) * 64;
            float product[kAccumulators];
            if (w > 0) scales.read_rows(shared, pipe.stage, row + at.row);
            if constexpr (kTurns) Gemm::wait_turn(group);
            wgmma_pin(product);
            wgmma_fence();
            Gemm::multiply(product, shared.rows(pipe.stage) + row * kBlockK, shared.columns(pipe.stage));
            if constexpr (kTurns) Gemm::pass_turn(group);
            if (w == 0) before();
            wgmma_wait<0>();
            wgmma_pin(product);
            if (w == kWaves - 1 && !Scaling::kReadsLate) Gemm::release(shared, pipe.stage, lane);
            scales.promote(sum[w], product, Config::kSwap ? row : 0, shift);
            if (w == kWaves - 1 && Scaling::kReadsLate) Gemm::release(shared, pipe.stage, lane);
        }
        pipe.advance();
    }

    // kCount blocks of K, a stage each. Straight code: ptxas follows products under way through branches, but not
    // around a loop. `before` as above; `after` is done when one block has been added.
    template <u32 kCount, class Before, class After>
    static __device__ __forceinline__ void run(const Shared& shared, float (&sum)[kWaves][kAccumulators],
                                               Pipeline& pipe, u32 group, Fragment at, u32 shift, u32 lane,
                                               Before before, After after) {
        const u32 row = group * 64;
        float product[2][kAccumulators];
        Pipeline ahead = pipe;
        const auto issue = [&](float (&to)[kAccumulators]) {
            shared.full(ahead.stage).wait(ahead.phase);
            wgmma_pin(to);
            wgmma_fence();
            Gemm::multiply(to, shared.rows(ahead.stage) + row * kBlockK, shared.columns(ahead.stage));
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
            scales.read(shared, pipe.stage, row + at.row, at.column);
            wgmma_wait<(i + 1 < kCount ? 1 : 0)>();
            wgmma_pin(product[i % 2]);
            if constexpr (!Scaling::kReadsLate) Gemm::release(shared, pipe.stage, lane);
            scales.promote(sum[0], product[i % 2], Config::kSwap ? row : 0, shift);
            if constexpr (Scaling::kReadsLate) Gemm::release(shared, pipe.stage, lane);
            pipe.advance();
            if constexpr (i == 0) after();
        });
    }

    static __device__ __forceinline__ void compute(const Shared& shared, const TensorMap& d_map, const Out* c, u32 m,
                                                   u32 n, u32 k) {
        constexpr u32 kAhead = Config::kAhead;
        const u32 thread = threadIdx.x, group = Gemm::math_group(), warp = thread / 32 % 4, lane = thread % 32;
        const Fragment at{warp * 16 + lane / 4, lane % 4 * 2};
        const typename Gemm::Walk walk(m, n, k);
        Pipeline pipe;
        RingOutput<Gemm> output;
        float sum[kWaves][kAccumulators];
        Tile last{};
        if (kTurns && group == 1) Gemm::pass_turn(group);
        for (u32 index = walk.first; index < walk.order.count(); index += walk.step) {
            const Tile corner = walk.corner(index);
            const u32 shift = (Config::kSwap ? corner.row : corner.column) % kScaleBlock;
            const auto begin = [&] {
                if constexpr (kLate) {
                    if (index != walk.first) output.finish(shared, sum, d_map, last, group, warp, lane);
                }
#pragma unroll
                for (u32 w = 0; w < kWaves; ++w) {
#pragma unroll
                    for (u32 i = 0; i < kAccumulators; ++i) sum[w][i] = 0;
                }
            };
            const auto settle = [&] {
                if constexpr (kLate) output.settle(shared, lane);
            };
            const auto nothing = [] {};
            if constexpr (kAhead == 1) {
                const auto one = [&](auto before) { block(shared, sum, pipe, group, at, shift, lane, before); };
                u32 left = walk.k_blocks;
                one(begin), --left;
                if constexpr (kLate) {  // the store has two blocks' time to read
                    if (left > 0) one(nothing), --left;
                    settle();
                }
#pragma unroll 1
                for (; left > 0; --left) one(nothing);
            } else {
                const auto blocks = [&](auto count, auto before, auto after) {
                    run<count.value>(shared, sum, pipe, group, at, shift, lane, before, after);
                };
                u32 left = walk.k_blocks;
                if (left >= kAhead) {
                    blocks(Constant<kAhead>{}, begin, settle), left -= kAhead;
                } else {
                    blocks(Constant<1>{}, begin, settle), --left;
                }
#pragma unroll 1
                for (; left >= kAhead; left -= kAhead) blocks(Constant<kAhead>{}, nothing, nothing);
#pragma unroll 1
                for (; left > 0; --left) blocks(Constant<1>{}, nothing, nothing);
            }
            if constexpr (Layout::kOutByRing) {
                output.postpone(pipe), last = corner;
                if constexpr (!kLate) {
                    output.finish(shared, sum, d_map, corner, group, warp, lane);
                    output.settle(shared, lane);
                }
            } else {
                Gemm::Epilogue::store_by_tma(shared, sum, d_map, c, corner, at, group, warp, lane, m, n);
            }
        }
        if constexpr (kLate) {
            if (walk.first < walk.order.count()) output.finish(shared, sum, d_map, last, group, warp, lane);
        }
        if (kTurns && group == 0) Gemm::wait_turn(group);  // the turn that nobody took
        tma_store_wait_read<0>();
    }
};
