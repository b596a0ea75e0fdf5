// The shared memory of a pipelined GEMM tile. `heuristics/gemm_config.py` computes the same sizes.
//
// "Rows" and "columns" are wgmma's; M and N those of D: with Config::kSwap the tile is computed transposed.
#pragma once
#include "common/barrier.cuh"
#include "common/types.cuh"

constexpr u32 kBlockK = 128;      // of K in a block: one scale, one 128-byte swizzled row
constexpr u32 kScaleBlock = 128;  // rows of B under one scale, unless each has its own

template <class Config>
struct SharedLayout {
    static constexpr u32 kRows = Config::kRows, kColumns = Config::kColumns;
    static constexpr u32 kTileM = Config::kSwap ? kColumns : kRows, kTileN = Config::kSwap ? kRows : kColumns;
    static constexpr bool kStoreByTma = !Config::kSwap && Config::kSplitK == 1;
    static constexpr u32 kOutBytes = sizeof(typename Config::Out);

    // With a scale for each row of B: those of columns 8 j + 2 q + 0, 1 lie together for each q, so that a thread reads
    // four of its own at once, and the four q in different banks.
    static constexpr u32 kScalesPitch = align_up(kColumns / 4 - 4, 8) + 4;
    // A tile that begins anywhere can touch this many blocks of 128 of N.
    static constexpr u32 kScalesB = Config::kScaleN == 1        ? 4 * kScalesPitch
                                    : kScaleBlock % kTileN == 0 ? 1
                                    : kTileN % kScaleBlock == 0 ? kTileN / kScaleBlock
                                                                : ceil_div(kTileN, kScaleBlock) + 1;

    static constexpr u32 kRowsBytes = kRows * kBlockK;
    static constexpr u32 kColumnsBytes = kColumns * kBlockK;
    static constexpr u32 kBlockBytes = kRowsBytes + kColumnsBytes;
    static constexpr u32 kScalesBytes = align_up((kTileM + kScalesB) * 4, 16);  // of a block: A's, then B's
    static constexpr u32 kBlocks = Config::kStages * Config::kStageBlocks;

    // C comes through the ring of tiles behind the blocks of K, in boxes of all rows and 128 bytes of columns.
    static constexpr bool kCByRing = Config::kHasC && kStoreByTma && kColumns * kOutBytes % 128 == 0;
    static constexpr u32 kCBoxColumns = 128 / kOutBytes, kCBoxes = kColumns / kCBoxColumns;
    static constexpr u32 kCBoxesPerStage = Config::kStageBlocks * kBlockBytes / kRowsBytes;
    static constexpr u32 kCStages = kCByRing ? ceil_div(kCBoxes, kCBoxesPerStage) : 0;

    // By TMA: each warp has a ring of boxes of its 16 rows, kStoreAtomBytes of columns wide and swizzled as wide.
    static constexpr u32 kAtomColumns = Config::kStoreAtomBytes / kOutBytes;
    static constexpr u32 kAtomBytes = 16 * Config::kStoreAtomBytes;
    static constexpr u32 kWarpStoreBytes = Config::kStoreBuffers * kAtomBytes;
    // Otherwise: the FP32 tile [kTileM][kPitch]; the pitch spreads the accumulator fragments over the banks.
    static constexpr u32 kPitch = kTileN + (Config::kSwap ? 4 : 8);
    static constexpr u32 kEpilogueBytes =
        kStoreByTma ? Config::kMathGroups * 4 * kWarpStoreBytes : align_up(kTileM * kPitch * 4, 1024);

    // Offsets: the ring of tiles, the epilogue's staging, the ring of scales, the barriers.
    static constexpr u32 kEpilogue = kBlocks * kBlockBytes;
    static constexpr u32 kScales = kEpilogue + kEpilogueBytes;
    static constexpr u32 kBarriers = kScales + kBlocks * kScalesBytes;
};

template <class Config>
struct SharedMemory {
    using Layout = SharedLayout<Config>;
    u8* base;
    __device__ __forceinline__ u8* rows(u32 block) const { return base + block * Layout::kBlockBytes; }
    __device__ __forceinline__ u8* columns(u32 block) const { return rows(block) + Layout::kRowsBytes; }
    __device__ __forceinline__ u8* c_box(u32 stage, u32 box) const {
        return rows(stage * Config::kStageBlocks) + box * Layout::kRowsBytes;
    }
    __device__ __forceinline__ u8* epilogue() const { return base + Layout::kEpilogue; }
    __device__ __forceinline__ float* scales_a(u32 block) const {
        return reinterpret_cast<float*>(base + Layout::kScales + block * Layout::kScalesBytes);
    }
    __device__ __forceinline__ float* scales_b(u32 block) const { return scales_a(block) + Layout::kTileM; }
    __device__ __forceinline__ Barrier* barriers() const {
        return reinterpret_cast<Barrier*>(base + Layout::kBarriers);
    }
    __device__ __forceinline__ Barrier& full(u32 s) const { return barriers()[s]; }
    __device__ __forceinline__ Barrier& empty(u32 s) const { return barriers()[Config::kStages + s]; }
    __device__ __forceinline__ Barrier& partials_ready() const { return barriers()[2 * Config::kStages]; }
    __device__ __forceinline__ Barrier& partials_read() const { return barriers()[2 * Config::kStages + 1]; }
};
