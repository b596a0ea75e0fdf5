// D[M, N] = A[M, K] B[N, K]^T (+ C): A in FP8 (e4m3) scaled per row and 128 of K, B in FP4 (e2m1) scaled per row and 32
// or 128 of K. Hopper.
//
// B stays packed until it is in shared memory, where a warpgroup decodes it to FP8 (common/fp4_feed.cuh). From there on
// this is the FP8 GEMM (sm90_fp8_gemm_1d2d.cuh), with its tiles, turns, promotion, epilogue and split of K, except that
// each row of B has a scale of its own. Where the scales within 128 of a row are not one scale times powers of two that
// fit an e4m3 number, the products over 32 of K are scaled one by one.
//
// "Rows" and "columns" are wgmma's; M and N those of D.
#pragma once
#include "common/barrier.cuh"
#include "common/fp4_feed.cuh"
#include "common/fp4_late_loop.cuh"
#include "common/fp4_layout.cuh"
#include "common/fp4_pair_feed.cuh"
#include "common/gemm_epilogue.cuh"
#include "common/gemm_walk.cuh"
#include "common/kernel_start.cuh"
#include "common/tma.cuh"
#include "common/wgmma.cuh"

template <class Config>
struct Sm90Fp8Fp4Gemm {
    using Layout = Fp4Layout<Config>;
    using Shared = Fp4SharedMemory<Config>;
    using Feed = typename Fp4FeedOf<Config>::type;
    using Walk = typename Feed::Walk;
    using Epilogue = GemmEpilogue<Config, ScaledFp8<Config>, Shared>;
    using Pipeline = ::Pipeline<Config::kStages>;
    using Raw = typename Config::Scales::Raw;
    using Out = typename Config::Out;
    static constexpr u32 kGroups = Config::kMathGroups, kWaves = Config::kWaves, kColumns = Config::kColumns;
    static constexpr u32 kSplitK = Config::kSplitK, kStageBlocks = Config::kStageBlocks, kShares = Layout::kShares;
    static constexpr u32 kMathThreads = kGroups * 128;
    static constexpr u32 kAccumulators = kColumns / 2;
    static_assert(Config::kRows == kGroups * kWaves * 64, "a warpgroup computes 64 rows a wave");
    static_assert(Config::kClusterColumns == 1 && (kShares == 1 || Layout::kPairs), "only fp4_pair_feed.cuh shares");
    static_assert(!Config::kSwap, "sm90_fp8_fp4_gemm_swapped.cuh is for that");

    // A's scales of the thread's two rows. Read before products are issued: reads behind these wait for theirs.
    static __device__ __forceinline__ float2 row_scales(const Shared& shared, u32 block, u32 row) {
        const float* const a = shared.scales_a(block);
        return {a[row], a[row + 8]};
    }

    // sum += scales x product. Without kScalesB, B's are left for the tile's end.
    template <bool kScalesB>
    static __device__ __forceinline__ void promote(const Shared& shared, float (&sum)[kAccumulators],
                                                   const float (&product)[kAccumulators], u32 block, u32 set,
                                                   float2 rows, u32 column) {
        const float* const b = shared.scales_b(block) + set * Layout::kTileN;
#pragma unroll
        for (u32 j = 0; j < kColumns / 8; ++j) {
            float2 scale{1, 1};
            if constexpr (kScalesB) scale = *reinterpret_cast<const float2*>(b + 8 * j + column);
            sum[4 * j + 0] += rows.x * scale.x * product[4 * j + 0];
            sum[4 * j + 1] += rows.x * scale.y * product[4 * j + 1];
            sum[4 * j + 2] += rows.y * scale.x * product[4 * j + 2];
            sum[4 * j + 3] += rows.y * scale.y * product[4 * j + 3];
        }
    }

