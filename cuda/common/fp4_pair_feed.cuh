// The feed of `Fp4LateLoop`, both blocks of K of a packed unit in straight code. Of a tile whose rows of B each have one scale
// for all of K, nothing but values is written for a block; other tiles are decoded as by `Fp4Feed`.
//
// Instructions here take register ports from the products, so there are few, and the warps wait for little:
// - What a lane reads and writes lies at a few places under the swizzle, kept in registers, behind an address that all
//   lanes have in common: no arithmetic but the decoding itself.
// - Global memory is read right behind a fence, which would wait for it in front, and used a block of K later. The
//   exponents of two blocks are read at once.
//
// A lane has a row of weights, whose exponents it reads. With kShares = 2 it decodes half of one (fp4_share.cuh).
#pragma once
#include "common/fp4_feed.cuh"
#include "common/fp4_share.cuh"

__device__ __forceinline__ uint4 load_shared_16_bytes(u32 address) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(address) : "memory");
    return x;
}

__device__ __forceinline__ void store_shared_16_bytes(u32 address, uint4 x) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

template <class Config>
struct Fp4PairFeed : Fp4Feed<Config> {
    using Feed = Fp4Feed<Config>;
    using typename Feed::Cursor, typename Feed::Layout, typename Feed::Scales, typename Feed::Raw;
    using Share = Fp4Share<Config>;
    static constexpr u32 kScalesA = Feed::kScalesA, kThreads = Feed::kThreads, kPackedStages = Config::kPackedStages;
    static constexpr u32 kShares = Layout::kShares;
    static constexpr u32 kReads = 4 / kShares, kWrites = 8 / kShares;  // of 16 bytes, a lane's of a block
    static constexpr u32 kFeedBarrier = 3;
    static_assert(Layout::kTileM % kThreads == 0 && Layout::kTaskRows == Share::kRows && Feed::kTaskBlocks == 2 &&
                      Feed::kTasks == 1 && Config::kSplitK == 1,
                  "a lane has a row, whose exponents are u32 a block");

    // Where a tile is fed: how its rows are decoded, and what the next block, for B the next unit, needs of the scales.
    struct Source {
        typename Scales::Tile tile;
        Fp4Table table;  // of the exponent 0, times the inverse of the tile's scale, of the row that the lane decodes
        u32 m0;
        bool has[kScalesA];  // of this thread's rows of A
        const float* from_a;
        float a[kScalesA];
        const uint2* from_b;
        uint2 b;
    };

    struct Rings {
        Pipeline<Config::kStages> decoded;
        Pipeline<kPackedStages> packed;
        u32 from[2 * kReads], to[kWrites];  // the lane's places in a unit's rows, in a block's
    };

    __device__ __forceinline__ u32 row() const { return this->warp * 32 + this->lane; }
    __device__ __forceinline__ Share share() const { return {this->walk.rank, this->warp, this->lane}; }

    // Loads a unit into `slot`. Its scales are in the L2 cache, since `range` read them.
    __device__ __forceinline__ void load(const TensorMap& weights, const Cursor& at, u32 slot) const {
        Barrier& full = this->shared.packed_full(this->warp, slot);
        u8* const to = this->shared.packed(this->warp * kPackedStages + slot);
        if (this->lane == 0) full.arrive_expect_bytes(Layout::kTaskBytes);
        if constexpr (Config::kBLeavesFirst) {
            if (this->lane == 0) tma_load_2d(to, weights, full, at.block * (kBlockK / 2),
                                             at.of_group + at.n0 + share().first_row(), l2_evict_first());
        } else {
            if (this->lane == 0) tma_load_2d(to, weights, full, at.block * (kBlockK / 2),
                                             at.of_group + at.n0 + share().first_row());
        }
    }

    __device__ __forceinline__ void read_a(Source& source) const {
#pragma unroll
        for (u32 s = 0; s < kScalesA; ++s) {
            if (source.has[s]) source.a[s] = source.from_a[s * kThreads];
        }
        source.from_a += this->m;
    }

