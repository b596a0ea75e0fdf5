// The FP8 GEMM kernels' common part: a persistent, warp-specialised loop over tiles of D = A B^T (+ C). Hopper.
//
// wgmma fixes 64 rows; its columns are any multiple of 8. With few tokens the weights take the rows (kSwap: the tile is
// computed transposed) and the tokens the columns. Below, "rows" and "columns" are wgmma's; M and N those of D.
//
// Two producer warps fill a ring of stages of kStageBlocks x 128 of K, tiles by TMA and scales by cp.async; kMathGroups
// warpgroups multiply, and every 128 of K add the scaled product to FP32 registers, since the tensor cores keep few
// mantissa bits. With kStoreWarp another warp stores what they have staged. CTAs of a cluster either share one operand's
// tile by multicast (kClusterRows or kClusterColumns > 1) or split K among them (kSplitK > 1).
//
// What a kernel's recipe of scales decides is its `Scaling`: `Source`, one lane's copies into a stage, and `Scales`,
// which a math thread reads from it and promotes by; kReadsLate, if promoting reads the stage too.
#pragma once
#include "common/barrier.cuh"
#include "common/fp8_producer.cuh"
#include "common/gemm_epilogue.cuh"
#include "common/gemm_layout.cuh"
#include "common/gemm_walk.cuh"
#include "common/kernel_start.cuh"
#include "common/ring_output.cuh"
#include "common/store_warp.cuh"
#include "common/tma.cuh"
#include "common/wgmma.cuh"

template <class Config, class Scaling>
struct Fp8Runs;  // fp8_runs.cuh

template <class Config, class Scaling>
struct Fp8ByRowsLoop;  // fp8_by_rows.cuh

template <class Config, class Scaling>
struct Fp8Gemm {
    using Settings = Config;
    using Operands = typename Scaling::Operands;
    using Layout = SharedLayout<Config, Operands>;
    using Shared = SharedMemory<Config, Operands>;
    using Walk = typename WalkOf<Config>::type;
    using Epilogue = GemmEpilogue<Config, Operands>;
    using Stores = StoreWarp<Epilogue>;
    using Pipeline = ::Pipeline<Config::kStages>;
    using Producer = Fp8Producer<Config, Scaling>;
    using Out = typename Config::Out;
    using Columns = typename ResultColumns<Config>::type;
    static constexpr u32 kGroups = Config::kMathGroups, kWaves = Config::kWaves, kColumns = Config::kColumns;
    static constexpr u32 kCluster = Config::kClusterRows * Config::kClusterColumns;
    static constexpr u32 kSplitK = Config::kSplitK, kStageBlocks = Config::kStageBlocks;
    static constexpr u32 kMathThreads = kGroups * 128;
    static constexpr u32 kAccumulators = kColumns / 2;
    static_assert(Config::kRows == kGroups * kWaves * 64, "a warpgroup computes 64 rows a wave");
    static_assert(Config::kClusterRows == 1 || Config::kClusterColumns == 1, "a cluster shares one operand");
    static_assert(kCluster == 1 || kSplitK == 1, "a cluster shares operands or splits K, not both");
    static_assert(!Config::kRings || (kStageBlocks == 1 && Config::kAhead == 0), "a ring is so many blocks of K");

    // ---- math -----------------------------------------------------------------------------------------------------

    // `ring`: `wgmma_tile` of the ring's first tile; `row`: the first of the warpgroup's rows.
    static __device__ __forceinline__ void multiply(float (&product)[kAccumulators], u32 ring, u32 block, u32 row) {
        const u32 rows = ring + block * (Layout::kBlockBytes / 16) + row * (kBlockK / 16);
        const u32 columns = ring + block * (Layout::kBlockBytes / 16) + Layout::kRowsBytes / 16;
#pragma unroll
        for (u32 k = 0; k < kBlockK / 32; ++k) {
            WgmmaE4m3<kColumns>::run(product, wgmma_tile_descriptor(rows + 2 * k),
                                     wgmma_tile_descriptor(columns + 2 * k), k > 0);
        }
        wgmma_commit();
    }

    // By votes the compiler knows it to be the same for all of a warp, and keeps what depends on it, such as the
    // operands' descriptors, in uniform registers.
    static __device__ __forceinline__ u32 math_group() {
        u32 group = 0;
#pragma unroll
        for (u32 g = 1; g < kGroups; ++g) group += __any_sync(0xffffffff, threadIdx.x >= g * 128) ? 1 : 0;
        return group;
    }