    // sum *= B's scales, which are the same in all of the tile's K.
    static __device__ __forceinline__ void scale_by_b(const Shared& shared, float (&sum)[kAccumulators], u32 block,
                                                      u32 column) {
        const float* const b = shared.scales_b(block);
#pragma unroll
        for (u32 j = 0; j < kColumns / 8; ++j) {
            const float2 scale = *reinterpret_cast<const float2*>(b + 8 * j + column);
            sum[4 * j + 0] *= scale.x, sum[4 * j + 1] *= scale.y, sum[4 * j + 2] *= scale.x, sum[4 * j + 3] *= scale.y;
        }
    }

    static __device__ __forceinline__ void release(const Shared& shared, u32 stage, u32 lane) {
        arrive_warp<kShares>(shared.empty(stage), lane);
    }

    // Two warpgroups take turns to issue their products.
    static constexpr u32 kTurnBarrier = 4;

    static __device__ __forceinline__ void wait_turn(u32 group) {
        if constexpr (kGroups == 2) named_barrier_sync(kTurnBarrier + group, kMathThreads);
    }

    static __device__ __forceinline__ void pass_turn(u32 group) {
        if constexpr (kGroups == 2) named_barrier_arrive(kTurnBarrier + (group ^ 1), kMathThreads);
    }

    // What the scales of all rows of B have in common in these blocks of K.
    static __device__ __forceinline__ u32 common(const Shared& shared, u32 block, u32 count) {
        if constexpr (Layout::Scales::kSets == 1) return kCommonToBlock;
        u32 all = kCommonToTile;
        for (u32 j = 0; j < count; ++j) {
#pragma unroll
            for (u32 i = 0; i < Layout::kRowTasks; ++i) all &= shared.common(block + j)[i];
        }
        return all;
    }

    // kCount blocks of K, `block` the first: all products are under way before the first is waited for.
    template <u32 kCount, bool kScalesB = true>
    static __device__ __forceinline__ void step(const Shared& shared, float (&sum)[kAccumulators], u32 block, u32 group,
                                                u32 row, Fragment at) {
        float product[kCount][kAccumulators];
        float2 rows[kCount];
#pragma unroll
        for (u32 j = 0; j < kCount; ++j) rows[j] = row_scales(shared, block + j, row + at.row);
        wait_turn(group);
#pragma unroll
        for (u32 j = 0; j < kCount; ++j) wgmma_pin(product[j]);
        wgmma_fence();
#pragma unroll
        for (u32 j = 0; j < kCount; ++j) {
            const u64 tokens = wgmma_descriptor(shared_address(shared.tokens(block + j) + row * kBlockK));
            const u64 weights = wgmma_descriptor(shared_address(shared.weights(block + j)));
#pragma unroll
            for (u32 i = 0; i < kBlockK / 32; ++i)
                WgmmaE4m3<kColumns>::run(product[j], tokens + 2 * i, weights + 2 * i, i > 0);
            wgmma_commit();
        }
        pass_turn(group);
        unrolled<kCount>([&](auto j) {
            wgmma_wait<kCount - 1 - j.value>();
            wgmma_pin(product[j.value]);
            promote<kScalesB>(shared, sum, product[j.value], block + j.value, 0, rows[j.value], at.column);
        });
    }

    // One block of K, 32 of it at a time, each with its scales.
    static __device__ __forceinline__ void step_by_32(const Shared& shared, float (&sum)[kAccumulators], u32 block,
                                                      u32 group, u32 row, Fragment at) {
        const u64 tokens = wgmma_descriptor(shared_address(shared.tokens(block) + row * kBlockK));
        const u64 weights = wgmma_descriptor(shared_address(shared.weights(block)));
        const float2 rows = row_scales(shared, block, row + at.row);
        wait_turn(group);
        pass_turn(group);
#pragma unroll 1
        for (u32 i = 0; i < kBlockK / 32; ++i) {
            float product[kAccumulators];
            wgmma_pin(product);
            wgmma_fence();
            WgmmaE4m3<kColumns>::run(product, tokens + 2 * i, weights + 2 * i, false);
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_pin(product);
            promote<true>(shared, sum, product, block, i, rows, at.column);
        }
    }

