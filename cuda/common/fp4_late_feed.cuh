// The feed of `Fp4LateLoop`: of a tile whose rows of B each have one scale for all of K, nothing but values is written for
// a block, and the exponents of two blocks are read at once. Other tiles are fed as ever.
#pragma once
#include "common/fp4_feed.cuh"

__device__ __forceinline__ uint4 load_shared_16_bytes(u32 address) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(address) : "memory");
    return x;
}

__device__ __forceinline__ void store_shared_16_bytes(u32 address, uint4 x) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

template <class Config>
struct Fp4LateFeed : Fp4Feed<Config> {
    using Feed = Fp4Feed<Config>;
    using typename Feed::Cursor;
    using typename Feed::Layout;
    using typename Feed::Scales;
    using Feed::lane, Feed::shared, Feed::thread, Feed::walk, Feed::warp;
    static constexpr u32 kFeedBarrier = 3;
    static_assert(Config::kTileScales && Feed::kStageBlocks == 1 && Feed::kTasks == 1 && Layout::kTaskRows == 32 &&
                      Feed::kTaskBlocks == 2 && Config::kSplitK == 1,
                  "a lane has a row, whose exponents are u32 a block");

    __device__ __forceinline__ u32 row() const { return warp * 32 + lane; }

    // What the next block needs of the scales, and where it comes from: of A, of each of this thread's rows; of B the
    // exponents of two blocks.
    struct Ahead {
        const float* from_a;
        const uint2* from_b;
        float a[Feed::kScalesA];
        bool has[Feed::kScalesA];
        uint2 b;
    };

    // A row of exponents has room for an even number.
    __device__ __forceinline__ void start(Ahead& ahead, const Cursor& at) const {
        ahead.from_a = this->scales_a + at.m0 + thread;
        ahead.from_b = reinterpret_cast<const uint2*>(this->scales_of(at, at.n0 + row(), 0));
#pragma unroll
        for (u32 s = 0; s < Feed::kScalesA; ++s) ahead.has[s] = at.m0 + thread + s * Feed::kThreads < this->m;
    }

    __device__ __forceinline__ void read(Ahead& ahead, bool exponents) const {
#pragma unroll
        for (u32 s = 0; s < Feed::kScalesA; ++s) {
            if (ahead.has[s]) ahead.a[s] = ahead.from_a[s * Feed::kThreads];
        }
        ahead.from_a += this->m;
        if (exponents) ahead.b = *ahead.from_b++;
    }

    // Loads a unit into `slot`. Its scales are in the L2 cache, since `Tile::begin` read them.
    __device__ __forceinline__ void load(const TensorMap& weights, const Cursor& at, u32 slot) const {
        Barrier& full = shared.packed_full(warp, slot);
        u8* const to = shared.packed(warp * Config::kPackedStages + slot);
        if (lane == 0) full.arrive_expect_bytes(Layout::kTaskBytes);
        if (lane == 0) tma_load_2d(to, weights, full, at.block * (kBlockK / 2),
                                  at.of_group + at.n0 + warp * 32);
    }