    static __device__ __forceinline__ void release(const Shared& shared, u32 stage, u32 lane) {
        arrive_warp<kCluster>(shared.empty(stage), lane);
    }

    // Warpgroups take turns to issue: their products then queue one after the other instead of interleaving, and while
    // one promotes the tensor cores work for the others. In step they would all promote, then all wait. In whole rings of
    // straight code (kRings) two warpgroups keep out of step by themselves, and turns only cost.
    static constexpr bool kTurns = kGroups > 2 || (kGroups == 2 && !Config::kRings);
    static constexpr u32 kTurnBarrier = 4, kTurnThreads = 256;  // the one who waits and the one who passes

    static __device__ __forceinline__ void wait_turn(u32 group) {
        if constexpr (kTurns) named_barrier_sync(kTurnBarrier + group, kTurnThreads);
    }

    static __device__ __forceinline__ void pass_turn(u32 group) {
        if constexpr (kTurns)
            named_barrier_arrive(kTurnBarrier + (group == kGroups - 1 ? 0 : group + 1), kTurnThreads);
    }

    static __device__ __forceinline__ void begin_turns(u32 group) {
        if (group == kGroups - 1) pass_turn(group);
    }

    // Takes the turn that nobody took.
    static __device__ __forceinline__ void end_turns(u32 group) {
        if (group == 0) wait_turn(group);
    }

    static constexpr bool kTold = Producer::kTells;
    static_assert(!kTold || (!Config::kHasC && !Columns::kFills), "C and free columns are found by the corner");

    // Of tile `index`: what the producer says if kTold, and `corner` is not known then.
    template <class Corner>
    static __device__ __forceinline__ TileNote note_of(const Shared& shared, Walk& walk, u32 index, const Pipeline& pipe,
                                                       Corner& corner) {
        if constexpr (kTold) {
            shared.full(pipe.stage).wait(pipe.phase);
            return shared.note(pipe.stage);
        } else {
            corner = walk.corner(index);
            const u32 at_n = Config::kSwap ? corner.row : corner.column;
            return {static_cast<u16>(walk.rows_from(corner.row)), static_cast<u16>(at_n % kScaleBlock)};
        }
    }

    // Instead of a step, for a warpgroup whose rows are of no use: it keeps in line. `count` stages under one turn.
    static __device__ __forceinline__ void pass_by(const Shared& shared, Pipeline& pipe, u32 count, u32 group,
                                                   u32 lane) {
        wait_turn(group);
        pass_turn(group);
#pragma unroll 1
        for (u32 i = 0; i < count; ++i, pipe.advance()) {
            shared.full(pipe.stage).wait(pipe.phase);
            shared.scales_full(pipe.stage).wait(pipe.phase);
            release(shared, pipe.stage, lane);
        }
    }

    // Whether the next stage's tiles are tested for while this one's products are under way: with scales of each column
    // the path from a product to the next is long enough for that to pay.
    static constexpr bool kLooksAhead = Operands::kScalesPitch > 0 && kStageBlocks == 1;
    static_assert(!kLooksAhead || !Config::kRings, "the next stage is the pipeline's, not the ring's");

    // kCount blocks of K, `block` the first: all products are under way before the first is waited for.
    template <u32 kCount, class Wait, class Look, class Release>
    static __device__ __forceinline__ void step(const Shared& shared, float (&sum)[kAccumulators], u32 ring, u32 block,
                                                u32 group, u32 row, Fragment at, u32 shift, Wait wait_scales,
                                                Look look_ahead, Release release_stage) {
        float product[kCount][kAccumulators];
        typename Scaling::Scales scales[kCount];
        wait_turn(group);
#pragma unroll
        for (u32 j = 0; j < kCount; ++j) wgmma_pin(product[j]);
        wgmma_fence();
#pragma unroll
        for (u32 j = 0; j < kCount; ++j) multiply(product[j], ring, block + j, row);
        pass_turn(group);
        wait_scales();
#pragma unroll
        for (u32 j = 0; j < kCount; ++j)
            scales[j].read(shared, block + j, row + at.row, at.column, Config::kSwap ? row : 0, shift);
        look_ahead();
        unrolled<kCount>([&](auto j) {
            wgmma_wait<kCount - 1 - j.value>();
            wgmma_pin(product[j.value]);
            if (j.value == kCount - 1 && !Scaling::kReadsLate) release_stage();
            scales[j.value].promote(sum, product[j.value]);
            if (j.value == kCount - 1 && Scaling::kReadsLate) release_stage();
        });
    }