    static __device__ __forceinline__ void compute(const Shared& shared, const TensorMap& d_map, const Out* c, Out* d,
                                                   u32 m, u32 n, u32 k) {
        // The group by a vote, so that the compiler knows it to be the same for all of a warp.
        const u32 group = kGroups == 1 ? 0 : __any_sync(0xffffffff, threadIdx.x >= 128) ? 1 : 0;
        const u32 thread = threadIdx.x, warp = thread / 32 % 4, lane = thread % 32;
        const Fragment at{warp * 16 + lane / 4, lane % 4 * 2};
        Walk walk(shared, m, n, k);
        Pipeline pipe;
        u32 tile_phase = 0;
        if (group == 1) pass_turn(group);
        for (u32 index = walk.first; index < walk.count(); index += walk.step, tile_phase ^= 1) {
            const Tile corner = walk.corner(index);
            float sum[kWaves][kAccumulators];
#pragma unroll
            for (u32 w = 0; w < kWaves; ++w) {
#pragma unroll
                for (u32 i = 0; i < kAccumulators; ++i) sum[w][i] = 0;
            }
            u32 done = 0;  // blocks of K
            if constexpr (Layout::kPairs) {
                shared.full(pipe.stage).wait(pipe.phase);
                if (common(shared, pipe.stage, 1) == kCommonToTile) {
                    Fp4LateLoop<Sm90Fp8Fp4Gemm>::run(
                        shared, sum, pipe, wgmma_tile(shared_address(shared.base)), walk.k_blocks, group, at, lane);
                    done = walk.k_blocks;
                }
            }
            // Whether B's scales are left for the tile's end; if so, in all of its K.
            bool late = Config::kTileScales && !Layout::kPairs;
#pragma unroll 1  // the code is cold at launch: what is not there need not be fetched
            for (u32 i = done; i < walk.k_blocks; i += kStageBlocks, pipe.advance()) {
                const u32 first = pipe.stage * kStageBlocks, count = min(kStageBlocks, walk.k_blocks - i);
                shared.full(pipe.stage).wait(pipe.phase);
                u32 all = kCommonToTile;
                if (i == 0 || !late) all = common(shared, first, count);
                late = late && all == kCommonToTile;
#pragma unroll
                for (u32 w = 0; w < kWaves; ++w) {
                    const u32 row = (w * kGroups + group) * 64;
                    if (late && (kStageBlocks == 1 || count == kStageBlocks)) {
                        step<kStageBlocks, false>(shared, sum[w], first, group, row, at);
                    } else if (!late && all && (kStageBlocks == 1 || count == kStageBlocks)) {
                        step<kStageBlocks>(shared, sum[w], first, group, row, at);
                    } else {
#pragma unroll 1
                        for (u32 j = 0; j < count; ++j) {
                            if (late) {
                                step<1, false>(shared, sum[w], first + j, group, row, at);
                            } else if (Layout::Scales::kSets == 1) {
                                step<1>(shared, sum[w], first + j, group, row, at);
                            } else {  // rows with one scale have it four times
                                step_by_32(shared, sum[w], first + j, group, row, at);
                            }
                        }
                    }
                    if (late && i + count == walk.k_blocks)
                        scale_by_b(shared, sum[w], first + count - 1, at.column);
                }
                release(shared, pipe.stage, lane);
            }
            if constexpr (Layout::kStoreByTma) {
                Epilogue::store_by_tma(shared, sum, d_map, c, corner, at, group, warp, lane, m, n, walk.rows(d));
            } else {
                Epilogue::store_by_split(shared, sum, c, d, corner, at, group, thread, kSplitK > 1 ? walk.rank : 0,
                                         tile_phase, m, n, walk.rows(d));
            }
        }
        if (group == 0) wait_turn(group);  // the turn that nobody took
        if constexpr (Layout::kStoreByTma) tma_store_wait_read<0>();
    }

