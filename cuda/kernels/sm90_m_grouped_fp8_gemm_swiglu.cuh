// The first half of a gated MLP for rows in groups, in FP8 (e4m3), A scaled per row and 128 of K, B per 128 x 128 block:
//
//   h[i, 2 N] = A[i, K] B[g, 2 N, K]^T for each row i of group g,   d[i, N] = silu(h[i, :N]) * h[i, N:], quantised to
//   e4m3 with a scale for each row and 128 of N. h is rounded to BF16, and so is what is quantised. Hopper.
//
// A tile is 128 rows by 128 columns of d, for which a CTA loads 128 rows of the gates in B and 128 of what they gate. A
// warpgroup has 64 of the rows, and multiplies them by the one and then by the other: gate and gated of an element are
// in the same thread, and all columns under a scale in the same four lanes. So h never leaves the registers.
#pragma once
#include "common/fp8_cast.cuh"
#include "common/gemm_epilogue.cuh"
#include "common/group_walk.cuh"
#include "common/kernel_start.cuh"
#include "common/scale_copies.cuh"
#include "common/swiglu.cuh"
#include "common/swiglu_layout.cuh"
#include "common/tma.cuh"
#include "common/wgmma.cuh"

template <class Config>
struct MGroupedFp8GemmSwiglu {
    using Layout = SwigluLayout<Config>;
    using Shared = SwigluMemory<Config>;
    using Pipeline = ::Pipeline<Config::kStages>;
    static constexpr u32 kColumns = Layout::kTileColumns, kAccumulators = kColumns / 2;
    static constexpr u32 kMathWarps = Layout::kMathWarps;
    static_assert(Layout::kTileRows == Config::kRows && kColumns == Config::kColumns, "the walk's tiles are these");
    using Walk = GroupWalk<Config>;

    struct Problem {
        const float *scales_a, *scales_b;
        u8* data;       // [M, N]
        float* scales;  // [N / 128, M]
        u32 m, n, k;
        float smallest;  // what a smaller magnitude counts as
    };

    // Run by a warp, of which one lane does what is to be done once.
    static __device__ __forceinline__ void produce_tiles(const Shared& shared, const TensorMap& rows_map,
                                                         const TensorMap& columns_map, const Problem& problem) {
        const bool elected = elect_one();
        Walk walk(shared, problem.m, problem.n, problem.k);
        Pipeline pipe;
        for (u32 index = walk.first; index < walk.count(); index += walk.step) {
            const Tile corner = walk.corner(index);
            const u32 gates = walk.group * 2 * problem.n + corner.column;
#pragma unroll 1
            for (u32 i = 0; i < walk.k_blocks; ++i, pipe.advance()) {
                const u32 stage = pipe.stage, at_k = i * kBlockK;
                shared.empty(stage).wait(pipe.phase ^ 1);
                Barrier& full = shared.full(stage);
                if (!elected) continue;
                full.arrive_expect_bytes(Layout::kBlockBytes);
                tma_load_2d(shared.rows(stage), rows_map, full, at_k, corner.row);
                tma_load_2d(shared.gates(stage), columns_map, full, at_k, gates);
                tma_load_2d(shared.gated(stage), columns_map, full, at_k, gates + problem.n);
            }
        }
    }

    // Run by a warp, by cp.async: the scales of a tile begin at any multiple of 4 bytes.
    static __device__ __forceinline__ void produce_scales(const Shared& shared, const Problem& problem) {
        Walk walk(shared, problem.m, problem.n, problem.k);
        const u32 lane = threadIdx.x % 32, blocks_n = problem.n / kScaleBlock;
        Pipeline pipe;
        for (u32 index = walk.first; index < walk.count(); index += walk.step) {
            const Tile corner = walk.corner(index);
            ScaleCopies<Layout::kTileRows> rows(problem.scales_a, corner.row, problem.m, 0, lane);
            const u32 block_n = (walk.group * 2 + lane) * blocks_n + corner.column / kScaleBlock;  // of lanes 0 and 1
            const float* from_b = problem.scales_b + static_cast<u64>(block_n) * walk.k_blocks;
#pragma unroll 1
            for (u32 i = 0; i < walk.k_blocks; ++i, pipe.advance()) {
                shared.empty(pipe.stage).wait(pipe.phase ^ 1);
                float* const to = shared.scales(pipe.stage);
                rows.copy(to);
                if (lane < 2) async_copy<4>(to + Layout::kTileRows + lane, from_b);
                rows.advance(), ++from_b;
                shared.scales_full(pipe.stage).arrive_after_async_copies();
            }
        }
        async_copy_wait_all();
    }

