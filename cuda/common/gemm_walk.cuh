// How a CTA of a persistent GEMM walks its tiles, its part of K and its pipeline: the same for producer and math warps.
#pragma once
#include "common/barrier.cuh"
#include "common/gemm_layout.cuh"
#include "common/result_rows.cuh"
#include "common/tile_order.cuh"
#include "common/types.cuh"

template <class Config, u32 kBlock = kBlockK>
struct GemmWalk {
    static constexpr u32 kCluster = Config::kClusterRows * Config::kClusterColumns, kSplitK = Config::kSplitK;

    // What each has of a walk who goes through it at a pace of its own.
    using OwnPace = const GemmWalk&;

    TileOrder<Config::kGroup> order;
    u32 first, step, rank;
    u32 k_begin, k_blocks;

    __device__ __forceinline__ GemmWalk(u32 m, u32 n, u32 k) {
        constexpr u32 kPerCluster = kCluster * kSplitK;
        rank = kPerCluster > 1 ? cluster_rank() : 0;
        const u32 rows = ceil_div(Config::kSwap ? n : m, Config::kRows);
        const u32 columns = ceil_div(Config::kSwap ? m : n, Config::kColumns);
        order = {ceil_div(rows, Config::kClusterRows), ceil_div(columns, Config::kClusterColumns)};
        first = blockIdx.x / kPerCluster;
        step = gridDim.x / kPerCluster;
        const u32 all = ceil_div(k, kBlock), part = kSplitK > 1 ? rank : 0;
        k_begin = all * part / kSplitK;
        k_blocks = all * (part + 1) / kSplitK - k_begin;
    }

    template <class Shared>
    __device__ __forceinline__ GemmWalk(const Shared&, u32 m, u32 n, u32 k) : GemmWalk(m, n, k) {}

    __device__ __forceinline__ u32 count() const { return order.count(); }

    // The tile's corner along wgmma's rows and columns, in elements.
    __device__ __forceinline__ Tile corner(u32 index) const {
        const Tile tile = order[index];
        const u32 row = tile.row * Config::kClusterRows + (Config::kClusterRows > 1 ? rank : 0);
        const u32 column = tile.column * Config::kClusterColumns + (Config::kClusterColumns > 1 ? rank : 0);
        return {row * Config::kRows, column * Config::kColumns};
    }

    static constexpr u32 kColumnBox = Config::kColumns;  // that are loaded at once
    static constexpr bool kStacked = false;
    static constexpr u32 group = 0;
    static constexpr bool kEndsInside = false;
    static __device__ __forceinline__ u32 rows_from(u32) { return Config::kRows; }

    // Where that is in the operands, and what of the tile is stored in D.
    static __device__ __forceinline__ u32 rows_at(u32 row, u32) { return row; }
    static __device__ __forceinline__ u32 columns_at(u32 column, u32) { return column; }
    static __device__ __forceinline__ const float* scales_of_b(const float* scales, u32, u32) { return scales; }
    template <class Out>
    static __device__ __forceinline__ AllRows rows(Out*) {
        return {};
    }

    // For kWarps warps that have nothing else to do: rows of D that no tile has.
    template <u32 kWarps, class Shared, class Out>
    static __device__ __forceinline__ void fill_up(const Shared&, Out*, u32, u32, u32) {}
};

// The walk of a kernel; group_walk.cuh has that of kernels whose Config has `Groups`.
template <class Config, u32 kBlock = kBlockK>
struct WalkOf {
    using type = GemmWalk<Config, kBlock>;
};

template <u32 kStages>
struct Pipeline {
    u32 stage = 0, phase = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == kStages) stage = 0, phase ^= 1;
    }
};
