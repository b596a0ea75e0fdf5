// A walk for rows that end within a row of tiles: warpgroups whose rows lie beyond them multiply nothing, so that such a
// tile takes less time, and a CTA that has one gets another where one without has none.
#pragma once
#include "common/gemm_walk.cuh"

template <class Config, u32 kBlock>
struct HalfTileWalk : GemmWalk<Config, kBlock> {
    using Base = GemmWalk<Config, kBlock>;
    static_assert(!Config::kSwap && Base::kSplitK == 1 && Base::kCluster == 1, "every CTA walks alone");

    u32 end;  // of the rows

    template <class Shared>
    __device__ __forceinline__ HalfTileWalk(const Shared&, u32 m, u32 n, u32 k) : Base(m, n, k), end(m) {}

    // The lowest tiles come last. CTA i of n has tile i of a round, but tile n - 1 - i of the last whole round, if tiles
    // are left for another: so those who take them had lower tiles before.
    __device__ __forceinline__ Tile corner(u32 index) const {
        const u32 rest = this->count() % this->step, begin = index - index % this->step;
        const bool turns = rest > 0 && begin + this->step + rest == this->count();
        return Base::corner(turns ? 2 * begin + this->step - 1 - index : index);
    }

    static constexpr bool kEndsInside = true;
    __device__ __forceinline__ bool needs(u32 row) const { return row < end; }
};

template <class Config, u32 kBlock>
    requires(Config::kHalfTiles)
struct WalkOf<Config, kBlock> {
    using type = HalfTileWalk<Config, kBlock>;
};
