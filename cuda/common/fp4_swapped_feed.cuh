// The warps that feed a GEMM whose FP4 weights stay packed in shared memory: one asks TMA for the tiles, the others write the
// scales of 64 rows of weights each, and the tokens'.
#pragma once
#include "common/fp4_swapped_layout.cuh"
#include "common/gemm_walk.cuh"
#include "common/tma.cuh"

template <class Config>
struct Fp4SwappedFeed {
    using Layout = Fp4SwappedLayout<Config>;
    using Shared = Fp4SwappedMemory<Config>;
    using Walk = GemmWalk<Config, Layout::kUnitK>;
    using Pipeline = ::Pipeline<Config::kStages>;
    using Raw = typename Config::Scales::Raw;
    using Rows = RowFold<typename Config::Scales>;
    static constexpr u32 kUnits = Rows::kUnits, kUnitBlocks = Layout::kUnitBlocks;
    static constexpr u32 kThreads = Layout::kRowGroups * 32;

    // Of a row's unit. Rows begin at multiples of 16 bytes, and where a block is 4 bytes, they are padded to that.
    struct alignas(sizeof(Raw) == 4 ? 8 : 16) RawUnit {
        Raw blocks[kUnitBlocks];
    };

    const Shared& shared;
    const Walk walk;
    u32 m, n, blocks;  // of all of K

    __device__ __forceinline__ u32 blocks_of(u32 unit) const {
        return min(kUnitBlocks, blocks - (walk.k_begin + unit) * kUnitBlocks);
    }

    // Run by one thread.
    __device__ __forceinline__ void load_tiles(const TensorMap& weights_map, const TensorMap& tokens_map) const {
        const u64 policy = l2_evict_first();
        Pipeline pipe;
        for (u32 index = walk.first; index < walk.order.count(); index += walk.step) {
            const Tile corner = walk.corner(index);
#pragma unroll 1
            for (u32 i = 0; i < walk.k_blocks; ++i, pipe.advance()) {
                const u32 count = blocks_of(i), at_k = (walk.k_begin + i) * Layout::kUnitK;
                shared.empty(pipe.stage).wait(pipe.phase ^ 1);
                Barrier& full = shared.full(pipe.stage);
                full.arrive_expect_bytes(Layout::kWeightsBytes + count * Layout::kTokensBytes);
                if constexpr (Config::kReadBOnce) {
                    tma_load_2d(shared.weights(pipe.stage), weights_map, full, at_k / 2, corner.row, policy);
                } else {
                    tma_load_2d(shared.weights(pipe.stage), weights_map, full, at_k / 2, corner.row);
                }
#pragma unroll 1
                for (u32 j = 0; j < count; ++j)
                    tma_load_2d(shared.tokens(pipe.stage, j), tokens_map, full, at_k + j * kBlockK, corner.column);
            }
        }
    }

    // A lane's two rows of 64, some units ahead.
    struct Ahead {
        RawUnit units[kUnits][2];
    };

    // `rows`: the lane's first row.
    __device__ __forceinline__ void read(Ahead& ahead, const Raw* scales, u32 row_scales, u32 row, u32 unit) const {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const Raw* const from = scales + static_cast<u64>(min(row + 32 * half, n - 1)) * row_scales +
                                    (walk.k_begin + unit) * kUnitBlocks;
#pragma unroll
            for (u32 u = 0; u < kUnits; ++u) {
                if (unit + u >= walk.k_blocks) continue;
                if constexpr (sizeof(Raw) == 4) {
                    ahead.units[u][half] = *reinterpret_cast<const RawUnit*>(from + u * kUnitBlocks);
                } else {
                    ahead.units[u][half].blocks[0] = from[u * kUnitBlocks];
                    if (blocks_of(unit + u) > 1) ahead.units[u][half].blocks[1] = from[u * kUnitBlocks + 1];
                }
            }
        }
    }

    __device__ __forceinline__ void write_unit(const float* scales_a, const RawUnit (&rows)[2], u32 stage, u32 phase,
                                               u32 unit, u32 m0, u32 group, u32 lane) const {
        const u32 items = blocks_of(unit) * Config::kColumns;
        scales_a += static_cast<u64>(walk.k_begin + unit) * kUnitBlocks * m + m0;
        Barrier& full = shared.full(stage);
        shared.empty(stage).wait(phase ^ 1);
#pragma unroll 1
        for (u32 i = group * 32 + lane; i < items; i += kThreads) {
            const u32 j = i / Config::kColumns, column = i % Config::kColumns;
            if (m0 + column < m)
                async_copy_4_bytes(shared.token_scales(stage, j) + column, scales_a + j * m + column);
        }
        full.arrive_after_async_copies();
#pragma unroll
        for (u32 j = 0; j < kUnitBlocks; ++j) {
            const typename Rows::Row first(rows[0].blocks[j]), second(rows[1].blocks[j]);
            const bool together = __all_sync(0xffffffff, first.fits && second.fits);
            typename Layout::Fold* const to = shared.folds(stage, j) + group * 64 + lane;
            to[0] = together ? first.together() : first.apart();
            to[32] = together ? second.together() : second.apart();
            if (lane == 0) shared.together(stage, j)[group] = together;
        }
        __syncwarp();
        if (lane == 0) full.arrive();
    }

    // Run by the warp of the rows `group`.
    __device__ __forceinline__ void write_scales(const float* scales_a, const Raw* scales_b, u32 row_scales, u32 group,
                                                 u32 lane) const {
        const u32 of_tile = group * 64 + lane;
        Pipeline pipe;
        Ahead ahead, now;
        if (walk.first < walk.order.count())
            read(ahead, scales_b, row_scales, walk.corner(walk.first).row + of_tile, 0);
        for (u32 index = walk.first; index < walk.order.count(); index += walk.step) {
            const u32 m0 = walk.corner(index).column;
#pragma unroll 1
            for (u32 i = 0; i < walk.k_blocks; i += kUnits) {
                now = ahead;
                const bool last = i + kUnits >= walk.k_blocks;
                const u32 next = last ? index + walk.step : index;
                if (next < walk.order.count())
                    read(ahead, scales_b, row_scales, walk.corner(next).row + of_tile, last ? 0 : i + kUnits);
                const u32 end = min(i + kUnits, walk.k_blocks);
#pragma unroll 1  // the code is cold at launch
                for (u32 unit = i; unit < end; ++unit, pipe.advance()) {
                    write_unit(scales_a, now.units[0], pipe.stage, pipe.phase, unit, m0, group, lane);
#pragma unroll
                    for (u32 u = 1; u < kUnits; ++u)
                        now.units[u - 1][0] = now.units[u][0], now.units[u - 1][1] = now.units[u][1];
                }
            }
        }
        async_copy_wait_all();
    }
};
