// Boxes of a result, which is one matrix (Tile) or several, one behind the other (GroupTile).
#pragma once
#include "common/tile_order.cuh"
#include "common/tma.cuh"

__device__ __forceinline__ void load_result_box(Tile, void* to, const TensorMap& map, Barrier& barrier, u32 column,
                                                u32 row, u64 policy) {
    tma_load_2d(to, map, barrier, column, row, policy);
}

__device__ __forceinline__ void load_result_box(GroupTile tile, void* to, const TensorMap& map, Barrier& barrier,
                                                u32 column, u32 row, u64 policy) {
    tma_load_3d(to, map, barrier, column, row, tile.group, policy);
}

// With or without a policy of L2.
template <class... Policy>
__device__ __forceinline__ void store_result_box(Tile, const TensorMap& map, const void* from, u32 column, u32 row,
                                                 Policy... policy) {
    tma_store_2d(map, from, column, row, policy...);
}

template <class... Policy>
__device__ __forceinline__ void store_result_box(GroupTile tile, const TensorMap& map, const void* from, u32 column,
                                                 u32 row, Policy... policy) {
    tma_store_3d(map, from, column, row, tile.group, policy...);
}

__device__ __forceinline__ void add_result_box(Tile, const TensorMap& map, const void* from, u32 column, u32 row) {
    tma_reduce_add_2d(map, from, column, row);
}

__device__ __forceinline__ void add_result_box(GroupTile tile, const TensorMap& map, const void* from, u32 column,
                                               u32 row) {
    tma_reduce_add_3d(map, from, column, row, tile.group);
}

// Where the result that the tile is part of begins.
template <class Out>
__device__ __forceinline__ Out* result_of(Tile, Out* results, u32, u32) {
    return results;
}

template <class Out>
__device__ __forceinline__ Out* result_of(GroupTile tile, Out* results, u32 m, u32 n) {
    return results + static_cast<u64>(tile.group) * m * n;
}
