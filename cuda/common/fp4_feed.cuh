// The warpgroup that feeds a GEMM with FP4 weights: it decodes them into the ring of stages that the math warps read.
//
// Packed weights arrive by TMA in a ring of each warp's own, which it alone reads and refills: no barrier between warps.
// Tokens go straight into the stage that their weights are decoded into.
#pragma once
#include "common/fp4_layout.cuh"
#include "common/gemm_walk.cuh"
#include "common/tma.cuh"

template <class Config>
struct Fp4Feed {
    using Layout = Fp4Layout<Config>;
    using Shared = Fp4SharedMemory<Config>;
    using Walk = GemmWalk<Config>;
    using Scales = typename Config::Scales;
    static constexpr u32 kStageBlocks = Config::kStageBlocks, kTasks = Layout::kTasks;
    static constexpr u32 kPackedStages = Config::kPackedStages, kThreads = Layout::kWarps * 32;

    // A warp's task of a stage: its rows, counted in 32, and its block of K.
    struct Task {
        u32 rows, block;
        __device__ __forceinline__ Task(u32 warp, u32 i)
            : rows((i * Layout::kWarps + warp) % Layout::kRowTasks),
              block((i * Layout::kWarps + warp) / Layout::kRowTasks) {}
    };

    // What a warp loads next, kPackedStages ahead of what it decodes.
    struct Loads {
        const Shared& shared;
        const Walk& walk;
        const TensorMap& map;
        const u8* scales;
        u32 warp, lane, n, blocks_k;
        u32 index = walk.first, block = 0, n0 = corner_n();

        __device__ __forceinline__ u32 corner_n() const {
            const Tile corner = walk.corner(index);
            return Config::kSwap ? corner.row : corner.column;
        }

        __device__ __forceinline__ void next(u32 slot) {
            if (index < walk.order.count()) {
                const u32 count = min(kStageBlocks, walk.k_blocks - block);
                Barrier& full = shared.packed_full(warp, slot);
                u32 tasks = 0;
#pragma unroll
                for (u32 i = 0; i < kTasks; ++i) tasks += Task(warp, i).block < count;
                if (lane == 0) full.arrive_expect_bytes(tasks * Layout::kTaskBytes);
                __syncwarp();
#pragma unroll
                for (u32 i = 0; i < kTasks; ++i) {
                    const Task task(warp, i);
                    if (task.block >= count) continue;
                    const u32 at = (warp * kPackedStages + slot) * kTasks + i;
                    const u32 row = n0 + task.rows * Layout::kTaskRows, at_k = walk.k_begin + block + task.block;
                    if (lane == 0) tma_load_2d(shared.packed(at), map, full, at_k * (kBlockK / 2), row);
                    const u64 scale = static_cast<u64>(min(row + lane, n - 1)) * blocks_k + at_k;
                    async_copy<Scales::kBytes>(shared.raw_scales(at, lane), scales + scale * Scales::kBytes);
                }
                block += kStageBlocks;
                if (block >= walk.k_blocks) {
                    block = 0, index += walk.step;
                    if (index < walk.order.count()) n0 = corner_n();
                }
            }
            async_copy_commit();  // also of nothing: they are counted
        }
    };