    // `prepare` is done by all threads before any begins its role, with what the kernels before this one have written.
    template <class Prepare = Nothing>
    static __device__ __forceinline__ void run(const TensorMap& weights_map, const TensorMap& tokens_map,
                                               const TensorMap& d_map, const float* scales_a, const Raw* scales_b,
                                               const Out* c, Out* d, u32 m, u32 n, u32 k, u32 row_scales,
                                               Prepare prepare = {}) {
        extern __shared__ __align__(1024) u8 shared_memory[];
        const Shared shared{shared_memory};
        const u32 warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
        constexpr u32 kMathWarps = kGroups * 4;
        constexpr bool kInCluster = kShares * kSplitK > 1;

        const auto init = [&](u32 lane) {
            if (lane < Config::kStages) {
                shared.full(lane).init(1 + Layout::kWarps * kWarpArrivals);  // the expected bytes, and each decoding warp
                shared.empty(lane).init(kMathWarps * kShares * kWarpArrivals);
            }
            if (lane < Config::kPackedStages) {
#pragma unroll
                for (u32 w = 0; w < Layout::kWarps; ++w) shared.packed_full(w, lane).init(1);
            }
            if (lane == 0) {
                if constexpr (kSplitK > 1) {
                    shared.partials_ready().init(kSplitK * Epilogue::kSplitArrivals);
                    shared.partials_read().init(kSplitK * Epilogue::kSplitArrivals);
                }
                tma_prefetch_descriptor(weights_map);
                tma_prefetch_descriptor(tokens_map);
                if constexpr (Layout::kStoreByTma) tma_prefetch_descriptor(d_map);
            }
        };
        start_kernel<kInCluster>(warp, kMathWarps, init, [&] { prepare(shared); });

        // Three warpgroups start with 168 registers a thread, four with 128, enough for small tiles.
        // 3 x 168 = 72 + 2 x 216, 4 x 128 = 2 x 48 + 2 x 208.
        constexpr bool kTwoFeed = Config::kFeedGroups == 2;
        constexpr bool kMovesRegisters = kGroups == 2 && kAccumulators * (Config::kWaves + Config::kStageBlocks) > 64;
        if (warp >= kMathWarps) {
            if constexpr (kMovesRegisters) registers_decrease<(kTwoFeed ? 48 : 72)>();
            const u32 thread = threadIdx.x - kMathWarps * 32;
            const Feed feed{shared,     Walk(shared, m, n, k), scales_a,          scales_b,   m, n,
                            row_scales, thread,                warp - kMathWarps, thread % 32};
            feed.run(weights_map, tokens_map);
            // They are done with the last tile while it is still multiplied and stored.
            Walk::template fill_up<Layout::kWarps>(shared, d, m, n, warp - kMathWarps);
        } else {
            if constexpr (kMovesRegisters) registers_increase<(kTwoFeed ? 208 : 216)>();
            compute(shared, d_map, c, d, m, n, k);
        }
        // Peers may still read from this CTA's shared memory, and arrive on its barriers.
        if constexpr (kInCluster) cluster_sync();
    }
};

template <class Config>
__global__ void __launch_bounds__(Fp4Layout<Config>::kThreads, 1)
    sm90_fp8_fp4_gemm(const __grid_constant__ TensorMap weights_map, const __grid_constant__ TensorMap tokens_map,
                      const __grid_constant__ TensorMap d_map, const float* scales_a,
                      const typename Config::Scales::Raw* scales_b, const typename Config::Out* c,
                      typename Config::Out* d, u32 m, u32 n, u32 k, u32 row_scales) {
    Sm90Fp8Fp4Gemm<Config>::run(weights_map, tokens_map, d_map, scales_a, scales_b, c, d, m, n, k, row_scales);
}
