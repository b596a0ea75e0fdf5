// D[M, N] = A[M, K] B[N, K]^T (+ C) in FP8 (e4m3), A scaled per row and 128 of K, B per 128 x 128 block, for short K: all of
// K of a panel of B stays in shared memory, and the CTA walks down M with it. Hopper.
//
// A panel is 128 columns for each of kMathGroups warpgroups. A warpgroup multiplies tiles of 64 rows by its 128, all of K in
// straight code, and waits for no other. A tile's result is staged under the next tile's first products, so that the tensor
// cores need not wait for it, and stored by a warp of its own.
#pragma once
#include "common/barrier.cuh"
#include "common/gemm_epilogue.cuh"
#include "common/kernel_start.cuh"
#include "common/resident_layout.cuh"
#include "common/scale_copies.cuh"
#include "common/store_warp.cuh"
#include "common/tma.cuh"
#include "common/wgmma.cuh"

template <class Config>
struct Fp8Resident {
    using Layout = ResidentLayout<Config>;
    using Shared = ResidentMemory<Config>;
    using Out = typename Config::Out;
    using Stores = StoreWarp<GemmEpilogue<Config, void, Shared>, Config::kColumns>;
    static constexpr u32 kGroups = Config::kMathGroups, kBlocks = Layout::kBlocks, kStages = Config::kStages;
    static constexpr u32 kPanelColumns = kGroups * Config::kColumns;
    static constexpr u32 kAccumulators = Config::kColumns / 2;
    static constexpr u32 kAhead = kBlocks == 1 ? 1 : 2;  // products under way
    static_assert(kStages % kBlocks == 0, "the ring is whole tiles");
    static_assert(Config::kColumns == kScaleBlock, "a warpgroup's columns are under one scale");

    // The CTA's tiles: panel by panel, in each down the rows.
    struct Walk {
        u32 row_tiles, first, end;

        __device__ __forceinline__ Walk(u32 m, u32 n) {
            row_tiles = ceil_div(m, Layout::kTileRows);
            const u32 tiles = row_tiles * ceil_div(n, kPanelColumns), share = ceil_div(tiles, gridDim.x);
            first = blockIdx.x * share;
            end = min(first + share, tiles);
        }
    };

    // A block of K of the panel, where the tiles on the panel before have used theirs.
    static __device__ __forceinline__ void load_panel(const Shared& shared, const TensorMap& map, u32 panel, u32 block,
                                                      u32 phase, u64 policy) {
        shared.panel_empty(block).wait(phase);
        shared.panel_full(block).arrive_expect_bytes(Layout::kSlotBytes);
#pragma unroll 1
        for (u32 j = 0; j < kGroups; ++j) {
            tma_load_2d(shared.columns(block) + j * Layout::kColumnsBytes, map, shared.panel_full(block), block * kBlockK,
                        panel * kPanelColumns + j * Config::kColumns, policy);
        }
    }

    // Run by one thread: tiles of rows, with the first of a panel the panel.
    static __device__ __forceinline__ void produce_tiles(const Shared& shared, const TensorMap& rows_map,
                                                         const TensorMap& columns_map, u32 m, u32 n) {
        const Walk walk(m, n);
        const u64 policy = l2_evict_first();  // of a panel: few CTAs read it, at about the same time
        u32 stage = 0, phase = 1, panel_phase = 1;
        u32 row = walk.first % walk.row_tiles, panel = walk.first / walk.row_tiles;
        bool fresh = true;
#pragma unroll 1
        for (u32 index = walk.first; index < walk.end; ++index) {
#pragma unroll 1
            for (u32 block = 0; block < kBlocks; ++block) {
                shared.empty(stage).wait(phase);
                shared.full(stage).arrive_expect_bytes(Layout::kRowsBytes);
                tma_load_2d(shared.rows(stage), rows_map, shared.full(stage), block * kBlockK, row * Layout::kTileRows);
                if (++stage == kStages) stage = 0, phase ^= 1;
                if (fresh) load_panel(shared, columns_map, panel, block, panel_phase, policy);
            }
            fresh = false;
            if (++row == walk.row_tiles) row = 0, ++panel, panel_phase ^= 1, fresh = true;
        }
    }

