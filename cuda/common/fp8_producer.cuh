// What feeds the FP8 GEMM kernels' ring of stages: a warp that loads tiles by TMA, and one that copies their scales.
#pragma once
#include "common/barrier.cuh"
#include "common/gemm_layout.cuh"
#include "common/gemm_walk.cuh"
#include "common/result_boxes.cuh"
#include "common/tma.cuh"

// `Scaling` as in fp8_gemm.cuh.
template <class Config, class Scaling>
struct Fp8Producer {
    using Operands = typename Scaling::Operands;
    using Layout = SharedLayout<Config, Operands>;
    using Shared = SharedMemory<Config, Operands>;
    using Walk = typename WalkOf<Config>::type;
    using Pipeline = ::Pipeline<Config::kStages>;
    static constexpr u32 kStageBlocks = Config::kStageBlocks;
    static constexpr bool kSomeColumns = Walk::kColumnBox < Config::kColumns;  // only those that somebody needs
    // Where tiles end inside and others store them, the math warps need not know where a tile is, but for this.
    static constexpr bool kTells = Walk::kEndsInside && Layout::kStoreWarp;
    static constexpr u32 kBoxBytes = Walk::kColumnBox * kBlockK;

    // Loads one operand's tile; with kShare > 1 each CTA of the cluster fetches its share for all of them.
    template <u32 kExtent, u32 kShare, bool kOnce>
    static __device__ __forceinline__ void load_tile(u8* to, const TensorMap& map, Barrier& full, u32 k, u32 at,
                                                     u32 rank, u64 policy) {
        if constexpr (kShare > 1) {
            constexpr u32 kPart = kExtent / kShare;
            tma_load_2d_multicast(to + rank * kPart * kBlockK, map, full, k, at + rank * kPart, (1u << kShare) - 1);
        } else if constexpr (kOnce) {
            tma_load_2d(to, map, full, k, at, policy);
        } else {
            tma_load_2d(to, map, full, k, at);
        }
    }

    // Run by a warp, of which one lane does what is to be done once.
    static __device__ __forceinline__ void load_tiles(const Shared& shared, const TensorMap& rows_map,
                                                         const TensorMap& columns_map, const TensorMap& c_map, u32 m,
                                                         u32 n, u32 k) {
        constexpr bool kRowsOnce = Config::kBLeavesFirst && Config::kSwap;
        constexpr bool kColumnsOnce = Config::kBLeavesFirst && !Config::kSwap;
        const u64 policy = l2_evict_first();
        const bool elected = elect_one();
        Walk walk(shared, m, n, k);
        Pipeline pipe;
        for (u32 index = walk.first; index < walk.count(); index += walk.step) {
            const auto corner = walk.corner(index);
#pragma unroll 1  // unrolled it would not fit the producer's registers
            for (u32 i = 0; i < walk.k_blocks; i += kStageBlocks, pipe.advance()) {
                const u32 count = min(kStageBlocks, walk.k_blocks - i), first = pipe.stage * kStageBlocks;
                shared.empty(pipe.stage).wait(pipe.phase ^ 1);
                Barrier& full = shared.full(pipe.stage);
                if (!elected) continue;
                if constexpr (kTells) {
                    if (i == 0)
                        shared.note(pipe.stage) = {static_cast<u16>(walk.rows_from(corner.row)),
                                                   static_cast<u16>(corner.column % kScaleBlock)};
                }
                u32 boxes = Config::kColumns / Walk::kColumnBox;
                if constexpr (kSomeColumns) boxes = walk.column_boxes(corner.column);
                full.arrive_expect_bytes(count * (kSomeColumns ? Layout::kRowsBytes + boxes * kBoxBytes : Layout::kBlockBytes));
#pragma unroll 1
                for (u32 j = 0; j < count; ++j) {
                    const u32 at_k = (walk.k_begin + i + j) * kBlockK;
                    load_tile<Config::kRows, Config::kClusterColumns, kRowsOnce>(
                        shared.rows(first + j), rows_map, full, at_k, walk.rows_at(corner.row, n), walk.rank,
                        policy);
                    if constexpr (kSomeColumns) {
                        for (u32 box = 0; box < boxes; ++box)
                            tma_load_2d(shared.columns(first + j) + box * kBoxBytes, columns_map, full, at_k,
                                        corner.column + box * Walk::kColumnBox);
                    } else {
                        load_tile<Config::kColumns, Config::kClusterRows, kColumnsOnce>(
                            shared.columns(first + j), columns_map, full, at_k, walk.columns_at(corner.column, n), walk.rank,
                            policy);
                    }
                }
            }
#pragma unroll 1
            for (u32 i = 0; i < Layout::kOutStages; ++i, pipe.advance()) {
                const u32 box = i * Layout::kOutBoxesPerStage;
                const u32 count = Config::kHasC && !Layout::kAddsInL2 ? min(Layout::kOutBoxesPerStage, Layout::kOutBoxes - box) : 0;
                shared.empty(pipe.stage).wait(pipe.phase ^ 1);
                Barrier& full = shared.full(pipe.stage);
                if (!elected) continue;
                full.arrive_expect_bytes(count * Layout::kRowsBytes);
#pragma unroll 1
                for (u32 j = 0; j < count; ++j) {
                    load_result_box(corner, shared.out_box(pipe.stage, j), c_map, full,
                                    corner.column + (box + j) * Layout::kOutBoxColumns, corner.row, policy);
                }
            }
        }
    }

    // Run by a warp of its own, so that the tiles need not wait for its address arithmetic. By cp.async: the scales of a
    // tile begin at any multiple of 4 bytes, where TMA wants 16.
    static __device__ __forceinline__ void load_scales(const Shared& shared, const float* scales_a,
                                                          const float* scales_b, u32 m, u32 n, u32 k) {
        Walk walk(shared, m, n, k);
        const u32 lane = threadIdx.x % 32;
        Pipeline pipe;
        for (u32 index = walk.first; index < walk.count(); index += walk.step) {
            const auto corner = walk.corner(index);
            const u32 m0 = Config::kSwap ? corner.column : corner.row, n0 = Config::kSwap ? corner.row : corner.column;
            typename Scaling::Source source(scales_a, walk.scales_of_b(scales_b, n, k), m0, n0, m, n, k, walk.k_begin,
                                            lane);
#pragma unroll 1
            for (u32 i = 0; i < walk.k_blocks; i += kStageBlocks, pipe.advance()) {
                const u32 count = min(kStageBlocks, walk.k_blocks - i), first = pipe.stage * kStageBlocks;
                shared.empty(pipe.stage).wait(pipe.phase ^ 1);
#pragma unroll 1
                for (u32 j = 0; j < count; ++j) source.copy_next(shared.scales_a(first + j));
                shared.scales_full(pipe.stage).arrive_after_async_copies();
            }
#pragma unroll 1
            for (u32 i = 0; i < Layout::kOutStages; ++i, pipe.advance()) {  // they have none
                shared.empty(pipe.stage).wait(pipe.phase ^ 1);
                shared.scales_full(pipe.stage).arrive();
            }
        }
        async_copy_wait_all();
    }
};
