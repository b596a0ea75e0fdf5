// D[M, N] = A[M, K] B[N, K]^T (+ C) in BF16 with FP32 accumulators, each operand in either major order. Hopper.
//
// wgmma fixes 64 rows; its columns are any multiple of 8. With few tokens the weights take the rows (kSwap: the tile is
// computed transposed) and the tokens the columns. Below, "rows" and "columns" are wgmma's; M and N those of D.
//
// An operand whose K is contiguous is loaded in rows of 64 elements of K. One whose M or N is contiguous (kMnRows,
// kMnColumns) is loaded as it lies in memory, in slabs of 64 elements of M or N by 64 of K, and wgmma reads it across.
//
// One producer warp fills a ring of stages of kStageBlocks x 64 of K by TMA; kMathGroups warpgroups multiply; with
// kStoreWarp another warp stores what they have staged. CTAs of a cluster either share one operand's tile by multicast
// (kClusterRows or kClusterColumns > 1) or split K among them (kSplitK > 1).
#pragma once
#include "common/barrier.cuh"
#include "common/gemm_epilogue.cuh"
#include "common/gemm_layout.cuh"
#include "common/gemm_walk.cuh"
#include "common/kernel_start.cuh"
#include "common/store_warp.cuh"
#include "common/tma.cuh"
#include "common/wgmma.cuh"

template <class Config>
struct Sm90Bf16Gemm {
    using Operands = PlainBf16<Config>;
    using Layout = SharedLayout<Config, Operands>;
    using Shared = SharedMemory<Config, Operands>;
    using Walk = typename WalkOf<Config, Operands::kBlockK>::type;
    using Epilogue = GemmEpilogue<Config, Operands>;
    using Stores = StoreWarp<Epilogue>;
    using Pipeline = ::Pipeline<Config::kStages>;
    using Out = typename Config::Out;
    static constexpr u32 kGroups = Config::kMathGroups, kWaves = Config::kWaves, kColumns = Config::kColumns;
    static constexpr u32 kCluster = Config::kClusterRows * Config::kClusterColumns;
    static constexpr u32 kSplitK = Config::kSplitK, kStageBlocks = Config::kStageBlocks;
    static constexpr u32 kAccumulators = kColumns / 2;
    static constexpr u32 kBlock = Operands::kBlockK, kSlab = 64, kSlabBytes = kBlock * kRowBytes;
    static constexpr bool kKGrouped = requires(Walk walk) { walk.last_rows; };
    static_assert(Config::kRows == kGroups * kWaves * 64, "a warpgroup computes 64 rows a wave");
    static_assert(Config::kClusterRows == 1 || Config::kClusterColumns == 1, "a cluster shares one operand");
    static_assert(kCluster == 1 || kSplitK == 1, "a cluster shares operands or splits K, not both");
    static_assert(Config::kRowsLoaded == Config::kRows || kCluster == 1, "shared tiles are loaded whole");

    // ---- producer -------------------------------------------------------------------------------------------------

    template <u32 kShare, bool kOnce>
    static __device__ __forceinline__ void load_box(u8* to, const TensorMap& map, Barrier& full, u32 x, u32 y,
                                                    u64 policy) {
        if constexpr (kShare > 1) {
            tma_load_2d_multicast(to, map, full, x, y, (1u << kShare) - 1);
        } else if constexpr (kOnce) {
            tma_load_2d(to, map, full, x, y, policy);
        } else {
            tma_load_2d(to, map, full, x, y);
        }
    }

    // Loads kTile rows of 128 bytes of one operand; with kShare > 1 each CTA of the cluster fetches its share of the rows
    // for all of them: of a slab, its share of K.
    // kStacked: slabs of matrix `group` of several, so that K ends where that one's does.
    template <bool kMn, u32 kTile, u32 kShare, bool kOnce, bool kStacked>
    static __device__ __forceinline__ void load_tile(u8* to, const TensorMap& map, Barrier& full, u32 k, u32 at,
                                                     u32 rank, u64 policy, u32 group) {
        const u32 part = kShare > 1 ? rank : 0;
        if constexpr (kMn) {
            constexpr u32 kRows = kBlock / kShare;
#pragma unroll
            for (u32 slab = 0; slab < kTile / kSlab; ++slab) {
                if constexpr (kStacked && kOnce) {
                    tma_load_3d(to + slab * kSlabBytes, map, full, at + slab * kSlab, k, group, policy);
                } else if constexpr (kStacked) {
                    tma_load_3d(to + slab * kSlabBytes, map, full, at + slab * kSlab, k, group);
                } else
                load_box<kShare, kOnce>(to + slab * kSlabBytes + part * kRows * kRowBytes, map, full,
                                        at + slab * kSlab, k + part * kRows, policy);
            }
        } else {
            constexpr u32 kRows = kTile / kShare;
            load_box<kShare, kOnce>(to + part * kRows * kRowBytes, map, full, k, at + part * kRows, policy);
        }
    }