    // `from`, `to`: in shared memory, this lane's packed values of the block and its row, both at the place of their first
    // 16 bytes under the swizzle, from where an exclusive or leads to the others.
    static __device__ __forceinline__ void decode(u32 from, u32 to, u32 exponents, Fp4Table table) {
        uint4 packed[4];  // read before anything is written, or the compiler would keep them in turns
#pragma unroll
        for (u32 i = 0; i < 4; ++i) packed[i] = load_shared_16_bytes(from ^ i * 16);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const Fp4Table mine = table.times_power_of_two(__byte_perm(exponents, 0, 0x4440 + i));
            const uint2 a = decode_fp4(packed[i].x, mine), b = decode_fp4(packed[i].y, mine);
            const uint2 c = decode_fp4(packed[i].z, mine), d = decode_fp4(packed[i].w, mine);
            store_shared_16_bytes(to ^ i * 32, make_uint4(a.x, a.y, b.x, b.y));
            store_shared_16_bytes(to ^ (i * 32 + 16), make_uint4(c.x, c.y, d.x, d.y));
        }
    }

    __device__ __forceinline__ void run(const TensorMap& weights_map, const TensorMap& tokens_map) const {
        constexpr u32 kPackedStages = Config::kPackedStages;
        Cursor loads(walk, this->n), next(walk, this->n);
#pragma unroll 1
        for (u32 slot = 0; slot < kPackedStages; ++slot, loads.advance(2)) {
            if (loads.valid()) load(weights_map, loads, slot);
        }
        Ahead ahead;
        start(ahead, next);
        read(ahead, true);
        const u32 key = lane % 8 * 16;
        const u32 from = shared_address(shared.packed(warp * kPackedStages)) + lane * 128 + key;
        const u32 to = shared_address(shared.weights(0)) + row() * kBlockK + key;
        Pipeline<Config::kStages> pipe;
        Pipeline<kPackedStages> packed;
        for (u32 index = walk.first; index < walk.count(); index += walk.step) {
            const u32 m0 = next.m0;
            typename Scales::Tile tile;
            tile.begin(this->scales_of(next, next.n0 + row(), 0), walk.k_blocks);
            const bool all = named_barrier_all(kFeedBarrier, Feed::kThreads, tile.common >= 0);
            const bool late = __any_sync(0xffffffff, all);  // it is so for all, but the compiler should know it
            const Fp4Table table = Fp4Table{}.times_power_of_two(-tile.common);  // modulo 2^32
            uint2 exponents;
#pragma unroll 1
            for (u32 i = 0; i < walk.k_blocks; ++i, pipe.advance()) {
                const u32 within = i % 2;
                if (within == 0) exponents = ahead.b;
                float a[Feed::kScalesA];
#pragma unroll
                for (u32 s = 0; s < Feed::kScalesA; ++s) a[s] = ahead.a[s];
                next.advance(1);
                if (next.valid()) {
                    if (next.block == 0) start(ahead, next);
                    read(ahead, next.block % 2 == 0);
                }
                Barrier& full = shared.full(pipe.stage);
                shared.empty(pipe.stage).wait(pipe.phase ^ 1);
                if (thread == 0) {
                    full.arrive_expect_bytes(Layout::kTokensBytes);
                    tma_load_2d(shared.tokens(pipe.stage), tokens_map, full, i * kBlockK, m0);
                }
#pragma unroll
                for (u32 s = 0; s < Feed::kScalesA; ++s) shared.scales_a(pipe.stage)[thread + s * Feed::kThreads] = a[s];
                if (within == 0) shared.packed_full(warp, packed.stage).wait(packed.phase);
                __syncwarp();
                const u32 raw = within ? exponents.y : exponents.x;
                if (late) {
                    decode((from + packed.stage * Layout::kTaskBytes) ^ within * 64, to + pipe.stage * Layout::kBlockBytes,
                           raw, table);
                    if (i == 0 && lane == 0) shared.common(pipe.stage)[warp] = kCommonToTile;
                    if (i + 1 == walk.k_blocks) shared.scales_b(pipe.stage)[row()] = ue8m0_value(tile.common);
                } else {
                    Feed::decode(raw, tile, packed.stage, 0, within, warp, pipe.stage, true);
                }
                fence_async_proxy();
                arrive_warp(full, lane);
                if (within == 1 || i + 1 == walk.k_blocks) {
                    if (loads.valid()) load(weights_map, loads, packed.stage);
                    loads.advance(2);
                    packed.advance();
                }
            }
        }
    }
};

template <class Config>
struct Fp4FeedOf {
    using type = Fp4Feed<Config>;
};

template <class Config>
    requires(Config::kUnroll > 0 && !requires { Config::kFeedUnroll; })
struct Fp4FeedOf<Config> {
    using type = Fp4LateFeed<Config>;
};
