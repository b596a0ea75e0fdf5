// The shared memory of a GEMM with FP4 weights: the layout of an FP8 GEMM, whose weights are decoded, and in front of it
// a ring of packed weights. `heuristics/fp4_config.py` computes the same sizes.
#pragma once
#include "common/fp4_decode.cuh"
#include "common/gemm_layout.cuh"

template <class Config>
struct Fp4Layout : SharedLayout<Config> {
    using Base = SharedLayout<Config>;
    using Scales = typename Config::Scales;
    static constexpr u32 kTileM = Base::kTileM, kTileN = Base::kTileN;
    static constexpr u32 kTokensBytes = kTileM * kBlockK;

    // CTAs with neighbouring row tiles decode a share of their weights each.
    static constexpr u32 kShares = Config::kClusterRows;

    // Packed weights come in units: for each task of a decoding warp a box of 32 rows by 2 blocks of K, 128 bytes a row.
    // Where these are too few for all warps, 16 rows, with two lanes a row.
    static constexpr u32 kWarps = 4 * Config::kFeedGroups, kTaskBlocks = 2;
    static constexpr u32 kThreads = (Config::kMathGroups + Config::kFeedGroups) * 128;
    static constexpr u32 kUnitBlocks = Config::kStageBlocks == 1 ? kTaskBlocks : Config::kStageBlocks;
    static constexpr u32 kTaskRows = kTileN / kShares * kUnitBlocks / kTaskBlocks < 32 * kWarps ? 16 : 32;
    static constexpr u32 kTaskBytes = kTaskRows * kTaskBlocks * kBlockK / 2;
    static constexpr u32 kRowTasks = kTileN / kTaskRows, kUnitTasks = kRowTasks * kUnitBlocks / kTaskBlocks / kShares;
    static constexpr u32 kTasks = kUnitTasks / kWarps;  // of a warp
    static_assert(kTileN % kTaskRows == 0 && kUnitBlocks % kTaskBlocks == 0, "tasks are whole");
    static_assert(kTasks > 0 && kUnitTasks % kWarps == 0, "every warp has as many tasks");

    // Tiles have a loop of their own where B's scales are left for their end, fed by two blocks of K at a time.
    static constexpr bool kPairs = Config::kTileScales && Config::kRows == 256 && Config::kColumns == 128 &&
                                   Config::kStageBlocks == 1 && Config::kFeedGroups == 1;

    // Of a block: A's scales, B's, and for each task what its rows' scales have in common.
    static constexpr u32 kScalesBytesA = align_up(kTileM * 4, 16), kScalesBytesB = Scales::kSets * kTileN * 4;
    static constexpr u32 kScalesBytes = kScalesBytesA + kScalesBytesB + align_up(kRowTasks * 4, 16);

    static constexpr u32 kPackedTasks = kWarps * Config::kPackedStages * kTasks;
    static constexpr u32 kPacked = Base::kEpilogue + Base::kEpilogueBytes;
    static constexpr u32 kScales = kPacked + kPackedTasks * kTaskBytes;
    static constexpr u32 kBarriers = kScales + Base::kBlocks * kScalesBytes;
    static constexpr u32 kEnd =
        align_up(kBarriers + 8 * (2 * Config::kStages + 2 + kWarps * Config::kPackedStages), 16);
};

template <class Config>
struct Fp4SharedMemory {
    using Layout = Fp4Layout<Config>;
    u8* base;
    __device__ __forceinline__ u8* tokens(u32 block) const { return base + block * Layout::kBlockBytes; }
    __device__ __forceinline__ u8* weights(u32 block) const { return tokens(block) + Layout::kRowsBytes; }
    __device__ __forceinline__ u8* epilogue() const { return base + Layout::kEpilogue; }
    __device__ __forceinline__ u8* packed(u32 task) const {
        return base + Layout::kPacked + task * Layout::kTaskBytes;
    }
    __device__ __forceinline__ float* scales_a(u32 block) const {
        return reinterpret_cast<float*>(base + Layout::kScales + block * Layout::kScalesBytes);
    }
    // The scales of all rows for the first 32 of K (or all 128), then for the next, ...
    __device__ __forceinline__ float* scales_b(u32 block) const {
        return scales_a(block) + Layout::kScalesBytesA / 4;
    }
    __device__ __forceinline__ u32* common(u32 block) const {
        return reinterpret_cast<u32*>(scales_b(block)) + Layout::kScalesBytesB / 4;
    }
    __device__ __forceinline__ Barrier* barriers() const {
        return reinterpret_cast<Barrier*>(base + Layout::kBarriers);
    }
    __device__ __forceinline__ Barrier& full(u32 s) const { return barriers()[s]; }
    __device__ __forceinline__ Barrier& empty(u32 s) const { return barriers()[Config::kStages + s]; }
    __device__ __forceinline__ Barrier& partials_ready() const { return barriers()[2 * Config::kStages]; }
    __device__ __forceinline__ Barrier& partials_read() const { return barriers()[2 * Config::kStages + 1]; }
    __device__ __forceinline__ Barrier& packed_full(u32 warp, u32 s) const {
        return barriers()[2 * Config::kStages + 2 + warp * Config::kPackedStages + s];
    }
};