    // Run by a warp, of which one lane does what is to be done once.
    static __device__ __forceinline__ void produce(const Shared& shared, const TensorMap& rows_map,
                                                   const TensorMap& columns_map, u32 m, u32 n, u32 k) {
        constexpr u32 kLoadedBytes =
            Layout::kBlockBytes - (Config::kRows - Config::kRowsLoaded) * kRowBytes;  // kMnRows: all are loaded
        constexpr bool kRowsOnce = Config::kBLeavesFirst && Config::kSwap;
        constexpr bool kColumnsOnce = Config::kBLeavesFirst && !Config::kSwap;
        constexpr bool kStackedRows = Walk::kStacked && Config::kMnRows && Config::kSwap;
        constexpr bool kStackedColumns = Walk::kStacked && Config::kMnColumns && !Config::kSwap;
        const u64 policy = l2_evict_first();
        const bool elected = elect_one();
        Walk walk(shared, m, n, k);
        Pipeline pipe, landing;
        u32 tile_phase = 0;
        for (u32 index = walk.first; index < walk.count(); index += walk.step, tile_phase ^= 1) {
            const Tile corner = walk.corner(index);
            // Partial tiles lie in the ring until the whole cluster has read them.
            if (Operands::kPartialsInRing && index != walk.first) shared.partials_read().wait_cluster(tile_phase ^ 1);
#pragma unroll 1  // unrolled it would not fit the producer's registers
            for (u32 i = 0; i < walk.k_blocks; i += kStageBlocks, pipe.advance()) {
                const u32 count = min(kStageBlocks, walk.k_blocks - i), first = pipe.stage * kStageBlocks;
                shared.empty(pipe.stage).wait(pipe.phase ^ 1);
                Barrier& full = destination(shared, walk, i, pipe, landing);
                if (!elected) continue;
                full.arrive_expect_bytes(count * kLoadedBytes);
#pragma unroll 1
                for (u32 j = 0; j < count; ++j) {
                    u32 at_k = (walk.k_begin + i + j) * kBlock;
                    if constexpr (kKGrouped) at_k += walk.k_shift;
                    load_tile<Config::kMnRows, Operands::kRowsTile, Config::kClusterColumns, kRowsOnce,
                              kStackedRows>(shared.rows(first + j), rows_map, full, at_k,
                                            kStackedRows ? corner.row : walk.rows_at(corner.row, n), walk.rank, policy,
                                            walk.group);
                    load_tile<Config::kMnColumns, Operands::kColumnsTile, Config::kClusterRows, kColumnsOnce,
                              kStackedColumns>(
                        shared.columns(first + j), columns_map, full, at_k,
                        kStackedColumns ? corner.column : walk.columns_at(corner.column, n), walk.rank, policy,
                        walk.group);
                }
            }
        }
    }

    // Of block `i` of a tile: that of its stage, unless rows of it have to be cleared first.
    static __device__ __forceinline__ Barrier& destination(const Shared& shared, const Walk& walk, u32 i,
                                                           const Pipeline& pipe, Pipeline& landing) {
        if constexpr (kKGrouped) {
            if (i + 1 == walk.k_blocks && walk.last_rows < kBlock) {
                Barrier& landed = shared.landed(landing.stage);
                landing.advance();
                return landed;
            }
        }
        return shared.full(pipe.stage);
    }