    // D's columns that are not the product's.
    static __device__ __forceinline__ void fill_columns(Out* d, Tile corner, u32 m, u32 n, u32 thread) {
        if constexpr (Columns::kFills) {
            const u32 m0 = Config::kSwap ? corner.column : corner.row, n0 = Config::kSwap ? corner.row : corner.column;
            Columns::template fill<Layout::kTileM, Layout::kTileN, kMathThreads>(d, m0, n0, m, n, thread);
        }
    }

    static __device__ __forceinline__ void compute(const Shared& shared, const TensorMap& d_map, const Out* c, Out* d,
                                                   u32 m, u32 n, u32 k) {
        const u32 thread = threadIdx.x, group = math_group(), warp = thread / 32 % 4, lane = thread % 32;
        const Fragment at{warp * 16 + lane / 4, lane % 4 * 2};
        Walk walk(shared, m, n, k);
        Pipeline pipe;
        const u32 ring = wgmma_tile(shared_address(shared.base));
        RingOutput<Fp8Gemm> output;
        typename Stores::Turns turns;
        u32 tile_phase = 0;
        begin_turns(group);
        for (u32 index = walk.first; index < walk.count(); index += walk.step, tile_phase ^= 1) {
            decltype(walk.corner(0)) corner{};
            const TileNote note = note_of(shared, walk, index, pipe, corner);
            const u32 shift = note.shift;
            float sum[kWaves][kAccumulators];
#pragma unroll
            for (u32 w = 0; w < kWaves; ++w) {
#pragma unroll
                for (u32 i = 0; i < kAccumulators; ++i) sum[w][i] = 0;
            }
            // All of the tile's K. Without kAll only the first `used` waves are of use, and the warpgroup has time.
            const auto multiply_blocks = [&](auto all, u32 used) {
                constexpr bool kAll = all.value != 0;
                u32 left = walk.k_blocks;
                bool landed = false;  // what this stage is to hold
                const auto multiply_stage = [&](u32 stage, u32 count) {  // `count` blocks of K
                    const u32 first = stage * kStageBlocks;
                    if (!kLooksAhead || !landed) shared.full(stage).wait(pipe.phase);
#pragma unroll
                    for (u32 w = 0; w < kWaves; ++w) {
                        const u32 row = (w * kGroups + group) * 64;
                        const auto wait_scales = [&] {
                            if (w == 0) shared.scales_full(stage).wait(pipe.phase);
                        };
                        const auto look_ahead = [&] {
                            if constexpr (kLooksAhead) {
                                if (w != kWaves - 1) return;
                                Pipeline next = pipe;
                                next.advance();
                                landed = left > 1 && shared.full(next.stage).passed(next.phase);
                            }
                        };
                        const auto release_stage = [&] {
                            if (w == kWaves - 1) release(shared, stage, lane);
                        };
                        if (!kAll && w >= used) {  // keeps in line
#pragma unroll 1
                            for (u32 j = count == kStageBlocks ? 1 : count; j > 0; --j) wait_turn(group), pass_turn(group);
                            wait_scales();
                            release_stage();
                        } else if (kStageBlocks == 1 || count == kStageBlocks) {
                            step<kStageBlocks>(shared, sum[w], ring, first, group, row, at, shift, wait_scales,
                                               look_ahead, release_stage);
                        } else {
#pragma unroll 1
                            for (u32 j = 0; j < count; ++j)
                                step<1>(shared, sum[w], ring, first + j, group, row, at, shift, wait_scales, [] {}, [] {});
                            release_stage();
                        }
                    }
                };
#pragma unroll 1
                while (left > 0) {
                    if constexpr (kAll && Config::kRings) {
                        // Whole rings: where a stage is, is a constant then.
#pragma unroll 1
                        for (; pipe.stage == 0 && left >= Config::kStages; left -= Config::kStages, pipe.phase ^= 1)
                            unrolled<Config::kStages>([&](auto stage) { multiply_stage(stage.value, 1); });
                        if (left == 0) break;
                    }
                    const u32 count = min(kStageBlocks, left);
                    multiply_stage(pipe.stage, count);
                    pipe.advance(), left -= count;
                }
            };
            if (!Walk::kEndsInside || ((kWaves - 1) * kGroups + group) * 64 < note.rows) {
                multiply_blocks(Constant<1>{}, kWaves);
            } else {
                multiply_blocks(Constant<0>{}, group * 64 < note.rows ? 1 : 0);
            }
            if constexpr (Layout::kOutByRing) {
                output.postpone(pipe);
                output.finish(shared, sum, d_map, corner, group, warp, lane);
                output.settle(shared, lane);
            } else if constexpr (Layout::kStoreByTma) {
                Stores::put(shared, turns, sum, d_map, result_of(corner, c, m, n), corner, at, group, warp, lane, m, n,
                            walk.rows(d));
            } else {
                Epilogue::store_by_split(shared, sum, c, d, corner, at, group, thread, kSplitK > 1 ? walk.rank : 0,
                                         tile_phase, m, n, walk.rows(d));
            }
            if (kSplitK == 1 || walk.rank == 0) fill_columns(d, corner, m, n, thread);
        }
        end_turns(group);
        if constexpr (Layout::kStoreByTma && !Layout::kStoreWarp) tma_store_wait_read<0>();
    }

