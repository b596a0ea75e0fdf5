// The warps that feed a GEMM whose FP4 weights stay packed in shared memory: one fetches weights, tokens and the tokens'
// scales, the others write the scales of 64 rows of weights each.
//
// With kGroupsByLanes tokens lie in an order in which all that a thread decodes of a row lies together in memory. wgmma takes
// four bytes at a time from each of four lanes, so such fours change places, of the 32 that a block of K has. TMA moves no
// less than 16 bytes, so they come by `cp.async`.
#pragma once
#include "common/fp4_swapped_layout.cuh"
#include "common/gemm_walk.cuh"
#include "common/tma.cuh"

template <class Config>
struct Fp4SwappedFeed {
    using Layout = Fp4SwappedLayout<Config>;
    using Shared = Fp4SwappedMemory<Config>;
    using Walk = typename WalkOf<Config, Layout::kUnitK>::type;
    using Pipeline = ::Pipeline<Config::kStages>;
    using Raw = typename Config::Scales::Raw;
    using Rows = RowFold<typename Config::Scales>;
    static constexpr u32 kUnitBlocks = Layout::kUnitBlocks;
    static constexpr bool kGroupsByLanes = Config::kGroupsByLanes;

    // The scales of a row's unit.
    struct alignas(sizeof(Raw) == 4 ? 8 : 16) RawUnit {
        Raw blocks[kUnitBlocks];
    };

    const Shared& shared;
    const Walk walk;
    u32 m, n, k, blocks;  // of all of K

    __device__ __forceinline__ u32 blocks_of(u32 unit) const {
        return min(kUnitBlocks, blocks - (walk.k_begin + unit) * kUnitBlocks);
    }

    // Run by a warp, of which one lane asks for weights, by TMA.
    __device__ __forceinline__ void load_tiles(const TensorMap& weights_map, const Tokens<Config>& tokens,
                                               const float* scales_a, u32 lane) const {
        const u64 policy = l2_evict_first();
        const bool elected = elect_one();
        typename Walk::OwnPace walk = this->walk;
        Pipeline pipe;
        for (u32 index = walk.first; index < walk.count(); index += walk.step) {
            const Tile corner = walk.corner(index);
            const u32 row = walk.rows_at(corner.row, n);
#pragma unroll 1
            for (u32 i = 0; i < walk.k_blocks; ++i, pipe.advance()) {
                const u32 at_k = (walk.k_begin + i) * Layout::kUnitK;
                shared.empty(pipe.stage).wait(pipe.phase ^ 1);
                Barrier& full = shared.full(pipe.stage);
                const u32 boxes = kGroupsByLanes ? 0 : blocks_of(i);
                if (elected) {
                    full.arrive_expect_bytes(Layout::kWeightsBytes + boxes * Layout::kTokensBytes);
                    if constexpr (Config::kBLeavesFirst) {
                        tma_load_2d(shared.weights(pipe.stage), weights_map, full, at_k / 2, row, policy);
                    } else {
                        tma_load_2d(shared.weights(pipe.stage), weights_map, full, at_k / 2, row);
                    }
                }
                const u32 end = walk.rows(static_cast<typename Config::Out*>(nullptr)).bound(m);
                const u32 count = min(Config::kColumns, end - corner.column);
                if constexpr (kGroupsByLanes) {
                    copy_tokens(tokens, pipe.stage, at_k, corner.column, count, lane);
                } else if (elected) {
#pragma unroll 1
                    for (u32 j = 0; j < boxes; ++j)
                        tma_load_2d(shared.tokens(pipe.stage, j), tokens, full, at_k + j * kBlockK, corner.column);
                }
                copy_token_scales(scales_a, pipe.stage, at_k, corner.column, count, lane);
                full.arrive_after_async_copies();
            }
        }
        async_copy_wait_all();
    }

    // Of a unit. Beyond the last token nobody reads.
    __device__ __forceinline__ void copy_token_scales(const float* scales_a, u32 stage, u32 at_k, u32 m0, u32 count,
                                                      u32 lane) const {
        scales_a += static_cast<u64>(at_k / kBlockK) * m + m0;
#pragma unroll
        for (u32 j = 0; j < kUnitBlocks; ++j) {
            if (at_k + j * kBlockK >= k) break;
#pragma unroll
            for (u32 column = lane; column < Config::kColumns; column += 32) {
                if (column < count) async_copy<4>(shared.token_scales(stage, j) + column, scales_a + j * m + column);
            }
        }
    }

    // A lane copies the four bytes of K of its number, of each token, to the eighth `lane % 8` of a row of 128 bytes, the
    // quarter `lane / 8` of that.
    __device__ __forceinline__ void copy_tokens(const u8* tokens, u32 stage, u32 at_k, u32 m0, u32 count, u32 lane) const {
        const u32 to = shared_address(shared.tokens(stage, 0)) + lane % 8 * 16 + lane / 8 * 4;
        at_k += 4 * lane;
        const bool first = at_k < k, second = at_k + kBlockK < k;
        tokens += static_cast<u64>(m0) * k + at_k;
#pragma unroll 8
        for (u32 row = 0; row < count; ++row, tokens += k) {
            const u32 at = row * kBlockK + (to ^ row % 8 * 16);
            async_copy_or_zeros(at, tokens, first);
            async_copy_or_zeros(at + Layout::kTokensBytes, tokens + kBlockK, second);
        }
    }

