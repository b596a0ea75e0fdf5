// How a CTA walks the tiles of products that each sum over a group of rows of K, whose sizes are in device memory.
#pragma once
#include "common/barrier.cuh"
#include "common/gemm_layout.cuh"
#include "common/gemm_walk.cuh"
#include "common/tile_order.cuh"
#include "common/types.cuh"

// Part of K: of one group.
struct KRange {
    u32 begin, size;
};

// In shared memory, behind the barriers. The groups lie one behind the other from the beginning of K on; negative sizes
// count as 0, and what lies beyond K is cut off: so no size leads out of the operands.
struct KGroupTable {
    KRange* ranges;   // by group
    u16* by_size;     // the groups, the largest first
    u32* not_empty;   // how many are

    __device__ __forceinline__ KGroupTable(void* base, u32 groups)
        : ranges(reinterpret_cast<KRange*>(base)),
          by_size(reinterpret_cast<u16*>(ranges + groups)),
          not_empty(reinterpret_cast<u32*>(by_size + align_up(groups, 2))) {}

    // By all threads of the CTA; kUnit: what sizes are rounded up to.
    template <u32 kUnit>
    __device__ __forceinline__ void fill(const int* ks, u32 groups, u32 k) const {
        if (threadIdx.x < 32) find_ranges<kUnit>(ks, groups, k, threadIdx.x);
        __syncthreads();
        sort(groups);
        __syncthreads();
    }

    // By one warp.
    template <u32 kUnit>
    __device__ __forceinline__ void find_ranges(const int* ks, u32 groups, u32 k, u32 lane) const {
        u32 before = 0, count = 0;
#pragma unroll 1
        for (u32 first = 0; first < groups; first += 32) {
            const u32 group = first + lane;
            const int given = group < groups ? ks[group] : 0;
            u32 end = given > 0 ? min(align_up(static_cast<u32>(given), kUnit), k) : 0;
#pragma unroll
            for (u32 step = 1; step < 32; step *= 2) {
                const u32 left = __shfl_up_sync(0xffffffffu, end, step);
                if (lane >= step) end = min(end + left, k);
            }
            end = min(before + end, k);
            const u32 left = __shfl_up_sync(0xffffffffu, end, 1), begin = lane == 0 ? before : left;
            if (group < groups) ranges[group] = {begin, end - begin};
            before = __shfl_sync(0xffffffffu, end, 31);
            count += __popc(__ballot_sync(0xffffffffu, end > begin));
        }
        if (lane == 0) *not_empty = count;
    }

    // By all threads. A group's place is the number of those before it; where sizes are equal the order is that of K.
    __device__ __forceinline__ void sort(u32 groups) const {
#pragma unroll 1
        for (u32 group = threadIdx.x; group < groups; group += blockDim.x) {
            const u32 size = ranges[group].size;
            u32 place = 0;
#pragma unroll 4
            for (u32 other = 0; other < groups; ++other) {
                const u32 theirs = ranges[other].size;
                place += theirs > size || (theirs == size && other < group);
            }
            by_size[place] = static_cast<u16>(group);
        }
    }
};

// All tiles of the largest group come first, those of the smallest last: as tiles go round, no CTA is more than one tile
// of the largest group behind another, whatever the sizes are.
//
// A group without rows is given one block beyond K, which TMA fills with zeros; where C is added to what it is, nothing
// is to be done for it.
template <class Config, u32 kBlock>
struct KGroupWalk {
    static constexpr bool kKGrouped = true;
    static_assert(!Config::kSwap && Config::kSplitK == 1 && Config::kClusterRows * Config::kClusterColumns == 1 &&
                      Config::kStageBlocks == 1,
                  "tiles differ in K");

    KGroupTable table;
    TileOrder<Config::kGroup> order;  // of one group
    u32 tiles, k;
    u32 first = blockIdx.x, step = gridDim.x, rank = 0;
    u32 k_begin = 0, k_blocks = 0;  // of the tile
    u32 last_rows = 0;              // of K, in its last block
    bool empty = false;

    __device__ __forceinline__ KGroupWalk(KGroupTable table, u32 groups, u32 m, u32 n, u32 k) : table(table), k(k) {
        order = {ceil_div(m, Config::kRows), ceil_div(n, Config::kColumns)};
        tiles = (Config::kHasC ? *table.not_empty : groups) * order.count();
    }

    __device__ __forceinline__ u32 count() const { return tiles; }
    __device__ __forceinline__ u32 at_k(u32 i) const { return k_begin + i * kBlock; }

    // Goes to a tile: its corner, and its part of K.
    __device__ __forceinline__ GroupTile corner(u32 index) {
        const u32 of_group = order.count(), place = index / of_group, group = table.by_size[place];
        const KRange range = table.ranges[group];
        empty = range.size == 0;
        k_begin = empty ? k : range.begin;
        k_blocks = empty ? 1 : ceil_div(range.size, kBlock);
        // What lies beyond K is filled with zeros anyway.
        last_rows = empty || range.begin + range.size == k ? kBlock : range.size - (k_blocks - 1) * kBlock;
        const Tile tile = order[index - place * of_group];
        return {{tile.row * Config::kRows, tile.column * Config::kColumns}, group};
    }
};