    // Run by a warp, by cp.async: the scales of a tile begin at any multiple of 4 bytes.
    static __device__ __forceinline__ void produce_scales(const Shared& shared, const float* scales_a,
                                                          const float* scales_b, u32 m, u32 n) {
        const Walk walk(m, n);
        const u32 lane = threadIdx.x % 32, blocks_n = ceil_div(n, kScaleBlock);
        u32 turn = 0, phase = 1, row = walk.first % walk.row_tiles, panel = walk.first / walk.row_tiles;
#pragma unroll 1
        for (u32 index = walk.first; index < walk.end; ++index) {
            ScaleCopies<Layout::kTileRows> rows(scales_a, row * Layout::kTileRows, m, 0, lane);
            const u32 from_b = panel * kGroups * kBlocks + lane;
            float* const to = shared.scales(turn);
            shared.empty(turn * kBlocks + kBlocks - 1).wait(phase);
#pragma unroll
            for (u32 j = 0; j < kBlocks; ++j, rows.advance()) rows.copy(to + j * Layout::kTileRows);
            if (lane < Layout::kScalesB && from_b < blocks_n * kBlocks)
                async_copy<4>(to + Layout::kScales + lane, scales_b + from_b);
            shared.scales_full(turn).arrive_after_async_copies();
            if (++turn == Layout::kTurns) turn = 0, phase ^= 1;
            if (++row == walk.row_tiles) row = 0, ++panel;
        }
        async_copy_wait_all();
    }

    // Of what `wgmma_tile` says of either.
    static __device__ __forceinline__ void multiply(float (&product)[kAccumulators], u32 rows, u32 columns) {
        wgmma_pin(product);
        wgmma_fence();
#pragma unroll
        for (u32 k = 0; k < kBlockK / 32; ++k) {
            WgmmaE4m3<Config::kColumns>::run(product, wgmma_tile_descriptor(rows + 2 * k),
                                             wgmma_tile_descriptor(columns + 2 * k), k > 0);
        }
        wgmma_commit();
    }

    // By votes the compiler knows it to be the same for all of a warp.
    static __device__ __forceinline__ u32 math_group() {
        u32 group = 0;
#pragma unroll
        for (u32 g = 1; g < kGroups; ++g) group += __any_sync(0xffffffff, threadIdx.x >= g * 128) ? 1 : 0;
        return group;
    }

    template <bool kFirst>
    static __device__ __forceinline__ void promote(float (&sum)[kAccumulators], const float (&product)[kAccumulators],
                                                   float upper, float lower) {
#pragma unroll
        for (u32 i = 0; i < kAccumulators; ++i) {
            const float scaled = i % 4 < 2 ? upper : lower;
            sum[i] = kFirst ? scaled * product[i] : sum[i] + scaled * product[i];
        }
    }

    // Run by a warp, for one warpgroup.
    static __device__ __forceinline__ void store(const Shared& shared, const TensorMap& map, u32 m, u32 n, u32 group) {
        const Walk walk(m, n);
        typename Stores::Turns turns;
        u32 row = walk.first % walk.row_tiles, panel = walk.first / walk.row_tiles;
#pragma unroll 1
        for (u32 index = walk.first; index < walk.end; ++index) {
            const Tile corner{row * Layout::kTileRows, panel * kPanelColumns};
            Stores::send_tile(shared, turns, map, corner, AllRows(), n, threadIdx.x % 32, group, group + 1);
            if (++row == walk.row_tiles) row = 0, ++panel;
        }
    }

