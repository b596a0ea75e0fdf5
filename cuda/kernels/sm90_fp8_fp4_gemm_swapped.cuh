// D[M, N] = A[M, K] B[N, K]^T (+ C) for few tokens: A in FP8 (e4m3) scaled per row and 128 of K, B in FP4 (e2m1) scaled per
// row and 32 or 128 of K. Hopper.
//
// Weights take wgmma's 64 rows, tokens its columns. Weights stay packed in shared memory; a thread decodes its part of the
// rows' fragment into registers, from where wgmma takes it. Warpgroups work independently of each other: some on other rows
// of the tile, some (kKGroups) on other units of 256 of K, whose sums are added up at the tile's end.
//
// "Rows" and "columns" are wgmma's; M and N those of D.
#pragma once
#include "common/barrier.cuh"
#include "common/fp4_swapped_feed.cuh"
#include "common/fp4_swapped_layout.cuh"
#include "common/gemm_epilogue.cuh"
#include "common/gemm_walk.cuh"
#include "common/kernel_start.cuh"
#include "common/split_k.cuh"
#include "common/tma.cuh"
#include "common/wgmma_rs.cuh"

template <class Config>
struct Sm90Fp8Fp4GemmSwapped {
    using Layout = Fp4SwappedLayout<Config>;
    using Shared = Fp4SwappedMemory<Config>;
    using Feed = Fp4SwappedFeed<Config>;
    using Walk = typename Feed::Walk;
    using Fold = typename Layout::Fold;
    using Raw = typename Config::Scales::Raw;
    using Out = typename Config::Out;
    static constexpr bool kGroupsByLanes = Feed::kGroupsByLanes;
    static constexpr u32 kRowGroups = Layout::kRowGroups, kKGroups = Config::kKGroups, kColumns = Config::kColumns;
    static constexpr u32 kSplitK = Config::kSplitK, kStages = Config::kStages;
    static constexpr u32 kAccumulators = kColumns / 2;
    static constexpr u32 kMathThreads = Layout::kMathGroups * 128;
    // Registers are handed out to four warps at once.
    static constexpr u32 kRegisters = 65536 / align_up(Layout::kThreads, 128);
    static constexpr u32 kSplitRegisters = kSplitK > 1 && kColumns >= 32 ? 16 : 0;  // what a cluster asks for besides
    static constexpr bool kStraight = 2 * kAccumulators + 48 + kSplitRegisters <= kRegisters;
    static constexpr bool kPairs = 2 * kAccumulators + 80 + kSplitRegisters <= kRegisters;
    static constexpr bool kTwoProducts = 3 * kAccumulators + 80 <= kRegisters;
    static_assert(Config::kSwap && Config::kClusterRows * Config::kClusterColumns == 1);
    // Whoever is two rounds of the ring ahead of a barrier would take it for passed.
    static_assert(kStages % kKGroups == 0 && kStages % Layout::kScaleWarps == 0, "who take turns have stages of their own");

    struct TokenScales {
        float2 of[kColumns / 8];

        __device__ __forceinline__ explicit TokenScales(const float* from) {
#pragma unroll
            for (u32 j = 0; j < kColumns / 8; ++j) of[j] = *reinterpret_cast<const float2*>(from + 8 * j);
        }
    };

    static __device__ __forceinline__ void promote(float (&sum)[kAccumulators], const float (&product)[kAccumulators],
                                                   const TokenScales& scales, float upper, float lower) {
#pragma unroll
        for (u32 j = 0; j < kColumns / 8; ++j) {
            const float2 scale = scales.of[j];
            sum[4 * j + 0] += upper * scale.x * product[4 * j + 0];
            sum[4 * j + 1] += upper * scale.y * product[4 * j + 1];
            sum[4 * j + 2] += lower * scale.x * product[4 * j + 2];
            sum[4 * j + 3] += lower * scale.y * product[4 * j + 3];
        }
    }

