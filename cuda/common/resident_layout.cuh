// The shared memory of the FP8 GEMM of short K, whose panel of B stays. `heuristics/resident_config.py` computes the same.
#pragma once
#include "common/barrier.cuh"
#include "common/gemm_layout.cuh"
#include "common/types.cuh"

template <class Config>
struct ResidentLayout {
    static constexpr u32 kTileRows = 64, kColumns = Config::kColumns;  // what a warpgroup multiplies
    static constexpr u32 kGroups = Config::kMathGroups;
    static constexpr u32 kBlocks = Config::kBlocks;  // of 128 of K, all there are

    static constexpr u32 kRowsBytes = kTileRows * kRowBytes;  // of a stage: a block of K of A's rows
    static constexpr u32 kColumnsBytes = kColumns * kRowBytes;
    static constexpr u32 kSlotBytes = kGroups * kColumnsBytes;  // a block of K of the panel

    static constexpr u32 kAtomColumns = Config::kStoreAtomBytes / sizeof(typename Config::Out);
    static constexpr u32 kAtomBytes = 16 * Config::kStoreAtomBytes;
    static constexpr u32 kWarpStoreBytes = Config::kStoreBuffers * kAtomBytes;

    // Scales of a tile of rows, all of K: A's, a row of them for each block, then B's, a row for each set of 128 columns.
    static constexpr u32 kTurns = Config::kStages / kBlocks;
    static constexpr u32 kScales = kBlocks * kTileRows, kScalesB = kBlocks * kGroups;
    static constexpr u32 kScalesBytes = align_up((kScales + kScalesB) * 4, 16);

    // Offsets: the panel of B, the ring of A, the epilogue's staging, the scales, the barriers.
    static constexpr u32 kRing = kBlocks * kSlotBytes;
    static constexpr u32 kEpilogue = kRing + Config::kStages * kRowsBytes;
    static constexpr u32 kScalesRing = kEpilogue + kGroups * 4 * kWarpStoreBytes;
    static constexpr u32 kBarriers = kScalesRing + kTurns * kScalesBytes;
    static constexpr u32 kStoresFrom = 2 * (Config::kStages + kBlocks) + kTurns;  // of the barriers
    static constexpr u32 kEnd = kBarriers + (kStoresFrom + 2 * kMostSlots * kGroups) * 8;
};

template <class Config>
struct ResidentMemory {
    using Layout = ResidentLayout<Config>;
    u8* base;
    __device__ __forceinline__ u8* columns(u32 slot) const { return base + slot * Layout::kSlotBytes; }
    __device__ __forceinline__ u8* rows(u32 stage) const { return base + Layout::kRing + stage * Layout::kRowsBytes; }
    __device__ __forceinline__ u8* epilogue() const { return base + Layout::kEpilogue; }
    __device__ __forceinline__ float* scales(u32 turn) const {
        return reinterpret_cast<float*>(base + Layout::kScalesRing + turn * Layout::kScalesBytes);
    }
    __device__ __forceinline__ Barrier* barriers() const {
        return reinterpret_cast<Barrier*>(base + Layout::kBarriers);
    }
    __device__ __forceinline__ Barrier& full(u32 stage) const { return barriers()[stage]; }
    __device__ __forceinline__ Barrier& empty(u32 stage) const { return barriers()[Config::kStages + stage]; }
    __device__ __forceinline__ Barrier& panel_full(u32 slot) const { return barriers()[2 * Config::kStages + slot]; }
    __device__ __forceinline__ Barrier& panel_empty(u32 slot) const {
        return barriers()[2 * Config::kStages + Layout::kBlocks + slot];
    }
    __device__ __forceinline__ Barrier& scales_full(u32 turn) const {
        return barriers()[2 * (Config::kStages + Layout::kBlocks) + turn];
    }
};
