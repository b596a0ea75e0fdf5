// How a CTA of a persistent GEMM walks its tiles, its part of K and its pipeline: the same for producer and math warps.
#pragma once
#include "common/barrier.cuh"
#include "common/gemm_layout.cuh"
#include "common/tile_order.cuh"
#include "common/types.cuh"

template <class Config, u32 kBlock = kBlockK>
struct GemmWalk {
    static constexpr u32 kCluster = Config::kClusterRows * Config::kClusterColumns, kSplitK = Config::kSplitK;
    static constexpr bool kKGrouped = false;  // one range of K for all tiles

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

    __device__ __forceinline__ u32 count() const { return order.count(); }

    // Where block `i` of this CTA's part of K begins.
    __device__ __forceinline__ u32 at_k(u32 i) const { return (k_begin + i) * kBlock; }

    // The tile's corner along wgmma's rows and columns, in elements.
    __device__ __forceinline__ Tile corner(u32 index) const {
        const Tile tile = order[index];
        const u32 row = tile.row * Config::kClusterRows + (Config::kClusterRows > 1 ? rank : 0);
        const u32 column = tile.column * Config::kClusterColumns + (Config::kClusterColumns > 1 ? rank : 0);
        return {row * Config::kRows, column * Config::kColumns};
    }
};

template <u32 kStages>
struct Pipeline {
    u32 stage = 0, phase = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == kStages) stage = 0, phase ^= 1;
    }
};