    // `Tile::begin`, with eight reads under way at once, the last of them repeated instead of a rest read one by one:
    // at the first tile all wait for this.
    __device__ __forceinline__ typename Scales::Tile range(const Raw* exponents) const {
        constexpr u32 kReads = 8;
        const u32 count = this->walk.k_blocks, end = (count - 1) / 4;
        typename Scales::Range range;
#pragma unroll 1
        for (u32 i = 0; i <= end; i += kReads) {
            uint4 x[kReads];
#pragma unroll
            for (u32 j = 0; j < kReads; ++j) x[j] = reinterpret_cast<const uint4*>(exponents)[min(i + j, end)];
#pragma unroll
            for (u32 j = 0; j < kReads; ++j) {
                const u32 left = count - min(i + j, end) * 4;
                range.add(x[j].x), range.add(left > 1 ? x[j].y : x[j].x);
                range.add(left > 2 ? x[j].z : x[j].x), range.add(left > 3 ? x[j].w : x[j].x);
            }
        }
        return {range.common()};
    }

    // A row of exponents has room for a multiple of four.
    __device__ __forceinline__ bool start(Source& source, Tile corner, u32 of_group) const {
        const u32 weights = of_group + min(corner.column + row(), this->n - 1);
        const Raw* const exponents = this->scales_b + static_cast<u64>(weights) * this->row_scales;
        source.m0 = corner.row;
        source.from_a = this->scales_a + source.m0 + this->thread;
        source.from_b = reinterpret_cast<const uint2*>(exponents);
#pragma unroll
        for (u32 s = 0; s < kScalesA; ++s) source.has[s] = source.m0 + this->thread + s * kThreads < this->m;
        read_a(source);
        source.b = *source.from_b++;
        source.tile = range(exponents);
        source.table = Fp4Table{}.times_power_of_two(-share().of_row(share().rank, source.tile.common));  // modulo 2^32
        const bool all = named_barrier_all(kFeedBarrier, kThreads, source.tile.common >= 0);
        return __any_sync(0xffffffff, all);  // it is so for all, but the compiler should know it
    }

    template <u32 kWithin>
    __device__ __forceinline__ void decode(const Rings& rings, u32 exponents, Fp4Table table) const {
        const u32 from = shared_address(this->shared.packed(this->warp * kPackedStages + rings.packed.stage));
        const u32 to = shared_address(this->shared.weights(rings.decoded.stage)) + share().first_row() * kBlockK;
        uint4 packed[kReads];  // read before anything is written, or the compiler would keep them in turns
#pragma unroll
        for (u32 i = 0; i < kReads; ++i) packed[i] = load_shared_16_bytes(from + rings.from[kWithin * kReads + i]);
#pragma unroll
        for (u32 i = 0; i < kReads; ++i) {
            const Fp4Table mine = table.times_power_of_two(__byte_perm(exponents, 0, 0x4440 + i));
            const uint2 a = decode_fp4(packed[i].x, mine), b = decode_fp4(packed[i].y, mine);
            const uint2 c = decode_fp4(packed[i].z, mine), d = decode_fp4(packed[i].w, mine);
            store_shared_16_bytes(to + rings.to[2 * i], make_uint4(a.x, a.y, b.x, b.y));
            store_shared_16_bytes(to + rings.to[2 * i + 1], make_uint4(c.x, c.y, d.x, d.y));
        }
    }