    // Run by a warp of its own. A group's last block of K may go on into the next group: its rows there are cleared, of
    // both operands, since a neighbour's NaN times zero is NaN. To the math warps the block is as any other: its stage
    // is full when that is done. Such blocks land one after the other, each on the next of kStages barriers.
    static __device__ __forceinline__ void clear_rows(const Shared& shared, u32 m, u32 n, u32 k, u32 lane) {
        Walk walk(shared, m, n, k);
        Pipeline landing;
        u32 last = 0;  // the blocks before the tile
        for (u32 index = walk.first; index < walk.count(); index += walk.step) {
            walk.corner(index);
            last += walk.k_blocks;
            if (walk.last_rows == kBlock) continue;
            const u32 stage = (last - 1) % Config::kStages;
            u8* const block = shared.rows(stage);
            shared.landed(landing.stage).wait(landing.phase);
            landing.advance();
#pragma unroll 1
            for (u32 slab = 0; slab < Layout::kBlockBytes; slab += kSlabBytes) {
                for (u32 at = walk.last_rows * kRowBytes + lane * 16; at < kSlabBytes; at += 32 * 16)
                    *reinterpret_cast<uint4*>(block + slab + at) = make_uint4(0, 0, 0, 0);
            }
            fence_async_proxy();  // wgmma reads by it
            __syncwarp();
            if (lane == 0) shared.full(stage).arrive();
        }
    }

    // ---- math -----------------------------------------------------------------------------------------------------

    template <bool kMn>
    static __device__ __forceinline__ u64 descriptor(const u8* tile) {
        if constexpr (kMn) return wgmma_descriptor_mn<kSlabBytes>(shared_address(tile));
        return wgmma_descriptor(shared_address(tile));
    }

    // sum (+)= the product of 64 rows, from `row` of the tile, over one block of K.
    static __device__ __forceinline__ void multiply(float (&sum)[kAccumulators], const Shared& shared, u32 block,
                                                    u32 row, bool add) {
        constexpr u32 kStep = 16;  // of K in an instruction
        constexpr u32 kStepRows = (Config::kMnRows ? kStep * kRowBytes : kStep * 2) >> 4;
        constexpr u32 kStepColumns = (Config::kMnColumns ? kStep * kRowBytes : kStep * 2) >> 4;
        const u8* const rows = shared.rows(block) + row * kRowBytes;  // also in slabs: 64 rows of 128 bytes each
        const u64 a = descriptor<Config::kMnRows>(rows), b = descriptor<Config::kMnColumns>(shared.columns(block));
#pragma unroll
        for (u32 i = 0; i < kBlock / kStep; ++i) {
            WgmmaBf16<kColumns, Config::kMnRows, Config::kMnColumns>::run(sum, a + i * kStepRows, b + i * kStepColumns,
                                                                          add || i > 0);
        }
    }

    static __device__ __forceinline__ void release(const Shared& shared, u32 stage, u32 lane) {
        arrive_warp<kCluster>(shared.empty(stage), lane);
    }

    static __device__ __forceinline__ void compute(const Shared& shared, const TensorMap& d_map, const Out* c, Out* d,
                                                   u32 m, u32 n, u32 k) {
        const u32 thread = threadIdx.x, group = __shfl_sync(0xffffffff, thread / 128, 0);
        const u32 warp = thread / 32 % 4, lane = thread % 32;
        const Fragment at{warp * 16 + lane / 4, lane % 4 * 2};
        Walk walk(shared, m, n, k);
        Pipeline pipe;
        typename Stores::Turns turns;
        u32 tile_phase = 0;
        for (u32 index = walk.first; index < walk.count(); index += walk.step, tile_phase ^= 1) {
            const auto corner = walk.corner(index);
            float sum[kWaves][kAccumulators];
            u32 previous = 0;
            if constexpr (kSplitK > 1) {  // this CTA may have no K at all
#pragma unroll
                for (u32 w = 0; w < kWaves; ++w) {
#pragma unroll
                    for (u32 i = 0; i < kAccumulators; ++i) sum[w][i] = 0;
                }
            }
#pragma unroll 1  // the code is cold at launch: what is not there need not be fetched
            for (u32 i = 0; i < walk.k_blocks; i += kStageBlocks, pipe.advance()) {
                const u32 first = pipe.stage * kStageBlocks, count = min(kStageBlocks, walk.k_blocks - i);
                shared.full(pipe.stage).wait(pipe.phase);
#pragma unroll
                for (u32 w = 0; w < kWaves; ++w) wgmma_pin(sum[w]);
                wgmma_fence();
#pragma unroll
                for (u32 w = 0; w < kWaves; ++w) {
                    const u32 row = (w * kGroups + group) * 64;
                    if (kStageBlocks == 1 || count == kStageBlocks) {
#pragma unroll
                        for (u32 j = 0; j < kStageBlocks; ++j) multiply(sum[w], shared, first + j, row, i + j > 0);
                    } else {
#pragma unroll 1
                        for (u32 j = 0; j < count; ++j) multiply(sum[w], shared, first + j, row, i + j > 0);
                    }
                }
                wgmma_commit();
                if constexpr (Config::kEager) {
                    wgmma_wait<0>();
                    release(shared, pipe.stage, lane);
                } else {
                    // While these products are under way, those of the stage before have finished with it.
                    wgmma_wait<1>();
                    if (i > 0) release(shared, previous, lane);
                    previous = pipe.stage;
                }
            }
            wgmma_wait<0>();
#pragma unroll
            for (u32 w = 0; w < kWaves; ++w) wgmma_pin(sum[w]);
            if (!Config::kEager && (kSplitK == 1 || walk.k_blocks > 0)) release(shared, previous, lane);
            if constexpr (Layout::kStoreByTma) {
                Stores::put(shared, turns, sum, d_map, result_of(corner, c, m, n), corner, at, group, warp, lane, m, n,
                            walk.rows(d));
            } else {
                Epilogue::store_by_split(shared, sum, c, d, corner, at, group, thread, kSplitK > 1 ? walk.rank : 0,
                                         tile_phase, m, n, walk.rows(d));
            }
        }
        if constexpr (Layout::kStoreByTma && !Layout::kStoreWarp) tma_store_wait_read<0>();
    }

