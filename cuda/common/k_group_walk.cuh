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
    u32 groups, not_empty;  // of which so many have rows
    KRange ranges[1];       // of each group; behind them, as u16, the groups, the largest first

    __device__ __forceinline__ u16* by_size() { return reinterpret_cast<u16*>(ranges + groups); }
    __device__ __forceinline__ const u16* by_size() const { return reinterpret_cast<const u16*>(ranges + groups); }

    // By all threads of the CTA; kUnit: what sizes are rounded up to.
    template <u32 kUnit>
    __device__ __forceinline__ void fill(const int* ks, u32 count, u32 k) {
        if (threadIdx.x < 32) find_ranges<kUnit>(ks, count, k, threadIdx.x);
        __syncthreads();
        sort();
        __syncthreads();
    }

    // By one warp.
    template <u32 kUnit>
    __device__ __forceinline__ void find_ranges(const int* ks, u32 count, u32 k, u32 lane) {
        u32 before = 0, with_rows = 0;
#pragma unroll 1
        for (u32 first = 0; first < count; first += 32) {
            const u32 group = first + lane;
            const int given = group < count ? ks[group] : 0;
            u32 end = given > 0 ? min(align_up(static_cast<u32>(given), kUnit), k) : 0;
#pragma unroll
            for (u32 step = 1; step < 32; step *= 2) {
                const u32 left = __shfl_up_sync(0xffffffffu, end, step);
                if (lane >= step) end = min(end + left, k);
            }
            end = min(before + end, k);
            const u32 left = __shfl_up_sync(0xffffffffu, end, 1), begin = lane == 0 ? before : left;
            if (group < count) ranges[group] = {begin, end - begin};
            before = __shfl_sync(0xffffffffu, end, 31);
            with_rows += __popc(__ballot_sync(0xffffffffu, end > begin));
        }
        if (lane == 0) groups = count, not_empty = with_rows;
    }

    // By all threads. A group's place is the number of those before it; where sizes are equal the order is that of K.
    __device__ __forceinline__ void sort() {
        const u32 count = groups;
#pragma unroll 1
        for (u32 group = threadIdx.x; group < count; group += blockDim.x) {
            const u32 size = ranges[group].size;
            u32 place = 0;
#pragma unroll 4
            for (u32 other = 0; other < count; ++other) {
                const u32 theirs = ranges[other].size;
                place += theirs > size || (theirs == size && other < group);
            }
            by_size()[place] = static_cast<u16>(group);
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
    static_assert(!Config::kSwap && Config::kSplitK == 1 && Config::kClusterRows * Config::kClusterColumns == 1 &&
                      Config::kStageBlocks == 1,
                  "tiles differ in K");

    const KGroupTable* table;
    TileOrder<Config::kGroup> order;  // of one group
    u32 first = blockIdx.x, step = gridDim.x, rank = 0;
    // Of the tile whose corner was asked for last: it begins k_shift behind block k_begin.
    u32 k_begin = 0, k_blocks = 0, k_shift = 0;
    u32 last_rows = 0;  // of K, in its last block
    u32 k;

    template <class Shared>
    static __device__ __forceinline__ KGroupTable& table_of(const Shared& shared) {
        return *reinterpret_cast<KGroupTable*>(shared.behind_barriers());
    }

    template <class Shared>
    __device__ __forceinline__ KGroupWalk(const Shared& shared, u32 m, u32 n, u32 k) : table(&table_of(shared)), k(k) {
        order = {ceil_div(m, Config::kRows), ceil_div(n, Config::kColumns)};
    }

    __device__ __forceinline__ u32 count() const {
        return (Config::kHasC ? table->not_empty : table->groups) * order.count();
    }

    __device__ __forceinline__ GroupTile corner(u32 index) {
        const u32 of_group = order.count(), place = index / of_group, group = table->by_size()[place];
        const KRange range = table->ranges[group];
        const bool empty = range.size == 0;
        const u32 begin = empty ? align_up(k, kBlock) : range.begin;
        k_begin = begin / kBlock, k_shift = begin % kBlock;
        k_blocks = empty ? 1 : ceil_div(range.size, kBlock);
        // What lies beyond K is filled with zeros anyway.
        last_rows = empty || begin + range.size == k ? kBlock : range.size - (k_blocks - 1) * kBlock;
        const Tile tile = order[index - place * of_group];
        return {{tile.row * Config::kRows, tile.column * Config::kColumns}, group};
    }

    static constexpr u32 kColumnBox = Config::kColumns;
    static constexpr bool kStacked = false;
    static constexpr u32 group = 0;
    // What other walks have beside: here rows and columns are those of the operands, and all of a tile is D's.
    static constexpr bool kEndsInside = false;
    static __device__ __forceinline__ u32 rows_from(u32) { return Config::kRows; }
    static __device__ __forceinline__ u32 rows_at(u32 row, u32) { return row; }
    static __device__ __forceinline__ u32 columns_at(u32 column, u32) { return column; }
    static __device__ __forceinline__ const float* scales_of_b(const float* scales, u32, u32) { return scales; }
    template <class Out>
    static __device__ __forceinline__ AllRows rows(Out*) {
        return {};
    }
    template <u32 kWarps, class Shared, class Out>
    static __device__ __forceinline__ void fill_up(const Shared&, Out*, u32, u32, u32) {}
};

template <class Config, u32 kBlock>
    requires(Config::kKGrouped)
struct WalkOf<Config, kBlock> {
    using type = KGroupWalk<Config, kBlock>;
};
