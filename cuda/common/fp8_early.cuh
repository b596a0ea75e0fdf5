// The math warpgroups' loop over blocks of K where every column has a scale: a block's scales are read before its products
// are issued.
#pragma once
#include "common/fp8_gemm.cuh"

template <class Config, class Scaling>
struct Fp8Early {
    using Gemm = Fp8Gemm<Config, Scaling>;
    using Layout = typename Gemm::Layout;
    using Shared = typename Gemm::Shared;
    using Pipeline = typename Gemm::Pipeline;
    using Out = typename Config::Out;
    static constexpr u32 kAccumulators = Gemm::kAccumulators, kWaves = Config::kWaves, kGroups = Config::kMathGroups;
    static constexpr bool kLate = Layout::kOutByRing && kWaves == 1 && Config::kColumns <= 128;
    static_assert(Config::kStageBlocks == 1 && Layout::kStoreByTma, "see above");

    template <class Before, class After>
    static __device__ __forceinline__ void block(const Shared& shared, float (&sum)[kWaves][kAccumulators],
                                                 Pipeline& pipe, u32 group, Fragment at, u32 lane, Before before,
                                                 After after) {
        typename Scaling::Early scales;
        shared.scales_full(pipe.stage).wait(pipe.phase);
        scales.read_columns(shared, pipe.stage, at.column);
#pragma unroll
        for (u32 w = 0; w < kWaves; ++w) {
            const u32 row = (w * kGroups + group) * 64;
            float product[kAccumulators];
            scales.read_rows(shared, pipe.stage, row + at.row);
            if (w == 0) shared.full(pipe.stage).wait(pipe.phase);
            Gemm::wait_turn(group);
            wgmma_pin(product);
            wgmma_fence();
            Gemm::multiply(product, shared.rows(pipe.stage) + row * kBlockK, shared.columns(pipe.stage));
            Gemm::pass_turn(group);
            if (w == 0) before();
            wgmma_wait<0>();
            wgmma_pin(product);
            if (w == kWaves - 1) Gemm::release(shared, pipe.stage, lane);
            scales.promote(sum[w], product);
        }
        pipe.advance();
        after();
    }

    static __device__ __forceinline__ void compute(const Shared& shared, const TensorMap& d_map, const Out* c, u32 m,
                                                   u32 n, u32 k) {
        const u32 thread = threadIdx.x, group = Gemm::math_group(), warp = thread / 32 % 4, lane = thread % 32;
        const Fragment at{warp * 16 + lane / 4, lane % 4 * 2};
        const typename Gemm::Walk walk(m, n, k);
        Pipeline pipe;
        RingOutput<Gemm> output;
        float sum[kWaves][kAccumulators];
        Tile last{};
        if (group == 1) Gemm::pass_turn(group);
        for (u32 index = walk.first; index < walk.order.count(); index += walk.step) {
            const Tile corner = walk.corner(index);
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
            const auto nothing = [] {};
            block(shared, sum, pipe, group, at, lane, begin, nothing);
            if constexpr (kLate) {
                if (walk.k_blocks > 1) block(shared, sum, pipe, group, at, lane, nothing, nothing);
                output.settle(shared, lane);
            }
#pragma unroll 1
            for (u32 i = kLate ? 2 : 1; i < walk.k_blocks; ++i)
                block(shared, sum, pipe, group, at, lane, nothing, nothing);
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
        if (group == 0) Gemm::wait_turn(group);  // the turn that nobody took
        tma_store_wait_read<0>();
    }
};