    // Packed values of a thread's two rows in a block. An instruction takes four fours of them, by turns of the upper and of the
    // lower row: each a word of its own, of which the upper half is zeros, or two of a row in one.
    struct Codes {
        u32 words[kBlockK / 32][kGroupsByLanes ? 2 : 4];

        // In the lower half.
        __device__ __forceinline__ u32 four(u32 i, u32 e) const {
            return kGroupsByLanes ? words[i][e % 2] >> e / 2 * 16 : words[i][e];
        }
    };

    // Of the thread's rows of weights, where it reads them in shared memory: of the upper one, its number among eight, and
    // the lane's among four. `forties` as in `decode_negated`.
    struct Weights {
        const u8* from;
        u32 swizzle, quarter, forties;

        // What all lanes have of K32 group `i` of a block.
        __device__ __forceinline__ void read_group(u32 (&fours)[4], u32 block, u32 i) const {
            const u8* const at = from + (block * 4 + i ^ swizzle) * 16 + quarter * 2;
#pragma unroll
            for (u32 e = 0; e < 4; ++e) fours[e] = *reinterpret_cast<const u16*>(at + e / 2 * 8 + e % 2 * 8 * 128);
        }

        __device__ __forceinline__ Codes read(u32 block) const {
            Codes codes;
            if constexpr (kGroupsByLanes) {  // a K32 group of the lane's own
                const u8* const at = from + (block * 4 + quarter ^ swizzle) * 16;
#pragma unroll
                for (u32 row = 0; row < 2; ++row) {
                    const uint4 words = *reinterpret_cast<const uint4*>(at + row * 8 * 128);
                    codes.words[0][row] = words.x, codes.words[1][row] = words.y;
                    codes.words[2][row] = words.z, codes.words[3][row] = words.w;
                }
            } else {
#pragma unroll
                for (u32 i = 0; i < kBlockK / 32; ++i) read_group(codes.words[i], block, i);
            }
            return codes;
        }
    };

    // The tables of a row for the lane's K32 groups.
    struct Tables {
        Fp4Table of[kGroupsByLanes ? 1 : 4];

        __device__ __forceinline__ Tables(const Fold& row, u32 quarter) {
#pragma unroll
            for (u32 i = 0; i < sizeof(of) / sizeof(Fp4Table); ++i) of[i] = row.table(kGroupsByLanes ? quarter : i);
        }
        __device__ __forceinline__ Fp4Table operator[](u32 i) const { return of[kGroupsByLanes ? 0 : i]; }
    };

    // What a thread reads of a block in shared memory besides weights.
    struct Block {
        u64 tokens;
        const Fold* folds;
        const float* token_scales;

        __device__ __forceinline__ Block(const Shared& shared, u32 stage, u32 block, u32 row, u32 column)
            : tokens(wgmma_descriptor(shared_address(shared.tokens(stage, block)))),
              folds(shared.folds(stage, block) + row), token_scales(shared.token_scales(stage, block) + column) {}
    };

    using Fragments = u32[kBlockK / 32][4];