    // Rows of no group, a share for each of kWarps warps of each CTA: what zeros become.
    template <u32 kWarps>
    static __device__ __forceinline__ void fill_up(const Shared& shared, const Problem& problem, u32 warp) {
        const GroupTable& table = Walk::table_of(shared);
        fill_up_rows<typename Config::Groups, kWarps>(table, problem.data, problem.m, problem.n, warp);
        const float scale = BlockScale<float>::of(problem.smallest, e4m3_inverse()).stored;
        const u32 first = (blockIdx.x * kWarps + warp) * 32 + threadIdx.x % 32, step = gridDim.x * kWarps * 32;
        for (u32 block = 0; block < problem.n / kScaleBlock; ++block) {
            float* const to = problem.scales + static_cast<u64>(block) * problem.m;
            for (u64 row = static_cast<u64>(table.used) + first; row < problem.m; row += step) to[row] = scale;
        }
    }

    // ---- math -----------------------------------------------------------------------------------------------------

    // Of what `wgmma_tile` says of either.
    static __device__ __forceinline__ void multiply(float (&product)[kAccumulators], u32 rows, u32 columns) {
        wgmma_pin(product);
        wgmma_fence();
#pragma unroll
        for (u32 k = 0; k < kBlockK / 32; ++k)
            WgmmaE4m3<kColumns>::run(product, wgmma_tile_descriptor(rows + 2 * k),
                                     wgmma_tile_descriptor(columns + 2 * k), k > 0);
        wgmma_commit();
    }

    static __device__ __forceinline__ void promote(float (&sum)[kAccumulators], const float (&product)[kAccumulators],
                                                   float upper, float lower) {
#pragma unroll
        for (u32 i = 0; i < kAccumulators; ++i) sum[i] += (i % 4 < 2 ? upper : lower) * product[i];
    }

    // The sums of a tile: kAccumulators of the gates, and of what they gate.
    static __device__ __forceinline__ void sum_up(const Shared& shared, const Walk& walk, Pipeline& pipe,
                                                  float (&sum)[2][kAccumulators], u32 ring, u32 group, u32 lane,
                                                  u32 row) {
        bool landed = false;
#pragma unroll 2
        for (u32 i = 0; i < walk.k_blocks; ++i, pipe.advance()) {
            const u32 rows = ring + pipe.stage * (Layout::kBlockBytes / 16);
            const float* const scales = shared.scales(pipe.stage);
            if (!landed) shared.full(pipe.stage).wait(pipe.phase);
            float2 of_rows{};
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                float product[kAccumulators];
                multiply(product, rows + group * (64 * kRowBytes / 16),
                         rows + (Layout::kRowsBytes + half * Layout::kColumnsBytes) / 16);
                if (half == 0) {
                    shared.scales_full(pipe.stage).wait(pipe.phase);
                    of_rows = {scales[row], scales[row + 8]};
                }
                const float of_columns = scales[Layout::kTileRows + half];
                if (half == 1) {
                    Pipeline next = pipe;
                    next.advance();
                    landed = shared.full(next.stage).passed(next.phase) && i + 1 < walk.k_blocks;
                }
                wgmma_wait<0>();
                wgmma_pin(product);
                if (half == 1) arrive_warp(shared.empty(pipe.stage), lane);
                promote(sum[half], product, of_rows.x * of_columns, of_rows.y * of_columns);
            }
        }
    }

    // Where none of a warpgroup's rows is of use, it keeps in line.
    static __device__ __forceinline__ void pass_by(const Shared& shared, u32 blocks, Pipeline& pipe, u32 lane) {
#pragma unroll 1
        for (u32 i = 0; i < blocks; ++i, pipe.advance()) {
            shared.full(pipe.stage).wait(pipe.phase);
            shared.scales_full(pipe.stage).wait(pipe.phase);
            arrive_warp(shared.empty(pipe.stage), lane);
        }
    }

    // The SwiGLU of a row's columns, BF16 in pairs: 8 j + column + 0, 1.
    static __device__ __forceinline__ void gate(u32 (&words)[kColumns / 8], const float (&sum)[2][kAccumulators],
                                                u32 half) {
#pragma unroll
        for (u32 j = 0; j < kColumns / 8; ++j) {
            const u32 at = 4 * j + 2 * half;
            words[j] = swiglu_word<bf16>(pack_bf16(sum[0][at], sum[0][at + 1]), pack_bf16(sum[1][at], sum[1][at + 1]));
        }
    }

    // The scale of a row, of which four lanes have all columns.
    static __device__ __forceinline__ BlockScale<float> scale_of(const u32 (&words)[kColumns / 8], float smallest) {
        using Words = ::Words<bf16>;
        u32 found = 0;
#pragma unroll
        for (u32 j = 0; j < kColumns / 8; ++j) found = Words::larger(found, Words::magnitude(words[j]));
        u32 amax = max(Words::element(found, 0), Words::element(found, 1));
        amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, 1));
        amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, 2));
        return BlockScale<float>::of(
            __uint_as_float(max(__float_as_uint(Words::value(amax)), __float_as_uint(smallest))), e4m3_inverse());
    }

    // `row`: the first of the warp's 16 rows in D, of which those before `end` are stored.
    static __device__ __forceinline__ void store(const Problem& problem, u8* staging,
                                                 const float (&sum)[2][kAccumulators], u32 row, u32 column, u32 end,
                                                 u32 lane) {
        using Words = ::Words<bf16>;
        u32 words[2][kColumns / 8];
        float reciprocal[2];
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            gate(words[half], sum, half);
            const BlockScale<float> scale = scale_of(words[half], problem.smallest);
            reciprocal[half] = scale.reciprocal;
            const u32 at = row + lane / 4 + 8 * half;
            if (lane % 4 == 0 && at < end)
                problem.scales[static_cast<u64>(column / kScaleBlock) * problem.m + at] = scale.stored;
        }
        __syncwarp();  // the tile before has been read
        u8* const to = staging + lane / 4 * Layout::kPitch + lane % 4 * 2;
