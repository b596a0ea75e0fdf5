// The warps that feed a GEMM with FP4 weights: they decode them into the ring of stages that the math warps read.
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
    using Walk = typename WalkOf<Config>::type;
    using Scales = typename Config::Scales;
    using Raw = typename Scales::Raw;
    static constexpr u32 kStageBlocks = Config::kStageBlocks, kPackedStages = Config::kPackedStages;
    static constexpr u32 kTasks = Layout::kTasks, kTaskBlocks = Layout::kTaskBlocks, kTaskRows = Layout::kTaskRows;
    static constexpr u32 kThreads = Layout::kWarps * 32;
    static constexpr u32 kScalesA = ceil_div(Layout::kTileM, kThreads);  // of a block, for each thread
    // A lane's items of a stage: rows by a block of K, or half of it. Two lanes of a row take a block each, or a half.
    static constexpr u32 kLanes = 32 / kTaskRows;
    static constexpr bool kBlockEach = kStageBlocks > 1 && kLanes == 2;
    static constexpr u32 kItems = kTasks * (kStageBlocks > 1 && kLanes == 1 ? kTaskBlocks : 1);
    static constexpr u32 kPieces = kStageBlocks == 1 && kLanes == 2 ? 2 : 4;  // of 32 of K in an item

    // A warp's task of a unit: its rows, counted in tasks, and its first block of K.
    struct Task {
        u32 rows, block;
        __device__ __forceinline__ Task(u32 warp, u32 i)
            : rows((i * Layout::kWarps + warp) % Layout::kRowTasks),
              block((i * Layout::kWarps + warp) / Layout::kRowTasks * kTaskBlocks) {}
    };

    // Where in the walk: a tile and a block of its K.
    struct Cursor {
        typename Walk::OwnPace walk;
        u32 n, index, block, m0, n0;
        u32 of_group;  // the first row of its weights in B

        __device__ __forceinline__ Cursor(const Walk& walk, u32 n) : walk(walk), n(n) { start(walk.first); }
        __device__ __forceinline__ bool valid() const { return index < walk.count(); }

        __device__ __forceinline__ void start(u32 tile) {
            index = tile, block = 0;
            if (!valid()) return;
            const Tile corner = walk.corner(index);
            m0 = corner.row, n0 = corner.column, of_group = walk.columns_at(0, n);
        }

        __device__ __forceinline__ void advance(u32 blocks) {
            block += blocks;
            if (block >= walk.k_blocks) start(index + walk.step);
        }
    };

    const Shared& shared;
    const Walk walk;
    const float* scales_a;
    const Raw* scales_b;
    u32 m, n, row_scales;  // Raw of a row of B
    u32 thread, warp, lane;

    __device__ __forceinline__ const Raw* scales_of(const Cursor& at, u32 row, u32 block) const {
        return scales_b + static_cast<u64>(at.of_group + min(row, n - 1)) * row_scales + walk.k_begin + block;
    }

    // Loads a unit into `slot`; its scales into the L2 cache, from where they are read when their turn comes.
    __device__ __forceinline__ void load(const TensorMap& weights, const Cursor& at, u32 slot) const {
        Barrier& full = shared.packed_full(warp, slot);
        const u32 count = walk.k_blocks - at.block;
        u32 tasks = 0;
#pragma unroll
        for (u32 i = 0; i < kTasks; ++i) tasks += Task(warp, i).block < count;
        if (lane == 0) full.arrive_expect_bytes(tasks * Layout::kTaskBytes);
#pragma unroll
        for (u32 i = 0; i < kTasks; ++i) {
            const Task task(warp, i);
            if (task.block >= count) break;
            const u32 row = at.n0 + task.rows * kTaskRows, block = at.block + task.block;
            u8* const to = shared.packed((warp * kPackedStages + slot) * kTasks + i);
            const u32 at_k = (walk.k_begin + block) * (kBlockK / 2);
            if constexpr (Config::kBLeavesFirst) {
                if (lane == 0) tma_load_2d(to, weights, full, at_k, at.of_group + row, l2_evict_first());
            } else {
                if (lane == 0) tma_load_2d(to, weights, full, at_k, at.of_group + row);
            }
            if (lane < kTaskRows) prefetch_l2(scales_of(at, row + lane, block));
        }
    }

    // What a stage needs of the scales, read a stage ahead.
    struct Ahead {
        float a[kStageBlocks][kScalesA];
        Raw b[kItems];
    };

    // The block of a lane's item, counted from the stage's first.
    __device__ __forceinline__ u32 item_block(u32 item) const {
        if constexpr (kStageBlocks == 1) return 0;
        if constexpr (kBlockEach) return Task(warp, item).block + lane / kTaskRows;
        return Task(warp, item / kTaskBlocks).block + item % kTaskBlocks;
    }

    __device__ __forceinline__ Task item_task(u32 item) const { return Task(warp, item * kTasks / kItems); }

    __device__ __forceinline__ void read_ahead(Ahead& ahead, const Cursor& at) const {
        const u32 count = walk.k_blocks - at.block;
        const float* from_a = scales_a + static_cast<u64>(walk.k_begin + at.block) * m + at.m0 + thread;
#pragma unroll
        for (u32 j = 0; j < kStageBlocks; ++j, from_a += m) {
#pragma unroll
            for (u32 s = 0; s < kScalesA; ++s) {
                const u32 row = thread + s * kThreads;
                if (j < count && row < Layout::kTileM && at.m0 + row < m) ahead.a[j][s] = from_a[s * kThreads];
            }
        }
#pragma unroll
        for (u32 e = 0; e < kItems; ++e) {
            const u32 block = item_block(e), row = at.n0 + item_task(e).rows * kTaskRows + lane % kTaskRows;
            if (block < count) ahead.b[e] = *scales_of(at, row, at.block + block);
        }
    }

    // Decodes an item into block `to_block` of the ring. `from_block`: of the task's. Without `values` only its scales.
    __device__ __forceinline__ void decode(Raw raw, typename Scales::Tile tile, u32 slot, u32 task, u32 from_block,
                                           u32 rows, u32 to_block, bool valid, bool values = true) const {
        const u32 of_task = lane % kTaskRows, row = rows * kTaskRows + of_task;
        const u32 piece = kPieces == 2 ? lane / kTaskRows * kPieces : 0;
        const u8* const from = shared.packed((warp * kPackedStages + slot) * kTasks + task);
        u8* const to = shared.weights(to_block);
        const auto how = Scales::template read<kPieces>(raw, piece, tile);
        if (valid) {
            if (values) {
                uint4 packed[kPieces];  // read before anything is written, or the compiler would keep them in turns
#pragma unroll
                for (u32 i = 0; i < kPieces; ++i)
                    packed[i] = *reinterpret_cast<const uint4*>(
                        from + swizzled<128>(of_task * 128 + from_block * 64 + (piece + i) * 16));
#pragma unroll
                for (u32 i = 0; i < kPieces; ++i) {
                    const Fp4Table table = how.tables[i];
                    const uint2 a = decode_fp4(packed[i].x, table), b = decode_fp4(packed[i].y, table);
                    const uint2 c = decode_fp4(packed[i].z, table), d = decode_fp4(packed[i].w, table);
                    const u32 at = row * kBlockK + (piece + i) * 32;
                    *reinterpret_cast<uint4*>(to + swizzled<128>(at)) = make_uint4(a.x, a.y, b.x, b.y);
                    *reinterpret_cast<uint4*>(to + swizzled<128>(at + 16)) = make_uint4(c.x, c.y, d.x, d.y);
                }
            }
            float* const scales = shared.scales_b(to_block) + row;
#pragma unroll
            for (u32 i = 0; i < kPieces; ++i) {
                if (piece + i < Scales::kSets) scales[(piece + i) * Layout::kTileN] = how.scales[i];
            }
        }
        if constexpr (Scales::kSets > 1) {
            const u32 mine = kBlockEach ? 0xffffu << (lane & 16) : 0xffffffff;  // lanes of the same block
            const u32 to_block_of_rows = __ballot_sync(0xffffffff, how.common & kCommonToBlock);
            const u32 to_tile_of_rows = __ballot_sync(0xffffffff, how.common == kCommonToTile);
            const u32 common = (to_tile_of_rows & mine) == mine    ? kCommonToTile
                               : (to_block_of_rows & mine) == mine ? kCommonToBlock
                                                                   : kCommonToNone;
            if (valid && (lane == 0 || (kBlockEach && lane == 16))) shared.common(to_block)[rows] = common;
        }
    }

    __device__ __forceinline__ void run(const TensorMap& weights_map, const TensorMap& tokens_map) const {
        Cursor loads(walk, n), next(walk, n);
#pragma unroll 1
        for (u32 slot = 0; slot < kPackedStages; ++slot, loads.advance(Layout::kUnitBlocks)) {
            if (loads.valid()) load(weights_map, loads, slot);
        }
        Ahead ahead, now;
        if (!Walk::kStacked || next.valid()) read_ahead(ahead, next);
        Pipeline<Config::kStages> pipe;
        Pipeline<kPackedStages> packed;
        for (u32 index = walk.first; index < walk.count(); index += walk.step) {
            const u32 m0 = next.m0;
            typename Scales::Tile tiles[kItems];
            if constexpr (Config::kTileScales) {
#pragma unroll
                for (u32 e = 0; e < kItems; ++e)
                    tiles[e].begin(scales_of(next, next.n0 + item_task(e).rows * kTaskRows + lane % kTaskRows, 0),
                                   walk.k_blocks);
            }
#pragma unroll 1
            for (u32 i = 0; i < walk.k_blocks; i += kStageBlocks, pipe.advance()) {
                const u32 count = min(kStageBlocks, walk.k_blocks - i), first = pipe.stage * kStageBlocks;
                now = ahead;
                next.advance(kStageBlocks);
                if (next.valid()) read_ahead(ahead, next);
                Barrier& full = shared.full(pipe.stage);
                shared.empty(pipe.stage).wait(pipe.phase ^ 1);
                if (thread == 0) {
                    full.arrive_expect_bytes(count * Layout::kTokensBytes);
#pragma unroll 1
                    for (u32 j = 0; j < count; ++j)
                        tma_load_2d(shared.tokens(first + j), tokens_map, full, (walk.k_begin + i + j) * kBlockK, m0);
                }
#pragma unroll
                for (u32 j = 0; j < kStageBlocks; ++j) {
#pragma unroll
                    for (u32 s = 0; s < kScalesA; ++s) {
                        const u32 at = thread + s * kThreads;
                        if (at < Layout::kTileM) shared.scales_a(first + j)[at] = now.a[j][s];
                    }
                }
                const u32 within = i % kTaskBlocks;  // with one block a stage: of the unit's
                if (kStageBlocks > 1 || within == 0) shared.packed_full(warp, packed.stage).wait(packed.phase);
                __syncwarp();
#pragma unroll
                for (u32 e = 0; e < kItems; ++e) {
                    const u32 block = item_block(e);
                    decode(now.b[e], tiles[e], packed.stage, e * kTasks / kItems,
                           kStageBlocks == 1 ? within : block % kTaskBlocks, item_task(e).rows, first + block,
                           block < count);
                }
                fence_async_proxy();
                arrive_warp(full, lane);
                if (kStageBlocks > 1 || within == kTaskBlocks - 1 || i + 1 == walk.k_blocks) {
                    if (loads.valid()) load(weights_map, loads, packed.stage);
                    loads.advance(Layout::kUnitBlocks);
                    packed.advance();
                }
            }
        }
    }
};