    static __device__ __forceinline__ void decode(Fragments& a, const Codes& codes, const Fold& upper, const Fold& lower,
                                                  const Weights& weights) {
        const Tables uppers(upper, weights.quarter), lowers(lower, weights.quarter);
#pragma unroll
        for (u32 i = 0; i < kBlockK / 32; ++i) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e)
                a[i][e] = decode_negated(codes.four(i, e), e % 2 == 0 ? uppers[i] : lowers[i], weights.forties);
        }
    }

    static __device__ __forceinline__ void issue(float (&product)[kAccumulators], const Fragments& a, u64 tokens) {
        wgmma_pin(product);
        wgmma_fence();
        WgmmaE4m3Rs<kColumns>::template run<false>(product, a[0], tokens);
#pragma unroll
        for (u32 i = 1; i < kBlockK / 32; ++i)
            WgmmaE4m3Rs<kColumns>::template run<true>(product, a[i], tokens + 2 * i);
        wgmma_commit();
    }

    // Both blocks of a unit: the second is decoded while the first is multiplied. All that lies in shared memory is read
    // before, since reads behind a product wait for its own.
    static __device__ __forceinline__ void multiply_pair(float (&sum)[kAccumulators], const Weights& weights,
                                                         const Block& first, const Block& second) {
        float product[kTwoProducts ? 2 : 1][kAccumulators];
        Fragments a[2];
        const Codes codes = weights.read(0);
        const Fold upper = first.folds[0], lower = first.folds[8];
        const Codes codes2 = weights.read(1);
        const Fold upper2 = second.folds[0], lower2 = second.folds[8];
        const TokenScales scales(first.token_scales), scales2(second.token_scales);
        decode(a[0], codes, upper, lower, weights);
        issue(product[0], a[0], first.tokens);
        decode(a[1], codes2, upper2, lower2, weights);
        if constexpr (kTwoProducts) {
            issue(product[1], a[1], second.tokens);
            wgmma_wait<1>();
        } else {
            wgmma_wait<0>();
        }
        wgmma_pin(product[0]);
        promote(sum, product[0], scales, upper.scale(), lower.scale());
        if constexpr (!kTwoProducts) issue(product[0], a[1], second.tokens);
        wgmma_wait<0>();
        wgmma_pin(product[kTwoProducts]);
        promote(sum, product[kTwoProducts], scales2, upper2.scale(), lower2.scale());
    }

    // The products of a block's K32 group number `i` alone.
    static __device__ __forceinline__ void issue_group(float (&product)[kAccumulators], const Weights& weights, u32 block,
                                                       u32 i, u64 tokens) {
        if constexpr (kGroupsByLanes) {  // those of the other lanes are zeros
            const u32 mine = i == weights.quarter ? ~0u : 0;
            const Codes codes = weights.read(block);
            Fragments a;
#pragma unroll
            for (u32 of = 0; of < kBlockK / 32; ++of) {
#pragma unroll
                for (u32 e = 0; e < 4; ++e) a[of][e] = decode_negated(codes.four(of, e) & mine, {}, weights.forties);
            }
            issue(product, a, tokens);
        } else {
            u32 a[4];
            weights.read_group(a, block, i);
#pragma unroll
            for (u32 e = 0; e < 4; ++e) a[e] = decode_negated(a[e], {}, weights.forties);
            wgmma_pin(product);
            wgmma_fence();
            WgmmaE4m3Rs<kColumns>::template run<false>(product, a, tokens + 2 * i);
            wgmma_commit();
        }
    }

    // A block whose scales fold.
    static __device__ __forceinline__ void multiply(float (&sum)[kAccumulators], const Weights& weights, u32 number,
                                                    const Block& block) {
        float product[kAccumulators];
        const Codes codes = weights.read(number);
        const Fold upper = block.folds[0], lower = block.folds[8];
        Fragments a;
        decode(a, codes, upper, lower, weights);
        issue(product, a, block.tokens);
        wgmma_wait<0>();
        wgmma_pin(product);
        promote(sum, product, TokenScales(block.token_scales), upper.scale(), lower.scale());
    }

    // A block of which each 32 of K has its own scales.
    static __device__ __forceinline__ void multiply_by_groups(float (&sum)[kAccumulators], const Weights& weights,
                                                              u32 number, const Block& block) {
        float product[kAccumulators];
#pragma unroll 1
        for (u32 i = 0; i < kBlockK / 32; ++i) {
            issue_group(product, weights, number, i, block.tokens);
            wgmma_wait<0>();
            wgmma_pin(product);
            promote(sum, product, TokenScales(block.token_scales), block.folds[0].scale(i), block.folds[8].scale(i));
        }
    }

    // f(peer) for each CTA of the cluster, by one thread, or by all that arrive.
    static constexpr u32 kSplitArrivals = kWarpArrivals == 1 ? 1 : kMathThreads;

    template <class F>
    static __device__ __forceinline__ void to_peers(u32 thread, F&& f) {
        if constexpr (kSplitArrivals == 1) {
            if (thread < kSplitK) f(thread);
        } else {
            for (u32 peer = 0; peer < kSplitK; ++peer) f(peer);
        }
    }

    template <class Rows>
    static __device__ __forceinline__ void store(const Shared& shared, const float (&sum)[kAccumulators], const Out* c,
                                                 Out* d, Tile corner, u32 group, u32 row, u32 column, u32 thread,
                                                 u32 rank, u32 phase, u32 m, u32 n, Rows stored) {
        constexpr u32 kPitch = Layout::kPitch;
        float* const partial = shared.partial(group);
        // Peers, or this CTA's other warps, may still read the partial tiles of the iteration before.
        if constexpr (kSplitK > 1) {
            shared.partials_read().wait(phase ^ 1);
        } else {
            named_barrier_sync(1, kMathThreads);
        }
#pragma unroll
        for (u32 j = 0; j < kColumns / 8; ++j) {
            float* const to = partial + (8 * j + column) * kPitch + row;
            to[0] = sum[4 * j], to[kPitch] = sum[4 * j + 1], to[8] = sum[4 * j + 2], to[kPitch + 8] = sum[4 * j + 3];
        }
        named_barrier_sync(1, kMathThreads);
        if constexpr (kSplitK > 1) {
            to_peers(thread, [&](u32 peer) { shared.partials_ready().publish_remote(peer); });
            shared.partials_ready().wait_cluster(phase);
        }
        add_up_and_store<kSplitK, Config::kHasC, kColumns, Config::kRows, kPitch, kMathThreads, AllColumns, Out,
                         kKGroups>(shared.partial(0), d, c, corner.column, corner.row, stored.bound(m), n, rank, thread,
                                   stored);
        if constexpr (kSplitK > 1) {
            named_barrier_sync(1, kMathThreads);
            to_peers(thread, [&](u32 peer) { shared.partials_read().arrive_remote(peer); });
        }
    }

    static __device__ __forceinline__ void compute(const Shared& shared, const Out* c, Out* d, u32 m, u32 n, u32 k) {
        const u32 thread = threadIdx.x, warpgroup = __shfl_sync(0xffffffff, thread / 128, 0), lane = thread % 32;
        const u32 rows = warpgroup % kRowGroups, group = warpgroup / kRowGroups;
        // Rows change places, so that eight lanes, which read 16 bytes each at once, are at rows of other banks.
        const u32 eighth = lane / 8 + lane / 4 % 2 * 4;
        const u32 row = rows * 64 + thread / 32 % 4 * 16 + eighth, column = lane % 4 * 2;
        const u32 forties = kStraight ? keep_forties(k) : kForties;  // a register less where there are few
        Walk walk(shared, m, n, k);
        const u32 blocks = ceil_div(k, kBlockK) - walk.k_begin * Layout::kUnitBlocks;
        // Units are numbered through all tiles, and groups take turns: this one's next, and the tile's first.
        u32 next = group, first = 0, stage = group, phase = 0, tile_phase = 0;
        for (u32 index = walk.first; index < walk.count(); index += walk.step, tile_phase ^= 1) {
            float sum[kAccumulators];
#pragma unroll
            for (u32 i = 0; i < kAccumulators; ++i) sum[i] = 0;
#pragma unroll 1
            for (; next < first + walk.k_blocks; next += kKGroups) {
                const u32 count = min(Layout::kUnitBlocks, blocks - (next - first) * Layout::kUnitBlocks);
                shared.full(stage).wait(phase);
                if constexpr (kGroupsByLanes) fence_async_proxy();  // tokens have come by `cp.async`, and wgmma reads them
                const Weights weights{shared.weights(stage) + row * 128, eighth, lane % 4, forties};
                const u32 together = *shared.together(stage, rows);
                if (kStraight && count == 2 && together == 3) {
                    const Block first(shared, stage, 0, row, column), second(shared, stage, 1, row, column);
                    if constexpr (kPairs) {
                        multiply_pair(sum, weights, first, second);
                    } else {
                        multiply(sum, weights, 0, first), multiply(sum, weights, 1, second);
                    }
                } else {
#pragma unroll 1
                    for (u32 j = 0; j < count; ++j) {
                        const Block block(shared, stage, j, row, column);
                        if (together >> j & 1) {
                            multiply(sum, weights, j, block);
                        } else {
                            multiply_by_groups(sum, weights, j, block);
                        }
                    }
                }
                arrive_warp(shared.empty(stage), lane);
                stage += kKGroups;
                if (stage >= kStages) stage -= kStages, phase ^= 1;
            }
            first += walk.k_blocks;
            const Tile corner = walk.corner(index);
            store(shared, sum, c, d, corner, group, row, column, thread, kSplitK > 1 ? walk.rank : 0, tile_phase, m, n,
                  walk.rows(d));
        }
    }

    // `prepare` is done by all threads before any begins its role, with what the kernels before this one have written.
    template <class Prepare = Nothing>
    static __device__ __forceinline__ void run(const TensorMap& weights_map, const Tokens<Config>& tokens,
                                               const float* scales_a, const Raw* scales_b, const Out* c, Out* d, u32 m,
                                               u32 n, u32 k, u32 row_scales, Prepare prepare = {}) {
        extern __shared__ __align__(1024) u8 shared_memory[];
        const Shared shared{shared_memory};
        const u32 warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
        constexpr u32 kMathWarps = Layout::kMathGroups * 4;

        const auto init = [&](u32 lane) {
            if (lane < Config::kStages) {
                // The expected bytes, the lanes that copy tokens, each warp of scales; the warps that read it.
                shared.full(lane).init(1 + 32 + Layout::kRowGroups * kWarpArrivals);
                shared.empty(lane).init(Layout::kRowGroups * 4 * kWarpArrivals);
            }
            if (lane == 0) {
                if constexpr (kSplitK > 1) {
                    shared.partials_ready().init(kSplitK * kSplitArrivals);
                    shared.partials_read().init(kSplitK * kSplitArrivals);
                }
                tma_prefetch_descriptor(weights_map);
                if constexpr (!kGroupsByLanes) tma_prefetch_descriptor(tokens);
            }
        };
        start_kernel<(kSplitK > 1)>(warp, kMathWarps, init, [&] { prepare(shared); });

        if (warp >= kMathWarps) {
            const Feed feed{shared, Walk(shared, m, n, k), m, n, k, ceil_div(k, kBlockK)};
            if (warp > kMathWarps) {
                const u32 scale_warp = warp - kMathWarps - 1;
                feed.write_scales(scales_b, row_scales, scale_warp / Layout::kScaleWarps, scale_warp % Layout::kScaleWarps,
                                  threadIdx.x % 32);
            } else {
                feed.load_tiles(weights_map, tokens, scales_a, threadIdx.x % 32);
            }
            // They are done with the last tile while it is still multiplied and stored.
            Walk::template fill_up<Layout::kFeedWarps>(shared, d, m, n, warp - kMathWarps);
        } else {
            compute(shared, c, d, m, n, k);
        }
        // Peers may still read from this CTA's shared memory.
        if constexpr (kSplitK > 1) cluster_sync();
    }
};

template <class Config>
__global__ void __launch_bounds__(Fp4SwappedLayout<Config>::kThreads, 1)
    sm90_fp8_fp4_gemm_swapped(const __grid_constant__ TensorMap weights_map,
                              const __grid_constant__ Tokens<Config> tokens, const float* scales_a,
                              const typename Config::Scales::Raw* scales_b, const typename Config::Out* c,
                              typename Config::Out* d, u32 m, u32 n, u32 k, u32 row_scales) {
    Sm90Fp8Fp4GemmSwapped<Config>::run(weights_map, tokens, scales_a, scales_b, c, d, m, n, k, row_scales);
}