#pragma unroll
        for (u32 j = 0; j < kColumns / 8; ++j) {
            const auto scaled = [&](u32 half, u32 i) {
                return Words::value(Words::element(words[half][j], i)) * reciprocal[half];
            };
            const u32 both = pack_e4m3(scaled(0, 0), scaled(0, 1), scaled(1, 0), scaled(1, 1));
            *reinterpret_cast<u16*>(to + 8 * j) = static_cast<u16>(both);
            *reinterpret_cast<u16*>(to + 8 * j + 8 * Layout::kPitch) = static_cast<u16>(both >> 16);
        }
        __syncwarp();
        constexpr u32 kVectors = kColumns / 16;  // in a row
#pragma unroll
        for (u32 i = lane; i < 16 * kVectors; i += 32) {
            const u32 within = i / kVectors, at = i % kVectors * 16;
            if (row + within >= end) continue;
            const uint4 vector = *reinterpret_cast<const uint4*>(staging + within * Layout::kPitch + at);
            *reinterpret_cast<uint4*>(problem.data + static_cast<u64>(row + within) * problem.n + column + at) = vector;
        }
    }

    static __device__ __forceinline__ void compute(const Shared& shared, const Problem& problem) {
        // By a vote the compiler knows it to be the same for all of a warp.
        const u32 group = __any_sync(0xffffffff, threadIdx.x >= 128) ? 1 : 0;
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const u32 row = warp * 16;  // of the tile, the warp's first
        const u32 ring = wgmma_tile(shared_address(shared.base));
        Walk walk(shared, problem.m, problem.n, problem.k);
        Pipeline pipe;
        for (u32 index = walk.first; index < walk.count(); index += walk.step) {
            const Tile corner = walk.corner(index);
            if (!walk.needs(corner.row + group * 64)) {
                pass_by(shared, walk.k_blocks, pipe, lane);
                continue;
            }
            float sum[2][kAccumulators];
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
#pragma unroll
                for (u32 i = 0; i < kAccumulators; ++i) sum[half][i] = 0;
            }
            sum_up(shared, walk, pipe, sum, ring, group, lane, row + lane / 4);
            store(problem, shared.results(warp), sum, corner.row + row, corner.column, walk.end, lane);
        }
    }
};

template <class Config>
__global__ void __launch_bounds__(384, 1)
    sm90_m_grouped_fp8_gemm_swiglu(const __grid_constant__ TensorMap rows_map,
                                   const __grid_constant__ TensorMap columns_map, const float* scales_a,
                                   const float* scales_b, const int* layout, u8* data, float* scales, u32 m, u32 n, u32 k,
                                   u32 groups, float smallest) {
    using Gemm = MGroupedFp8GemmSwiglu<Config>;
    using Layout = typename Gemm::Layout;
    extern __shared__ __align__(1024) u8 shared_memory[];
    const typename Gemm::Shared shared{shared_memory};
    const typename Gemm::Problem problem{scales_a, scales_b, data, scales, m, n, k, smallest};
    const u32 warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    const auto init = [&](u32 lane) {
        if (lane < Layout::kStages) {
            shared.full(lane).init(1);
            shared.scales_full(lane).init(32);
            shared.empty(lane).init(Gemm::kMathWarps * kWarpArrivals);
        }
        if (lane == 0) {
            tma_prefetch_descriptor(rows_map);
            tma_prefetch_descriptor(columns_map);
        }
    };
    start_kernel<false>(warp, Gemm::kMathWarps, init, Nothing());
    build_group_table<typename Config::Groups, Layout::kTileRows>(Gemm::Walk::table_of(shared), shared.base, layout,
                                                                  groups, m, n / Layout::kTileColumns);

    // Three warpgroups start with 168 registers a thread: 3 x 168 = 40 + 2 x 232.
    if (warp >= Gemm::kMathWarps) {
        registers_decrease<40>();
        if (whole_warp(warp == Gemm::kMathWarps)) Gemm::produce_tiles(shared, rows_map, columns_map, problem);
        if (whole_warp(warp == Gemm::kMathWarps + 1)) Gemm::produce_scales(shared, problem);
        if (warp >= Gemm::kMathWarps + 2)
            Gemm::template fill_up<2>(shared, problem, warp - Gemm::kMathWarps - 2);
    } else {
        registers_increase<232>();
        Gemm::compute(shared, problem);
    }
}
