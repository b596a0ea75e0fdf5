// How a CTA of a persistent m-grouped GEMM walks its tiles: group by group, within each as a dense GEMM would.
//
// A's groups lie in A and D as rows; B's one behind the other, N rows each.
#pragma once
#include "common/gemm_walk.cuh"
#include "common/group_table.cuh"
#include "common/result_rows.cuh"

template <class Config, u32 kBlock = kBlockK>
struct GroupWalk {
    using Groups = typename Config::Groups;
    static constexpr u32 kSplitK = Config::kSplitK;
    static constexpr u32 kTileM = Config::kSwap ? Config::kColumns : Config::kRows;
    static constexpr u32 kTileN = Config::kSwap ? Config::kRows : Config::kColumns;
    static constexpr u32 kBeside = Config::kClusterColumns;  // tiles of a cluster, which share A
    static_assert(Config::kClusterRows == 1, "tiles below each other may be of several groups");
    static_assert(kBeside == 1 || (!Config::kSwap && kSplitK == 1), "tiles beside each other share rows of A");

    // Rows of A that are wgmma's columns are loaded in such boxes, as many as the group has rows for.
    static constexpr u32 kColumnBox = [] {
        if constexpr (requires { Config::kColumnBox; }) return static_cast<u32>(Config::kColumnBox);
        return static_cast<u32>(Config::kColumns);
    }();
    static constexpr bool kStacked = true;              // B is
    static constexpr bool kEndsInside = !Config::kSwap;  // a tile may have rows that nobody needs

    using OwnPace = GroupWalk;  // a copy, since it only goes on

    const GroupTable* table;
    u32 tiles_n, first, step, rank;
    u32 k_begin, k_blocks;
    u32 at = 0;      // the group's entry
    u32 group, end;  // of the tile whose corner was asked for last

    template <class Shared>
    static __device__ __forceinline__ GroupTable& table_of(const Shared& shared) {
        return *reinterpret_cast<GroupTable*>(shared.base + Shared::Layout::kEnd);
    }

    template <class Shared>
    __device__ __forceinline__ GroupWalk(const Shared& shared, u32 m, u32 n, u32 k)
        : table(&table_of(shared)), tiles_n(tiles_across(n)) {
        constexpr u32 kPerCluster = kBeside * kSplitK;
        rank = kPerCluster > 1 ? cluster_rank() : 0;
        first = blockIdx.x / kPerCluster;
        step = gridDim.x / kPerCluster;
        const u32 all = ceil_div(k, kBlock), part = kBeside > 1 ? 0 : rank;
        k_begin = all * part / kSplitK;
        k_blocks = all * (part + 1) / kSplitK - k_begin;
    }

    // Those beside each other in a group, a cluster's counted once.
    static __device__ __forceinline__ u32 tiles_across(u32 n) { return ceil_div(ceil_div(n, kTileN), kBeside); }

    __device__ __forceinline__ u32 count() const { return table->tiles; }

    // The tile's corner in D, along wgmma's rows and columns. `index` never falls.
    __device__ __forceinline__ Tile corner(u32 index) {
        while (table->entries[at + 1].first_tile <= index) ++at;
        const GroupEntry entry = table->entries[at];
        group = entry.group & ~GroupTable::kScattered, end = entry.end;
        const u32 tiles_m = ceil_div(entry.end - entry.start, kTileM);
        const TileOrder<Config::kGroup> order{Config::kSwap ? tiles_n : tiles_m, Config::kSwap ? tiles_m : tiles_n};
        Tile tile = order[index - entry.first_tile];
        if constexpr (!Config::kSwap) {
            // The lowest tile of a group has fewer rows, and takes less time. From one round of the grid to the next the
            // rows change places, so that it is not always the same CTA's.
            const u32 top = tile.row / Config::kGroup * Config::kGroup, within = tile.row - top;
            tile.row = top + (within + (index - within) / step) % min(tiles_m - top, static_cast<u32>(Config::kGroup));
        }
        const u32 column = tile.column * kBeside + (kBeside > 1 ? rank : 0);
        return {tile.row * Config::kRows + (Config::kSwap ? 0 : entry.start),
                column * Config::kColumns + (Config::kSwap ? entry.start : 0)};
    }

    // Of a tile, from `column` of wgmma's on.
    __device__ __forceinline__ u32 column_boxes(u32 column) const {
        return min(Config::kColumns / kColumnBox, ceil_div(end - column, kColumnBox));
    }

    // Whether 64 of its rows from `row` of D on are of any use.
    __device__ __forceinline__ bool needs(u32 row) const { return row < end; }

    // Of the tile that begins at `row` of D, those that are of use.
    __device__ __forceinline__ u32 rows_from(u32 row) const { return min(end - row, Config::kRows); }

    // From there to the operands' coordinates.
    __device__ __forceinline__ u32 rows_at(u32 row, u32 n) const { return row + (Config::kSwap ? group * n : 0); }
    __device__ __forceinline__ u32 columns_at(u32 column, u32 n) const {
        return column + (Config::kSwap ? 0 : group * n);
    }
    __device__ __forceinline__ const float* scales_of_b(const float* scales, u32 n, u32 k) const {
        return scales + static_cast<u64>(group) * ceil_div(n, kScaleBlock) * ceil_div(k, kBlockK);
    }

    template <class Out>
    __device__ __forceinline__ GroupRows<Out, Groups::kIndexed> rows(Out* d) const {
        const int* index = nullptr;
        if constexpr (Groups::kIndexed) {
            if (table->entries[at].group & GroupTable::kScattered) index = table->index;
        }
        return {d, index, group, end};
    }

    template <u32 kWarps, class Shared, class Out>
    static __device__ __forceinline__ void fill_up(const Shared& shared, Out* d, u32 m, u32 n, u32 warp) {
        fill_up_rows<Groups, kWarps>(table_of(shared), d, m, n, warp);
    }
};

template <class Config, u32 kBlock>
    requires requires { typename Config::Groups; }
struct WalkOf<Config, kBlock> {
    using type = GroupWalk<Config, kBlock>;
};
