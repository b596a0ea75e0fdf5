// The shared memory of a GEMM whose FP4 weights stay packed there. `heuristics/fp4_swapped_config.py` computes the same sizes.
#pragma once
#include "common/barrier.cuh"
#include "common/fp4_fold.cuh"
#include "common/gemm_layout.cuh"
#include "common/tma.cuh"

// Where tokens come from: boxes of them in order, or the memory whose bytes change places.
template <bool kInOrder>
struct TokensIn {
    using type = TensorMap;
};

template <>
struct TokensIn<false> {
    using type = const u8*;
};

template <class Config>
using Tokens = typename TokensIn<!Config::kGroupsByLanes>::type;

template <class Config>
struct Fp4SwappedLayout {
    using Fold = typename RowFold<typename Config::Scales>::Fold;
    static constexpr u32 kRows = Config::kRows, kColumns = Config::kColumns, kStages = Config::kStages;
    static constexpr u32 kRowGroups = kRows / 64, kMathGroups = kRowGroups * Config::kKGroups;
    static constexpr u32 kScaleWarps = Config::kScaleWarps;  // for each 64 rows
    static constexpr u32 kFeedWarps = 1 + kRowGroups * kScaleWarps;  // tiles, scales
    static constexpr u32 kThreads = kMathGroups * 128 + kFeedWarps * 32;
    static constexpr u32 kUnitBlocks = 2, kUnitK = kUnitBlocks * kBlockK;  // a stage: 128 bytes of a row of weights

    static constexpr u32 kWeightsBytes = kRows * kUnitK / 2;
    static constexpr u32 kTokensBytes = kColumns * kBlockK;  // of a block
    static constexpr u32 kStageBytes = kWeightsBytes + kUnitBlocks * kTokensBytes;

    // Of a block: folds of all rows, the tokens' scales; and of 64 rows the blocks, bit by bit, whose folds are `together`.
    static constexpr u32 kFoldsBytes = kRows * sizeof(Fold), kTokenScalesBytes = kColumns * 4;
    static constexpr u32 kScalesBytes = kFoldsBytes + kTokenScalesBytes + align_up(kRowGroups * 4, 16);

    // Scales as they are in memory, of some units ahead, of 64 rows for each warp that folds them.
    static constexpr u32 kAhead = RowFold<typename Config::Scales>::kAhead;
    static constexpr u32 kRawRowBytes = kUnitBlocks * sizeof(typename Config::Scales::Raw), kRawBytes = 64 * kRawRowBytes;

    // A partial tile for each group of K: FP32 [kColumns][kPitch]; the pitch spreads the fragments over the banks.
    static constexpr u32 kPitch = kRows + 4, kPartial = kColumns * kPitch;

    static constexpr u32 kPartials = kStages * kStageBytes;
    static constexpr u32 kScales = kPartials + Config::kKGroups * kPartial * 4;
    static constexpr u32 kRaw = kScales + kStages * kUnitBlocks * kScalesBytes;
    static constexpr u32 kBarriers = kRaw + kRowGroups * kScaleWarps * kAhead * kRawBytes;
    static constexpr u32 kEnd = align_up(kBarriers + 8 * (2 * kStages + 2), 16);
};

template <class Config>
struct Fp4SwappedMemory {
    using Layout = Fp4SwappedLayout<Config>;
    using Fold = typename Layout::Fold;
    u8* base;
    __device__ __forceinline__ u8* weights(u32 stage) const { return base + stage * Layout::kStageBytes; }
    __device__ __forceinline__ u8* tokens(u32 stage, u32 block) const {
        return weights(stage) + Layout::kWeightsBytes + block * Layout::kTokensBytes;
    }
    __device__ __forceinline__ float* partial(u32 group) const {
        return reinterpret_cast<float*>(base + Layout::kPartials) + group * Layout::kPartial;
    }
    __device__ __forceinline__ Fold* folds(u32 stage, u32 block) const {
        return reinterpret_cast<Fold*>(base + Layout::kScales +
                                       (stage * Layout::kUnitBlocks + block) * Layout::kScalesBytes);
    }
    __device__ __forceinline__ float* token_scales(u32 stage, u32 block) const {
        return reinterpret_cast<float*>(folds(stage, block) + Layout::kRows);
    }
    __device__ __forceinline__ u32* together(u32 stage, u32 row_group) const {
        return reinterpret_cast<u32*>(token_scales(stage, 0) + Layout::kColumns) + row_group;
    }
    __device__ __forceinline__ u8* raw(u32 scale_warp) const {
        return base + Layout::kRaw + scale_warp * Layout::kAhead * Layout::kRawBytes;
    }
    __device__ __forceinline__ Barrier* barriers() const {
        return reinterpret_cast<Barrier*>(base + Layout::kBarriers);
    }
    __device__ __forceinline__ Barrier& full(u32 s) const { return barriers()[s]; }
    __device__ __forceinline__ Barrier& empty(u32 s) const { return barriers()[Config::kStages + s]; }
    __device__ __forceinline__ Barrier& partials_ready() const { return barriers()[2 * Config::kStages]; }
    __device__ __forceinline__ Barrier& partials_read() const { return barriers()[2 * Config::kStages + 1]; }
};
