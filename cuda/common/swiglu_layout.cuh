// The shared memory of the FP8 GEMM whose result is gated and quantised. `ops/m_grouped_fp8_swiglu_plan.py` computes the
// same.
#pragma once
#include "common/barrier.cuh"
#include "common/gemm_layout.cuh"
#include "common/types.cuh"

template <class Config>
struct SwigluLayout {
    static constexpr u32 kTileRows = 128, kTileColumns = 128;  // of the result
    static constexpr u32 kStages = Config::kStages;
    static constexpr u32 kRowsBytes = kTileRows * kRowBytes;
    static constexpr u32 kColumnsBytes = kTileColumns * kRowBytes;  // of the gates' rows of B, and of those they gate
    static constexpr u32 kBlockBytes = kRowsBytes + 2 * kColumnsBytes;
    static constexpr u32 kScales = kTileRows + 2;  // A's, then B's two
    static constexpr u32 kScalesBytes = align_up(kScales * 4, 16);
    // A warp's 16 rows of the result; the pitch spreads them over the banks.
    static constexpr u32 kPitch = kTileColumns + 16, kWarpBytes = 16 * kPitch;
    static constexpr u32 kMathWarps = 8;

    // Offsets: the ring of tiles, the results, the ring of scales, the barriers.
    static constexpr u32 kResults = kStages * kBlockBytes;
    static constexpr u32 kScalesRing = kResults + kMathWarps * kWarpBytes;
    static constexpr u32 kBarriers = kScalesRing + kStages * kScalesBytes;
    static constexpr u32 kEnd = align_up(kBarriers + 8 * 3 * kStages, 16);
};

template <class Config>
struct SwigluMemory {
    using Layout = SwigluLayout<Config>;
    u8* base;
    __device__ __forceinline__ u8* rows(u32 stage) const { return base + stage * Layout::kBlockBytes; }
    __device__ __forceinline__ u8* gates(u32 stage) const { return rows(stage) + Layout::kRowsBytes; }
    __device__ __forceinline__ u8* gated(u32 stage) const { return gates(stage) + Layout::kColumnsBytes; }
    __device__ __forceinline__ u8* results(u32 warp) const {
        return base + Layout::kResults + warp * Layout::kWarpBytes;
    }
    __device__ __forceinline__ float* scales(u32 stage) const {
        return reinterpret_cast<float*>(base + Layout::kScalesRing + stage * Layout::kScalesBytes);
    }
    __device__ __forceinline__ Barrier* barriers() const {
        return reinterpret_cast<Barrier*>(base + Layout::kBarriers);
    }
    __device__ __forceinline__ Barrier& full(u32 stage) const { return barriers()[stage]; }
    __device__ __forceinline__ Barrier& empty(u32 stage) const { return barriers()[Layout::kStages + stage]; }
    __device__ __forceinline__ Barrier& scales_full(u32 stage) const { return barriers()[2 * Layout::kStages + stage]; }
};
