// The math warpgroups' loop where both operands have a scale for each row. Blocks of K are multiplied one by one,
// their scales read before the product is issued (kAhead = 1), or in runs. The result leaves by the ring of stages,
// that of a tile in one wave while the first products of the next tile are under way.
#pragma once
#include "common/fp8_gemm.cuh"
#include "common/fp8_runs.cuh"

template <class Config, class Scaling>
struct Fp8ByRowsLoop {
    using Gemm = Fp8Gemm<Config, Scaling>;
    using Layout = typename Gemm::Layout;
    using Shared = typename Gemm::Shared;
    using Pipeline = typename Gemm::Pipeline;
    using Out = typename Config::Out;
    static constexpr u32 kAccumulators = Gemm::kAccumulators, kWaves = Config::kWaves, kGroups = Config::kMathGroups;
    // The registers that C takes meanwhile must be free beside sums, products and scales.
    static constexpr bool kLate = Layout::kOutByRing && Config::kColumns <= 128 && kWaves == 1;
    static constexpr bool kTurns = kWaves == 1;  // 256 x 128 is 5 % faster without
    static_assert(kWaves == 1 || Config::kAhead == 1, "a run is of one wave");
    static_assert(Config::kStageBlocks == 1 && Layout::kStoreByTma && !Layout::kStoreWarp, "see above");
    static_assert(!kLate || Layout::kOutStages + 2 <= Config::kStages, "two blocks of K beside the last tile's result");

    // One block of K. `before` is done while the first product is under way, before anything is added to `sum`. `landed`:
    // whether the tiles were seen to be there by the block before, and whether the next one's are.
    template <class Before>
    static __device__ __forceinline__ void block(const Shared& shared, float (&sum)[kWaves][kAccumulators],
                                                 Pipeline& pipe, bool& landed, u32 group, Fragment at, u32 shift,
                                                 u32 lane, Before before) {
        const u32 ring = wgmma_tile(shared_address(shared.base));
        typename Scaling::Scales scales;
        // Tiles are waited for first: nothing but the turn is left, then, between the reading of scales and the product.
        // Two waves without turns are faster the other way.
        if (kTurns && !landed) shared.full(pipe.stage).wait(pipe.phase);
        shared.scales_full(pipe.stage).wait(pipe.phase);
        scales.read(shared, pipe.stage, group * 64 + at.row, at.column, 0, shift);
        if constexpr (!kTurns) shared.full(pipe.stage).wait(pipe.phase);
#pragma unroll
        for (u32 w = 0; w < kWaves; ++w) {
            const u32 row = (w * kGroups + group) * 64;
            float product[kAccumulators];
            if (w > 0) scales.read_rows(shared, pipe.stage, row + at.row);
            if constexpr (kTurns) Gemm::wait_turn(group);
            wgmma_pin(product);
            wgmma_fence();
            Gemm::multiply(product, ring, pipe.stage, row);
            if constexpr (kTurns) Gemm::pass_turn(group);
            if (w == 0) before();
            if constexpr (kTurns) {
                Pipeline next = pipe;
                next.advance();
                landed = shared.full(next.stage).passed(next.phase);
            }
            wgmma_wait<0>();
            wgmma_pin(product);
            if (w == kWaves - 1 && !Scaling::kReadsLate) Gemm::release(shared, pipe.stage, lane);
            scales.promote(sum[w], product);
            if (w == kWaves - 1 && Scaling::kReadsLate) Gemm::release(shared, pipe.stage, lane);
        }
        pipe.advance();
    }

    static __device__ __forceinline__ void compute(const Shared& shared, const TensorMap& d_map, const Out* c, u32 m,
                                                   u32 n, u32 k) {
        constexpr u32 kAhead = Config::kAhead;
        const u32 thread = threadIdx.x, group = Gemm::math_group(), warp = thread / 32 % 4, lane = thread % 32;
        const Fragment at{warp * 16 + lane / 4, lane % 4 * 2};
        typename Gemm::Walk walk(shared, m, n, k);
        Pipeline pipe;
        RingOutput<Gemm> output;
        float sum[kWaves][kAccumulators];
        decltype(walk.corner(0)) last{};
        // Of groups along K, found anew: to keep it takes more registers than there are.
        constexpr bool kFindAnew = requires { walk.k_shift; };
        if constexpr (kTurns) Gemm::begin_turns(group);
        for (u32 index = walk.first; index < walk.count(); index += walk.step) {
            const auto corner = walk.corner(index);
            const u32 shift = (Config::kSwap ? corner.row : corner.column) % kScaleBlock;
            const auto begin = [&] {
                if constexpr (kLate) {
                    if constexpr (kFindAnew) {
                        if (index != walk.first)
                            last = typename Gemm::Walk(shared, m, n, k).corner(index - walk.step);
                    }
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
                bool landed = false;
                const auto one = [&](auto before) { block(shared, sum, pipe, landed, group, at, shift, lane, before); };
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
                    Fp8Runs<Config, Scaling>::template run<count.value>(shared, sum[0], pipe, group, at, shift, lane,
                                                                        before, after);
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
                output.postpone(pipe);
                if constexpr (!kFindAnew) last = corner;
                if constexpr (!kLate) {
                    output.finish(shared, sum, d_map, corner, group, warp, lane);
                    output.settle(shared, lane);
                }
            } else {
                Gemm::Epilogue::store_by_tma(shared, sum, d_map, result_of(corner, c, m, n), corner, at, group, warp, lane, m, n);
            }
        }
        if constexpr (kLate) {
            if constexpr (kFindAnew) {
                const u32 tiles = walk.count();
                if (walk.first < tiles) last = walk.corner(tiles - 1 - (tiles - 1 - walk.first) % walk.step);
            }
            if (walk.first < walk.count()) output.finish(shared, sum, d_map, last, group, warp, lane);
        }
        if constexpr (kTurns) Gemm::end_turns(group);
        tma_store_wait_read<0>();
    }
};
