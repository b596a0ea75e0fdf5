// The order in which a persistent grid walks the tiles of an output, so that concurrent tiles share operands in L2.
#pragma once
#include "common/types.cuh"

struct Tile {
    u32 row, column;
};

// Of one of the results that lie one behind the other: [groups, M, N].
struct GroupTile : Tile {
    u32 group;
};

// Columns of kGroup rows of tiles: in each group the row changes fastest, so that a wave of tiles is about square.
template <u32 kGroup>
struct TileOrder {
    u32 rows, columns;

    __device__ __forceinline__ u32 count() const { return rows * columns; }

    __device__ __forceinline__ Tile operator[](u32 index) const {
        const u32 first = index / (kGroup * columns) * kGroup;
        const u32 height = min(rows - first, kGroup);
        const u32 within = index - first * columns;
        return {first + within % height, within / height};
    }
};
