// The warps that feed a GEMM with FP4 weights: they decode them into the ring of stages that the math warps read.
//
// Packed weights and their scales arrive by TMA in a ring of each warp's own, which it alone reads and refills: no
// barrier between warps. Tokens go straight into the stage that their weights are decoded into.
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
    static constexpr u32 kScalesA = ceil_div(Layout::kTileM, kThreads);  // of a block, for each thread

    // A warp's task of a stage: its rows, counted in tasks, and its block of K.
    struct Task {
        u32 rows, block;
        __device__ __forceinline__ Task(u32 warp, u32 i)
            : rows((i * Layout::kWarps + warp) % Layout::kRowTasks),
              block((i * Layout::kWarps + warp) / Layout::kRowTasks) {}
    };

    static __device__ __forceinline__ u32 corner_m(Tile corner) { return Config::kSwap ? corner.column : corner.row; }
    static __device__ __forceinline__ u32 corner_n(Tile corner) { return Config::kSwap ? corner.row : corner.column; }

    // What a warp loads next, kPackedStages ahead of what it decodes. One lane does.
    struct Loads {
        const Shared& shared;
        const Walk& walk;
        const TensorMap &weights, &scales;
        u32 warp;
        u32 index = walk.first, block = 0, n0 = corner_n(walk.corner(walk.first));

        __device__ __forceinline__ void next(u32 slot) {
            if (index >= walk.order.count()) return;
            const u32 count = min(kStageBlocks, walk.k_blocks - block);
            Barrier& full = shared.packed_full(warp, slot);
            u32 tasks = 0;
#pragma unroll
            for (u32 i = 0; i < kTasks; ++i) tasks += Task(warp, i).block < count;
            full.arrive_expect_bytes(tasks * (Layout::kTaskBytes + Layout::kRawBytes));
#pragma unroll 1
            for (u32 i = 0; i < kTasks; ++i) {
                const Task task(warp, i);
                if (task.block >= count) break;
                const u32 at = (warp * kPackedStages + slot) * kTasks + i;
                const u32 row = n0 + task.rows * Layout::kTaskRows, at_k = walk.k_begin + block + task.block;
                tma_load_2d(shared.packed(at), weights, full, at_k * (kBlockK / 2), row);
                tma_load_2d(shared.raw_scales(at), scales, full,
                            at_k * Scales::kBytes / Layout::kRawRowBytes * Layout::kRawRowBytes, row);
            }
            block += kStageBlocks;
            if (block >= walk.k_blocks) {
                block = 0, index += walk.step;
                if (index < walk.order.count()) n0 = corner_n(walk.corner(index));
            }
        }
    };

    static __device__ __forceinline__ void decode(const Shared& shared, u32 task, u32 block, u32 rows, u32 at_k,
                                                  u32 lane) {
        constexpr u32 kLanes = 32 / Layout::kTaskRows, kCount = 4 / kLanes;  // of a row; pieces of 32 of K for each
        const u32 of_task = lane % Layout::kTaskRows, row = rows * Layout::kTaskRows + of_task;
        const u32 piece = lane / Layout::kTaskRows * kCount;
        const u8* const from = shared.packed(task);
        u8* const to = shared.weights(block);
        uint4 packed[kCount];  // read before anything is written, or the compiler would keep them in turns
#pragma unroll
        for (u32 i = 0; i < kCount; ++i)
            packed[i] = *reinterpret_cast<const uint4*>(from + swizzled<64>(of_task * 64 + (piece + i) * 16));
        const u8* const scale = shared.raw_scales(task) + of_task * Layout::kRawRowBytes;
        const auto how = Scales::template read<kCount>(scale + at_k * Scales::kBytes % Layout::kRawRowBytes, piece);
#pragma unroll
        for (u32 i = 0; i < kCount; ++i) {
            const Fp4Table table = how.tables[i];
            const uint2 a = decode_fp4(packed[i].x, table), b = decode_fp4(packed[i].y, table);
            const uint2 c = decode_fp4(packed[i].z, table), d = decode_fp4(packed[i].w, table);
            const u32 at = row * kBlockK + (piece + i) * 32;
            *reinterpret_cast<uint4*>(to + swizzled<128>(at)) = make_uint4(a.x, a.y, b.x, b.y);
            *reinterpret_cast<uint4*>(to + swizzled<128>(at + 16)) = make_uint4(c.x, c.y, d.x, d.y);
        }
        float* const scales = shared.scales_b(block) + row;
#pragma unroll
        for (u32 i = 0; i < kCount; ++i) {
            if (piece + i < Scales::kSets) scales[(piece + i) * Layout::kTileN] = how.scales[i];
        }
        if constexpr (Scales::kSets > 1) {
            const bool whole = __all_sync(0xffffffff, how.whole);
            if (lane == 0) shared.whole(block)[rows] = whole;
        }
    }

    static __device__ __forceinline__ void run(const Shared& shared, const TensorMap& weights_map,
                                               const TensorMap& tokens_map, const TensorMap& scales_map,
                                               const float* scales_a, u32 m, u32 n, u32 k) {
        const Walk walk(m, n, k);
        const u32 thread = threadIdx.x - Config::kMathGroups * 128, lane = thread % 32;
        const u32 warp = __shfl_sync(0xffffffff, thread / 32, 0);
        Loads loads{shared, walk, weights_map, scales_map, warp};
        if (lane == 0) {
#pragma unroll 1
            for (u32 slot = 0; slot < kPackedStages; ++slot) loads.next(slot);
        }
        Pipeline<Config::kStages> pipe;
        Pipeline<kPackedStages> packed;
        for (u32 index = walk.first; index < walk.order.count(); index += walk.step) {
            const u32 m0 = corner_m(walk.corner(index));
            const u32 left_m = m > m0 + thread ? m - m0 - thread : 0;  // of A's rows, from this thread's first on
            const float* from_a = scales_a + static_cast<u64>(walk.k_begin) * m + m0 + thread;
#pragma unroll 1
            for (u32 i = 0; i < walk.k_blocks; i += kStageBlocks, pipe.advance(), packed.advance()) {
                const u32 count = min(kStageBlocks, walk.k_blocks - i), first = pipe.stage * kStageBlocks;
                // On their way while the weights are decoded.
                float scales[kStageBlocks][kScalesA];
#pragma unroll
                for (u32 j = 0; j < kStageBlocks; ++j, from_a += m) {
#pragma unroll
                    for (u32 s = 0; s < kScalesA; ++s) {
                        const u32 at = s * kThreads;
                        scales[j][s] = 0;
                        if (j < count && thread + at < Layout::kTileM && at < left_m) scales[j][s] = __ldg(from_a + at);
                    }
                }
                Barrier& full = shared.full(pipe.stage);
                shared.empty(pipe.stage).wait(pipe.phase ^ 1);
                if (thread == 0) {
                    full.arrive_expect_bytes(count * Layout::kTokensBytes);
#pragma unroll 1
                    for (u32 j = 0; j < count; ++j)
                        tma_load_2d(shared.tokens(first + j), tokens_map, full, (walk.k_begin + i + j) * kBlockK, m0);
                }
                shared.packed_full(warp, packed.stage).wait(packed.phase);
                __syncwarp();
#pragma unroll 1
                for (u32 t = 0; t < kTasks; ++t) {
                    const Task task(warp, t);
                    if (task.block >= count) break;
                    decode(shared, (warp * kPackedStages + packed.stage) * kTasks + t, first + task.block, task.rows,
                           walk.k_begin + i + task.block, lane);
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
                if (lane == 0) {
                    full.arrive();
                    loads.next(packed.stage);
                }
            }
        }
    }
};