    static __device__ __forceinline__ void compute(const Shared& shared, const Out* c, u32 m, u32 n) {
        const u32 group = math_group(), warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
        const Fragment at{warp * 16 + lane / 4, lane % 4 * 2};
        const Walk walk(m, n);
        const u32 rows_tile = wgmma_tile(shared_address(shared.rows(0)));
        const u32 columns_tile = wgmma_tile(shared_address(shared.columns(0) + group * Layout::kColumnsBytes));
        u32 first_stage = 0, phase = 0, panel_phase = 0;
        float sum[1][kAccumulators];
        Tile result{};  // that `sum` is of
        bool owes = false;
        typename Stores::Turns turns;
        const auto stage = [&] { Stores::stage(shared, turns, sum, c, result, at, group, warp, lane, m, n); };
        if (walk.first >= walk.end) return;
        u32 index = walk.first;
        const u32 last_panel = (walk.end - 1) / walk.row_tiles;
#pragma unroll 1
        for (u32 p = walk.first / walk.row_tiles; p <= last_panel; ++p, panel_phase ^= 1) {
            const u32 column = p * kPanelColumns + group * Config::kColumns;
            const u32 end = min((p + 1) * walk.row_tiles, walk.end);
            bool fresh = true;
#pragma unroll 1
            for (; index < end; ++index) {
                const Tile corner{(index - p * walk.row_tiles) * Layout::kTileRows, column};
                const bool last = index + 1 == end;
                const float* const scales = shared.scales(first_stage / kBlocks);
                float product[kAhead][kAccumulators];
                const auto issue = [&](auto j) {
                    if (fresh) shared.panel_full(j.value).wait(panel_phase);
                    shared.full(first_stage + j.value).wait(phase);
                    multiply(product[j.value % kAhead], rows_tile + (first_stage + j.value) * (Layout::kRowsBytes / 16),
                             columns_tile + j.value * (Layout::kSlotBytes / 16));
                };
                unrolled<kAhead>(issue);
                // Read before the result is staged: whoever reads behind those stores waits for them.
                shared.scales_full(first_stage / kBlocks).wait(phase);
                float upper[kBlocks], lower[kBlocks];
#pragma unroll
                for (u32 j = 0; j < kBlocks; ++j) {
                    const float* const rows = scales + j * Layout::kTileRows + at.row;
                    const float b = scales[Layout::kScales + group * kBlocks + j];
                    upper[j] = rows[0] * b, lower[j] = rows[8] * b;
                }
                if (owes) stage();
                unrolled<kBlocks>([&](auto j) {
                    constexpr u32 kLeft = kBlocks - 1 - j.value;
                    wgmma_wait<(kLeft < kAhead - 1 ? kLeft : kAhead - 1)>();
                    wgmma_pin(product[j.value % kAhead]);
                    arrive_warp(shared.empty(first_stage + j.value), lane);
                    if (last) arrive_warp(shared.panel_empty(j.value), lane);
                    promote<j.value == 0>(sum[0], product[j.value % kAhead], upper[j.value], lower[j.value]);
                    wgmma_pin(sum[0]);
                    if constexpr (j.value + kAhead < kBlocks) issue(Constant<j.value + kAhead>{});
                });
                result = corner, owes = true, fresh = false;
                first_stage += kBlocks;
                if (first_stage == kStages) first_stage = 0, phase ^= 1;
            }
        }
        if (owes) stage();
    }

    static __device__ __forceinline__ void run(const TensorMap& rows_map, const TensorMap& columns_map,
                                               const TensorMap& d_map, const float* scales_a, const float* scales_b,
                                               const Out* c, u32 m, u32 n) {
        extern __shared__ __align__(1024) u8 shared_memory[];
        const Shared shared{shared_memory};
        const u32 warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
        constexpr u32 kMathWarps = kGroups * 4;
        const auto init = [&](u32 lane) {
            if (lane < kStages) {
                shared.full(lane).init(1);
                shared.empty(lane).init(kMathWarps * kWarpArrivals);
            }
            if (lane < Layout::kTurns) shared.scales_full(lane).init(32);
            if (lane < kBlocks) {
                shared.panel_full(lane).init(1);
                shared.panel_empty(lane).init(kMathWarps * kWarpArrivals);
            }
            Stores::init(shared, lane);
            if (lane == 0) {
                tma_prefetch_descriptor(rows_map);
                tma_prefetch_descriptor(columns_map);
                tma_prefetch_descriptor(d_map);
            }
        };
        start_kernel<false>(warp, kMathWarps, init, Nothing());

        // Three warpgroups start with 168 registers a thread: 3 x 168 = 40 + 2 x 232.
        if (warp >= kMathWarps) {
            if constexpr (kGroups > 1) registers_decrease<40>();
            if (warp == kMathWarps && elect_one()) produce_tiles(shared, rows_map, columns_map, m, n);
            if (whole_warp(warp == kMathWarps + 1)) produce_scales(shared, scales_a, scales_b, m, n);
            if (whole_warp(warp >= kMathWarps + 2 && warp < kMathWarps + 2 + kGroups))
                store(shared, d_map, m, n, warp - kMathWarps - 2);
        } else {
            if constexpr (kGroups > 1) registers_increase<232>();
            compute(shared, c, m, n);
        }
    }
};

template <class Config>
__global__ void __launch_bounds__(Config::kMathGroups * 128 + 128, 1)
    sm90_fp8_gemm_1d2d_resident(const __grid_constant__ TensorMap rows_map, const __grid_constant__ TensorMap columns_map,
                                const __grid_constant__ TensorMap d_map, const float* scales_a, const float* scales_b,
                                const typename Config::Out* c, u32 m, u32 n) {
    Fp8Resident<Config>::run(rows_map, columns_map, d_map, scales_a, scales_b, c, m, n);
}
