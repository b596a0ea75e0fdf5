// The math warpgroups' loop of tiles in two waves where both operands have a scale for each row, for the shortest way from
// a promotion to the next product: the scales of a block of K are read while the block before is promoted, into the
// registers that this frees, and its barrier is tested before. kCarry blocks are straight code.
#pragma once
#include "common/fp8_gemm.cuh"
#include "common/ring_output.cuh"

template <class Config, class Scaling>
struct Fp8CarryLoop {
    using Gemm = Fp8Gemm<Config, Scaling>;
    using Layout = typename Gemm::Layout;
    using Shared = typename Gemm::Shared;
    using Pipeline = typename Gemm::Pipeline;
    static constexpr u32 kAccumulators = Gemm::kAccumulators, kGroups = Config::kMathGroups;
    static constexpr u32 kPitch = Gemm::Operands::kScalesPitch;
    // Of column scales, four at a time; registers have room for seven. The others are read by both waves.
    static constexpr u32 kFours = Config::kColumns / 16, kRoom = Config::kCarry == 1 ? 6 : 5, kKept = kFours < kRoom ? kFours : kRoom;
    static_assert(Config::kWaves == 2 && Config::kStageBlocks == 1 && Layout::kOutByRing, "see above");

    float4 fours[kKept];
    float2 rows;  // of the wave that is multiplied

    static __device__ __forceinline__ float2 read_rows(const Shared& shared, u32 stage, u32 row) {
        const float* const scales = shared.scales_a(stage);
        return {scales[row], scales[row + 8]};
    }

    static __device__ __forceinline__ const float4* columns(const Shared& shared, u32 stage, u32 column) {
        return reinterpret_cast<const float4*>(shared.scales_b(stage) + column / 2 * kPitch);
    }

    // sum += scales x product; kRefill: each four makes room for that of `next`.
    template <bool kRefill>
    __device__ __forceinline__ void promote(float (&sum)[kAccumulators], const float (&product)[kAccumulators],
                                            float2 of_rows, const float4* here, const float4* next) {
#pragma unroll
        for (u32 i = 0; i < kFours; ++i) {
            const float4 four = i < kKept ? fours[i] : here[i];
#pragma unroll
            for (u32 j = 0; j < 8; ++j) {
                const float column = j < 4 ? (j % 2 ? four.y : four.x) : (j % 2 ? four.w : four.z);
                sum[8 * i + j] += (j % 4 < 2 ? of_rows.x : of_rows.y) * column * product[8 * i + j];
            }
            if (kRefill && i < kKept) fours[i] = next[i];
            asm volatile("" ::: "memory");  // so that the compiler does not gather the reads
        }
    }

    static __device__ __forceinline__ u32 tiles_of(u32 ring, u32 stage) {
        return ring + stage * (Layout::kBlockBytes / 16);
    }

    // One block of K. `more`: of the tile, whose scales are read then; `landed`: whether the block's tiles are known to
    // be there.
    __device__ __forceinline__ void block(const Shared& shared, float (&sum)[2][kAccumulators], Pipeline& pipe, u32 ring,
                                          u32& tiles, u32 group, Fragment at, u32 lane, bool& landed, bool more) {
        const u32 stage = pipe.stage, first = group * 64, second = (kGroups + group) * 64;
        Pipeline next = pipe;
        next.advance();
        const u32 following = more ? next.stage : stage;
        const float4* const here = columns(shared, stage, at.column);
        float product[kAccumulators];
        if (!landed) shared.full(stage).wait(pipe.phase);
        wgmma_pin(product);
        wgmma_fence();
        Gemm::multiply(product, tiles, 0, first);
        const float2 of_second = read_rows(shared, stage, second + at.row);
        wgmma_wait<0>();
        wgmma_pin(product);
        promote<false>(sum[0], product, rows, here, here);

        wgmma_pin(product);
        wgmma_fence();
        Gemm::multiply(product, tiles, 0, second);
        tiles = next.stage == 0 ? ring : tiles + Layout::kBlockBytes / 16;
        if (more) shared.scales_full(next.stage).wait(next.phase);
        landed = more && shared.full(next.stage).passed(next.phase);
        rows = read_rows(shared, following, first + at.row);
        wgmma_wait<0>();
        wgmma_pin(product);
        promote<true>(sum[1], product, of_second, here, columns(shared, following, at.column));
        Gemm::release(shared, stage, lane);
        pipe = next;
    }

    static __device__ __forceinline__ void compute(const Shared& shared, const TensorMap& d_map, u32 m, u32 n, u32 k) {
        const u32 thread = threadIdx.x, group = Gemm::math_group(), warp = thread / 32 % 4, lane = thread % 32;
        const Fragment at{warp * 16 + lane / 4, lane % 4 * 2};
        const u32 ring = wgmma_tile(shared_address(shared.base));
        typename Gemm::Walk walk(shared, m, n, k);
        Pipeline pipe;
        RingOutput<Gemm> output;
        Fp8CarryLoop scales;
        for (u32 index = walk.first; index < walk.count(); index += walk.step) {
            const auto corner = walk.corner(index);
            float sum[2][kAccumulators];
#pragma unroll
            for (u32 i = 0; i < kAccumulators; ++i) sum[0][i] = 0, sum[1][i] = 0;
            shared.scales_full(pipe.stage).wait(pipe.phase);
            const float4* const first = columns(shared, pipe.stage, at.column);
#pragma unroll
            for (u32 i = 0; i < kKept; ++i) scales.fours[i] = first[i];
            scales.rows = read_rows(shared, pipe.stage, group * 64 + at.row);
            bool landed = false;
            u32 tiles = tiles_of(ring, pipe.stage);
            const auto one = [&](bool more) { scales.block(shared, sum, pipe, ring, tiles, group, at, lane, landed, more); };
            u32 left = walk.k_blocks;
            if constexpr (Config::kCarry == 2) {
#pragma unroll 1
                while (true) {
                    one(left > 1);
                    if (left == 1) break;
                    one(left > 2);
                    if (left == 2) break;
                    left -= 2;
                }
            } else {
#pragma unroll 1
                for (; left > 0; --left) one(left > 1);
            }
            output.postpone(pipe);
            output.finish(shared, sum, d_map, corner, group, warp, lane);
            output.settle(shared, lane);
        }
        tma_store_wait_read<0>();
    }
};
