// A tile's way out through the ring of stages: C is there already, D takes its place, and TMA stores it from there.
#pragma once
#include "common/barrier.cuh"
#include "common/gemm_layout.cuh"
#include "common/result_boxes.cuh"
#include "common/tile_order.cuh"
#include "common/tma.cuh"

// Two neighbours of a row of C or D.
template <class Out>
struct OutPair;

template <>
struct OutPair<float> {
    float2 values;
    __device__ __forceinline__ void add_to(float* sum) const {
        const float2 two = values;
        sum[0] += two.x, sum[1] += two.y;
    }
    __device__ __forceinline__ void set(const float* sum) { values = make_float2(sum[0], sum[1]); }
};

template <>
struct OutPair<bf16> {
    u32 values;
    __device__ __forceinline__ void add_to(float* sum) const {
        const u32 two = values;
        sum[0] += bf16_low(two), sum[1] += bf16_high(two);
    }
    __device__ __forceinline__ void set(const float* sum) { values = pack_bf16(sum[0], sum[1]); }
};

template <class Gemm>
struct RingOutput {
    using Layout = typename Gemm::Layout;
    using Shared = typename Gemm::Shared;
    using Config = typename Gemm::Settings;
    using Out = typename Config::Out;
    using Pair = OutPair<Out>;
    static constexpr u32 kGroups = Config::kMathGroups, kWaves = Config::kWaves;
    static constexpr u32 kAccumulators = Config::kColumns / 2, kGroupsInBox = Layout::kOutBoxColumns / 8;

    typename Gemm::Pipeline out;  // the tile's first stage of C and D
    bool owes = false;            // whether its stages have to be given back

    // A row of a box is 128 bytes, swizzled. Of FP32, eight columns are 32 of them, and the rows 2 i and 2 i + 1 would meet
    // in the same banks: so odd rows take the groups of eight columns in another order, which `swap` prepares.
    static constexpr bool kSwaps = sizeof(Out) == 4;

    static __device__ __forceinline__ void swap(float (&sum)[kAccumulators], bool odd) {
#pragma unroll
        for (u32 i = 0; i < kAccumulators; ++i) {
            if (i / 8 % 2) continue;  // groups 0 and 1 of four
            const float low = sum[i], high = sum[i + 8];
            sum[i] = odd ? high : low, sum[i + 8] = odd ? low : high;
        }
    }

    // f(element, values): the two neighbours in box `kBox` of the result's columns, for each pair of this thread.
    template <u32 kBox, class F>
    static __device__ __forceinline__ void each_pair(u8* box, float (&sum)[kWaves][kAccumulators], u32 group, u32 warp,
                                                     u32 lane, F f) {
        const u32 key = lane / 4 ^ (kSwaps ? lane / 4 % 2 * 4 : 0);
#pragma unroll
        for (u32 w = 0; w < kWaves; ++w) {
            const u32 row = (w * kGroups + group) * 64 + warp * 16 + lane / 4;
#pragma unroll
            for (u32 i = 0; i < kGroupsInBox; ++i) {
                const u32 at = kSwaps ? ((2 * i + lane % 4 / 2) ^ key) * 16 + lane % 2 * 8  //
                                      : (i ^ key) * 16 + lane % 4 * 4;
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
                    float* const v = &sum[w][(kBox * kGroupsInBox + i) * 4 + 2 * half];
                    f(reinterpret_cast<Pair*>(box + (row + 8 * half) * 128 + at), v);
                }
            }
        }
    }

    // The tile's stages of C and D are those at `pipe`, which goes on behind them.
    __device__ __forceinline__ void postpone(typename Gemm::Pipeline& pipe) {
        out = pipe;
#pragma unroll
        for (u32 i = 0; i < Layout::kOutStages; ++i) pipe.advance();
    }

    // Each warp adds to and stores its own 16 rows. The stages are owed until TMA has read them.
    template <class Corner>
    __device__ __forceinline__ void finish(const Shared& shared, float (&sum)[kWaves][kAccumulators],
                                           const TensorMap& d_map, Corner corner, u32 group, u32 warp, u32 lane) {
        typename Gemm::Pipeline pipe = out;
        if constexpr (kSwaps) {
#pragma unroll
            for (u32 w = 0; w < kWaves; ++w) swap(sum[w], lane & 4);
        }
        owes = true;
        unrolled<Layout::kOutStages>([&](auto stage) {
            constexpr u32 kFirst = stage.value * Layout::kOutBoxesPerStage, kLeft = Layout::kOutBoxes - kFirst;
            constexpr u32 kBoxes = kLeft < Layout::kOutBoxesPerStage ? kLeft : Layout::kOutBoxesPerStage;
            shared.full(pipe.stage).wait(pipe.phase);
            shared.scales_full(pipe.stage).wait(pipe.phase);  // there are none, but phases pass one by one
            // All is read before anything is written: the compiler must take it that a write may change what is read.
            const auto each = [&](auto f) {
                unrolled<kBoxes>([&](auto j) {
                    each_pair<kFirst + j.value>(shared.out_box(pipe.stage, j.value), sum, group, warp, lane, f);
                });
            };
            if constexpr (Config::kHasC && !Layout::kAddsInL2) each([](const Pair* c, float* v) { c->add_to(v); });
            each([](Pair* d, const float* v) { d->set(v); });
            fence_async_proxy();
            __syncwarp();
            if (lane == 0) {
#pragma unroll
                for (u32 j = 0; j < kBoxes; ++j) {
#pragma unroll
                    for (u32 w = 0; w < kWaves; ++w) {
                        const u32 row = (w * kGroups + group) * 64 + warp * 16;
                        const u8* const from = shared.out_box(pipe.stage, j) + row * 128;
                        const u32 column = corner.column + (kFirst + j) * Layout::kOutBoxColumns;
                        if constexpr (Layout::kAddsInL2) {
                            add_result_box(corner, d_map, from, column, corner.row + row);
                        } else if constexpr (Config::kHasC) {  // a sum that grows is read again much later
                            store_result_box(corner, d_map, from, column, corner.row + row, l2_evict_first());
                        } else {
                            store_result_box(corner, d_map, from, column, corner.row + row);
                        }
                    }
                }
                tma_store_commit();
            }
            pipe.advance();
        });
    }

    // Gives back what is owed; the producer needs it for the next tile's blocks.
    __device__ __forceinline__ void settle(const Shared& shared, u32 lane) {
        if (!owes) return;
        u32 stage = out.stage;
        if (lane == 0) tma_store_wait_read<0>();
#pragma unroll
        for (u32 i = 0; i < Layout::kOutStages; ++i) {
            Gemm::release(shared, stage, lane);
            if (++stage == Config::kStages) stage = 0;
        }
        owes = false;
    }
};