    // Block `i` of the tile's K, block kWithin of its unit; `last`: of the tile.
    template <bool kLate, u32 kWithin>
    __device__ __forceinline__ void block(const TensorMap& tokens_map, Source& source, Rings& rings, u32 i,
                                          u32 exponents, bool last) const {
        const auto& shared = this->shared;
        const u32 stage = rings.decoded.stage;
        Barrier& full = shared.full(stage);
        shared.empty(stage).wait(rings.decoded.phase ^ 1);
        if (this->thread == 0) {
            full.arrive_expect_bytes(Layout::kTokensBytes + (kShares - 1) * Share::kBytes);
            tma_load_2d(shared.tokens(stage), tokens_map, full, i * kBlockK, source.m0);
        }
        if (kWithin == 0) shared.packed_full(this->warp, rings.packed.stage).wait(rings.packed.phase);
        __syncwarp();
        if constexpr (kLate) {
            decode<kWithin>(rings, share().of_part(exponents), source.table);
            if (kWithin == 0 && i == 0 && this->lane == 0) {
#pragma unroll
                for (u32 s = 0; s < kShares; ++s) shared.common(stage)[this->warp * kShares + s] = kCommonToTile;
            }
            if (last) shared.scales_b(stage)[this->row()] = ue8m0_value(source.tile.common);
        } else {
#pragma unroll 1
            for (u32 s = 0; s < kShares; ++s)  // the scales of all rows
                Feed::decode(share().of_row(s, exponents), {share().of_row(s, source.tile.common)}, rings.packed.stage, 0,
                             kWithin, this->warp * kShares + s, stage, true, s == share().rank);
        }
        float* const scales = shared.scales_a(stage) + this->thread;
#pragma unroll
        for (u32 s = 0; s < kScalesA; ++s) scales[s * kThreads] = source.a[s];
        fence_async_proxy();
        share().send(shared.weights(stage), full);
        arrive_warp(full, this->lane);
        if (!last) read_a(source);
        rings.decoded.advance();
    }

    template <bool kLate>
    __device__ __forceinline__ void feed(const TensorMap& weights_map, const TensorMap& tokens_map, Source& source,
                                         Rings& rings, Cursor& loads) const {
#pragma unroll 1
        for (u32 i = 0; i < this->walk.k_blocks; i += 2) {
            const u32 left = this->walk.k_blocks - i;
            const uint2 exponents = source.b;
            block<kLate, 0>(tokens_map, source, rings, i, exponents.x, left == 1);
            if (left > 2) source.b = *source.from_b++;
            if (left > 1) block<kLate, 1>(tokens_map, source, rings, i + 1, exponents.y, left == 2);
            if (loads.valid()) this->load(weights_map, loads, rings.packed.stage);
            loads.advance(2);
            rings.packed.advance();
        }
    }

    __device__ __forceinline__ void run(const TensorMap& weights_map, const TensorMap& tokens_map) const {
        Cursor loads(this->walk, this->n);
#pragma unroll 1
        for (u32 slot = 0; slot < kPackedStages; ++slot, loads.advance(2)) {
            if (loads.valid()) this->load(weights_map, loads, slot);
        }
        Rings rings;
        const u32 of_share = this->lane % Share::kRows, part = this->lane / Share::kRows;
        const auto place = [&](u32 piece) { return of_share * kBlockK + ((of_share % 8) ^ piece) * 16; };
#pragma unroll
        for (u32 i = 0; i < 2 * kReads; ++i) rings.from[i] = place(i / kReads * 4 + part * kReads + i % kReads);
#pragma unroll
        for (u32 i = 0; i < kWrites; ++i) rings.to[i] = place(part * kWrites + i);
        typename Feed::Walk::OwnPace walk = this->walk;
        for (u32 index = walk.first; index < walk.count(); index += walk.step) {
            const Tile corner = walk.corner(index);
            Source source;
            if (start(source, corner, walk.columns_at(0, this->n))) {
                feed<true>(weights_map, tokens_map, source, rings, loads);
            } else {
                feed<false>(weights_map, tokens_map, source, rings, loads);
            }
        }
    }
};

template <class Config>
struct Fp4FeedOf {
    using type = Fp4Feed<Config>;
};

template <class Config>
    requires(Fp4Layout<Config>::kPairs)
struct Fp4FeedOf<Config> {
    using type = Fp4PairFeed<Config>;
};