    // ---- kernel ---------------------------------------------------------------------------------------------------

    // `prepare` is done by all threads before any begins its role, with what the kernels before this one have written.
    template <class Prepare = Nothing>
    static __device__ __forceinline__ void run(const TensorMap& rows_map, const TensorMap& columns_map,
                                               const TensorMap& c_map, const TensorMap& d_map, const float* scales_a,
                                               const float* scales_b, const Out* c, Out* d, u32 m, u32 n, u32 k,
                                               Prepare prepare = {}) {
        extern __shared__ __align__(1024) u8 shared_memory[];
        const Shared shared{shared_memory};
        const u32 warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
        constexpr u32 kMathWarps = kGroups * 4;
        constexpr bool kInCluster = kCluster * kSplitK > 1;

        const auto init = [&](u32 lane) {
            if (lane < Config::kStages) {
                shared.full(lane).init(1);
                shared.scales_full(lane).init(32);
                shared.empty(lane).init(kMathWarps * kCluster * kWarpArrivals);
            }
            if constexpr (Layout::kStoreWarp) Stores::init(shared, lane);
            if (lane == 0) {
                if constexpr (kSplitK > 1) {
                    shared.partials_ready().init(kSplitK * Epilogue::kSplitArrivals);
                    shared.partials_read().init(kSplitK * Epilogue::kSplitArrivals);
                }
                tma_prefetch_descriptor(rows_map);
                tma_prefetch_descriptor(columns_map);
                if constexpr (Config::kHasC && Layout::kOutByRing) tma_prefetch_descriptor(c_map);
                if constexpr (Layout::kStoreByTma) tma_prefetch_descriptor(d_map);
            }
        };
        start_kernel<kInCluster>(warp, kMathWarps, init, [&] { prepare(shared); });

        // Three warpgroups start with 168 registers a thread, four with 128: 3 x 168 = 40 + 2 x 232, 4 x 128 = 32 + 3 x
        // 160. Math warps that asked for more than the producer gives back would wait for ever. Scales of each row of B
        // take the producer more than 32.
        constexpr bool kFew = kGroups > 2 && Operands::kScalesPitch == 0;
        if (warp >= kMathWarps) {
            if constexpr (kGroups > 1) registers_decrease<kFew ? 32 : 40>();  // one has registers enough
            if (whole_warp(warp == kMathWarps)) Producer::load_tiles(shared, rows_map, columns_map, c_map, m, n, k);
            if (whole_warp(warp == kMathWarps + 1)) Producer::load_scales(shared, scales_a, scales_b, m, n, k);
            Stores::template serve<Walk>(shared, d_map, d, m, n, k, warp, kMathWarps + 2);
        } else {
            if constexpr (kGroups > 1) registers_increase<(kGroups == 2 ? 232 : kFew ? 160 : 152)>();
            if constexpr (Config::kAhead > 0 && Operands::kScalesPitch > 0) {
                Fp8ByRowsLoop<Config, Scaling>::compute(shared, d_map, c, m, n, k);
            } else if constexpr (Config::kAhead > 0) {
                Fp8Runs<Config, Scaling>::compute(shared, d_map, c, d, m, n, k);
            } else {
                compute(shared, d_map, c, d, m, n, k);
            }
        }
        // Peers may still write to or read from this CTA's shared memory.
        if constexpr (kInCluster) cluster_sync();
    }
};
