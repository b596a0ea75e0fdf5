// The math warpgroups' way through a tile all of whose scales of B are left for its end: what the FP8 GEMM does where each
// row of A has a scale and B has none. No turns.
#pragma once
#include "common/barrier.cuh"
#include "common/gemm_epilogue.cuh"
#include "common/gemm_layout.cuh"
#include "common/wgmma.cuh"

template <class Gemm>
struct Fp4LateLoop {
    using Layout = typename Gemm::Layout;
    using Shared = typename Gemm::Shared;
    static constexpr u32 kWaves = Gemm::kWaves, kAccumulators = Gemm::kAccumulators;
    static_assert(Gemm::kStageBlocks == 1, "a stage is a block of K");

    static __device__ __forceinline__ void issue(float (&product)[kAccumulators], u32 tiles, u32 row) {
        wgmma_pin(product);
        wgmma_fence();
#pragma unroll
        for (u32 i = 0; i < kBlockK / 32; ++i) {
            WgmmaE4m3<Gemm::kColumns>::run(product, wgmma_tile_descriptor(tiles + row * (kBlockK / 16) + 2 * i),
                                           wgmma_tile_descriptor(tiles + Layout::kRowsBytes / 16 + 2 * i), i > 0);
        }
        wgmma_commit();
    }

    // A block of K, whose stage is given back if `more` follow; `landed`: whether it is known to be there.
    static __device__ __forceinline__ void block(const Shared& shared, float (&sum)[kWaves][kAccumulators],
                                                 typename Gemm::Pipeline pipe, u32 tiles, u32 group, Fragment at, u32 lane,
                                                 bool& landed, bool more) {
        if (!landed) shared.full(pipe.stage).wait(pipe.phase);
#pragma unroll
        for (u32 w = 0; w < kWaves; ++w) {
            const u32 row = (w * Gemm::kGroups + group) * 64;
            float product[kAccumulators];
            issue(product, tiles, row);
            const float2 scales = Gemm::row_scales(shared, pipe.stage, row + at.row);
            if (w == kWaves - 1) {
                typename Gemm::Pipeline next = pipe;
                next.advance();
                landed = more && shared.full(next.stage).passed(next.phase);
            }
            wgmma_wait<0>();
            wgmma_pin(product);
            if (w == kWaves - 1 && more) Gemm::release(shared, pipe.stage, lane);
#pragma unroll
            for (u32 i = 0; i < kAccumulators; ++i) sum[w][i] += (i % 4 < 2 ? scales.x : scales.y) * product[i];
        }
    }

    // All blocks of a tile, of which the first is there. `ring`: `wgmma_tile` of the ring's first tile.
    static __device__ __forceinline__ void run(const Shared& shared, float (&sum)[kWaves][kAccumulators],
                                               typename Gemm::Pipeline& pipe, u32 ring, u32 k_blocks, u32 group,
                                               Fragment at, u32 lane) {
        bool landed = true;
        u32 last, tiles = ring + pipe.stage * (Layout::kBlockBytes / 16);
#pragma unroll 1
        for (u32 left = k_blocks;; --left) {
            block(shared, sum, pipe, tiles, group, at, lane, landed, left > 1);
            last = pipe.stage;
            pipe.advance();
            tiles = pipe.stage == 0 ? ring : tiles + Layout::kBlockBytes / 16;
            if (left == 1) break;
        }
#pragma unroll
        for (u32 w = 0; w < kWaves; ++w) Gemm::scale_by_b(shared, sum[w], last, at.column);
        Gemm::release(shared, last, lane);
    }
};