    // Where in the walk: a tile and a unit of its K. The warps that write the scales of the same rows take turns.
    struct Cursor {
        typename Walk::OwnPace walk;
        u32 index, unit;

        __device__ __forceinline__ Cursor(const Walk& walk, u32 first) : walk(walk), index(walk.first), unit(first) {
            find_tile();
        }
        __device__ __forceinline__ bool valid() const { return index < walk.count(); }

        __device__ __forceinline__ bool find_tile() {
            const u32 before = index;
            for (; unit >= walk.k_blocks && valid(); unit -= walk.k_blocks) index += walk.step;
            return index != before;
        }

        // Whether it comes to another tile.
        __device__ __forceinline__ bool advance() {
            unit += Layout::kScaleWarps;
            return find_tile();
        }
    };

    // A lane's two rows of 64: where their scales are copied from next, some units ahead of those that are folded.
    struct Copies {
        const Fp4SwappedFeed& feed;
        const Raw* scales;
        u32 row_scales, of_tile;  // Raw of a row; the lane's first row in the tile
        u8* to;                   // the lane's place in slot 0
        Cursor at;
        u32 slot = 0;
        const Raw* from[2];

        __device__ __forceinline__ Copies(const Fp4SwappedFeed& feed, const Raw* scales, u32 row_scales, u32 of_tile,
                                          u8* to, u32 first)
            : feed(feed), scales(scales), row_scales(row_scales), of_tile(of_tile), to(to), at(feed.walk, first) {
            start_tile();
        }

        __device__ __forceinline__ void start_tile() {
            if (!at.valid()) return;
            const u32 row = at.walk.corner(at.index).row + of_tile, of_group = at.walk.rows_at(0, feed.n);
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
                from[half] = scales + static_cast<u64>(of_group + min(row + 32 * half, feed.n - 1)) * row_scales +
                             (feed.walk.k_begin + at.unit) * kUnitBlocks;
        }

        // One group of copies, which is empty behind the last unit.
        __device__ __forceinline__ void copy_next() {
            if (at.valid()) {
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
                    u8* const row = to + slot * Layout::kRawBytes + half * 32 * Layout::kRawRowBytes;
                    if constexpr (sizeof(Raw) == 4) {  // rows are padded to 16 bytes
                        async_copy_of_line<8>(row, from[half]);
                    } else {
                        async_copy_of_line<16>(row, from[half]);
                        if (feed.blocks_of(at.unit) > 1) async_copy_of_line<16>(row + 16, from[half] + 1);
                    }
                    from[half] += Layout::kScaleWarps * kUnitBlocks;
                }
                if (at.advance()) start_tile();
            }
            async_copy_commit();
            if (++slot == Layout::kAhead) slot = 0;
        }
    };

    // Run by the warps of the rows `group`, of which this is number `turn`.
    __device__ __forceinline__ void write_scales(const Raw* scales_b, u32 row_scales, u32 group, u32 turn,
                                                 u32 lane) const {
        if (walk.k_blocks == 0) return;
        u8* const lane_raw = shared.raw(group * Layout::kScaleWarps + turn) + lane * Layout::kRawRowBytes;
        Copies copies(*this, scales_b, row_scales, group * 64 + lane, lane_raw, turn);
#pragma unroll 1
        for (u32 i = 0; i < Layout::kAhead; ++i) copies.copy_next();
        u32 stage = turn, phase = 0;
#pragma unroll 1
        for (Cursor at(walk, turn); at.valid(); at.advance()) {
            Barrier& full = shared.full(stage);
            shared.empty(stage).wait(phase ^ 1);
            async_copy_wait<Layout::kAhead - 1>();
            const u8* const raw = lane_raw + copies.slot * Layout::kRawBytes;  // the next to be written to
            const RawUnit upper = *reinterpret_cast<const RawUnit*>(raw);
            const RawUnit lower = *reinterpret_cast<const RawUnit*>(raw + 32 * Layout::kRawRowBytes);
            u32 all_together = 0;
#pragma unroll
            for (u32 j = 0; j < kUnitBlocks; ++j) {
                const typename Rows::Row first(upper.blocks[j]), second(lower.blocks[j]);
                const bool together = __all_sync(0xffffffff, first.fits && second.fits);
                typename Layout::Fold* const to = shared.folds(stage, j) + group * 64 + lane;
                to[0] = together ? first.together() : first.apart();
                to[32] = together ? second.together() : second.apart();
                all_together |= static_cast<u32>(together) << j;
            }
            if (lane == 0) *shared.together(stage, group) = all_together;
            arrive_warp(full, lane);
            copies.copy_next();
            stage += Layout::kScaleWarps;
            if (stage >= Config::kStages) stage -= Config::kStages, phase ^= 1;
        }
        async_copy_wait_all();
    }
};