    static __device__ __forceinline__ void decode(const Shared& shared, u32 task, u32 block, u32 rows, u32 lane) {
        const RowDecoding how = Scales::read(shared.raw_scales(task, lane));
        const u8* const from = shared.packed(task);
        u8* const to = shared.weights(block);
        const u32 row = rows * Layout::kTaskRows + lane;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const uint4 packed = *reinterpret_cast<const uint4*>(from + swizzled<64>(lane * 64 + i * 16));
            const Fp4Table table = how.tables[i];
            const uint2 a = decode_fp4(packed.x, table), b = decode_fp4(packed.y, table);
            const uint2 c = decode_fp4(packed.z, table), d = decode_fp4(packed.w, table);
            const u32 at = row * kBlockK + i * 32;
            *reinterpret_cast<uint4*>(to + swizzled<128>(at)) = make_uint4(a.x, a.y, b.x, b.y);
            *reinterpret_cast<uint4*>(to + swizzled<128>(at + 16)) = make_uint4(c.x, c.y, d.x, d.y);
        }
        float* const scales = shared.scales_b(block) + row;
#pragma unroll
        for (u32 i = 0; i < Scales::kSets; ++i) scales[i * Layout::kTileN] = how.scales[i];
        if constexpr (Scales::kSets > 1) {
            const bool whole = __all_sync(0xffffffff, how.whole);
            if (lane == 0) shared.whole(block)[rows] = whole;
        }
    }

    static __device__ __forceinline__ void run(const Shared& shared, const TensorMap& weights_map,
                                               const TensorMap& tokens_map, const float* scales_a, const u8* scales_b,
                                               u32 m, u32 n, u32 k) {
        const Walk walk(m, n, k);
        const u32 thread = threadIdx.x % kThreads, warp = thread / 32, lane = thread % 32;
        Loads loads{shared, walk, weights_map, scales_b, warp, lane, n, ceil_div(k, kBlockK)};
        for (u32 slot = 0; slot < kPackedStages; ++slot) loads.next(slot);

        constexpr u32 kScalesA = ceil_div(Layout::kTileM, kThreads);  // of a block, for each thread
        Pipeline<Config::kStages> pipe;
        Pipeline<kPackedStages> packed;
        for (u32 index = walk.first; index < walk.order.count(); index += walk.step) {
            const Tile corner = walk.corner(index);
            const u32 m0 = Config::kSwap ? corner.column : corner.row;
            const u32 tile_m = m0 < m ? min(Layout::kTileM, m - m0) : 0;
            const float* from_a = scales_a + static_cast<u64>(walk.k_begin) * m + m0 + thread;
#pragma unroll 1
            for (u32 i = 0; i < walk.k_blocks; i += kStageBlocks, pipe.advance(), packed.advance()) {
                const u32 count = min(kStageBlocks, walk.k_blocks - i), first = pipe.stage * kStageBlocks;
                Barrier& full = shared.full(pipe.stage);
                shared.empty(pipe.stage).wait(pipe.phase ^ 1);
                if (thread == 0) {
                    full.arrive_expect_bytes(count * Layout::kTokensBytes);
#pragma unroll 1
                    for (u32 j = 0; j < count; ++j)
                        tma_load_2d(shared.tokens(first + j), tokens_map, full, (walk.k_begin + i + j) * kBlockK, m0);
                }
                __syncwarp();
                // On their way while the weights are decoded.
                float scales[kStageBlocks][kScalesA];
#pragma unroll
                for (u32 j = 0; j < kStageBlocks; ++j) {
#pragma unroll
                    for (u32 s = 0; s < kScalesA; ++s) {
                        const bool there = j < count && thread + s * kThreads < tile_m;
                        scales[j][s] = there ? from_a[static_cast<u64>(j) * m + s * kThreads] : 0;
                    }
                }
                from_a += static_cast<u64>(kStageBlocks) * m;

                async_copy_wait<kPackedStages - 1>();
                shared.packed_full(warp, packed.stage).wait(packed.phase);
#pragma unroll 1
                for (u32 t = 0; t < kTasks; ++t) {
                    const Task task(warp, t);
                    if (task.block < count)
                        decode(shared, (warp * kPackedStages + packed.stage) * kTasks + t, first + task.block,
                               task.rows, lane);
                }
#pragma unroll
                for (u32 j = 0; j < kStageBlocks; ++j) {
#pragma unroll
                    for (u32 s = 0; s < kScalesA; ++s) {
                        const u32 at = thread + s * kThreads;
                        if (at < Layout::kTileM) shared.scales_a(first + j)[at] = scales[j][s];
                    }
                }
                fence_async_proxy();
                __syncwarp();
                if (lane == 0) full.arrive();
                loads.next(packed.stage);
            }
        }
        async_copy_wait<0>();
    }
};