    // ---- kernel ---------------------------------------------------------------------------------------------------

    // `prepare` is done by all threads before any begins its role, with what the kernels before this one have written.
    template <class Prepare = Nothing>
    static __device__ __forceinline__ void run(const TensorMap& rows_map, const TensorMap& columns_map,
                                               const TensorMap& d_map, const Out* c, Out* d, u32 m, u32 n, u32 k,
                                               Prepare prepare = {}) {
        extern __shared__ __align__(1024) u8 shared_memory[];
        const Shared shared{shared_memory};
        const u32 warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
        constexpr u32 kMathWarps = kGroups * 4;
        constexpr bool kInCluster = kCluster * kSplitK > 1;

        const auto init = [&](u32 lane) {
            if (lane < Config::kStages) {
                shared.full(lane).init(1);
                shared.empty(lane).init(kMathWarps * kCluster * kWarpArrivals);
                if constexpr (kKGrouped) shared.landed(lane).init(1);
            }
            if constexpr (Layout::kStoreWarp) Stores::init(shared, lane);
            if (lane == 0) {
                if constexpr (kSplitK > 1) {
                    shared.partials_ready().init(kSplitK * Epilogue::kSplitArrivals);
                    shared.partials_read().init(kSplitK * Epilogue::kSplitArrivals);
                }
                tma_prefetch_descriptor(rows_map);
                tma_prefetch_descriptor(columns_map);
                if constexpr (Layout::kStoreByTma) tma_prefetch_descriptor(d_map);
            }
        };
        start_kernel<kInCluster>(warp, kMathWarps, init, [&] { prepare(shared); });

        // Three warpgroups start with 168 registers a thread: 3 x 168 = 40 + 2 x 232. Four with 128: 4 x 128 = 32 + 3 x
        // 160.
        if (warp >= kMathWarps) {
            if constexpr (kGroups > 1) registers_decrease<kGroups == 2 ? 40 : 32>();  // one has enough
            if (whole_warp(warp == kMathWarps)) produce(shared, rows_map, columns_map, m, n, k);
            if constexpr (kKGrouped) {
                if (warp == kMathWarps + 1) clear_rows(shared, m, n, k, threadIdx.x % 32);
            }
            Stores::template serve<Walk>(shared, d_map, d, m, n, k, warp, kMathWarps + 2);
        } else {
            if constexpr (kGroups > 1) registers_increase<kGroups == 2 ? 232 : 160>();
            compute(shared, d_map, c, d, m, n, k);
        }
        // Peers may still write to or read from this CTA's shared memory.
        if constexpr (kInCluster) cluster_sync();
    }
};

template <class Config>
__global__ void __launch_bounds__(Config::kMathGroups * 128 + 128, 1)
    sm90_bf16_gemm(const __grid_constant__ TensorMap rows_map, const __grid_constant__ TensorMap columns_map,
                   const __grid_constant__ TensorMap d_map, const typename Config::Out* c, typename Config::Out* d,
                   u32 m, u32 n, u32 k) {
    Sm90Bf16Gemm<Config>::run(rows_map, columns_map, d_map, c, d, m, n, k);
}
