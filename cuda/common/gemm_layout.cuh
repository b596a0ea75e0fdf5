// The shared memory of a pipelined GEMM tile. `heuristics/gemm_config.py` computes the same sizes.
//
// "Rows" and "columns" are wgmma's; M and N those of D: with Config::kSwap the tile is computed transposed.
#pragma once
#include "common/barrier.cuh"
#include "common/types.cuh"

constexpr u32 kBlockK = 128;      // of K in a block: one scale, one 128-byte swizzled row
constexpr u32 kScaleBlock = 128;  // rows of B under one scale, unless each has its own
constexpr u32 kRowBytes = 128;    // of a tile, for a block of K: what the swizzle spans

// What a kernel multiplies. FP8 with scales; rows of tiles run along K.
template <class Config>
struct ScaledFp8 {
    static constexpr u32 kBlockK = ::kBlockK;
    static constexpr u32 kRowsTile = Config::kRows, kColumnsTile = Config::kColumns;  // rows of 128 bytes in a block
    static constexpr u32 kScaleN = Config::kScaleN;
    static constexpr u32 kScalesPitch = 0;  // as they are in memory
    static constexpr bool kPartialsInRing = false;
};

// The same with a scale for each row of both operands. In shared memory those of columns 8 j + 2 q + 0, 1 lie together
// for each q, so that a thread reads four of its own at once, and the four q are in different banks.
template <class Config>
struct Fp8ByRows : ScaledFp8<Config> {
    static constexpr u32 kScalesPitch = align_up(Config::kColumns / 4 - 4, 8) + 4;
};

// BF16. With Config::kMnRows (kMnColumns), rows of that operand's tile run along M or N: slabs of 64 elements.
template <class Config>
struct PlainBf16 {
    static constexpr u32 kBlockK = 64;
    static constexpr u32 kRowsTile = Config::kMnRows ? align_up(Config::kRows, 64) : Config::kRows;
    static constexpr u32 kColumnsTile = Config::kMnColumns ? align_up(Config::kColumns, 64) : Config::kColumns;
    static constexpr u32 kScaleN = 0;                            // no scales
    static constexpr bool kPartialsInRing = Config::kSplitK > 1;  // partial tiles lie where the tiles did
    static constexpr u32 kScalesPitch = 0;
};

// What the producer tells the math warps of a tile that may end inside, so that they need not find it out themselves.
struct TileNote {
    u16 rows;   // of use
    u16 shift;  // columns between it and the block of 128 that it begins in
};

constexpr u32 kMostSlots = 3;  // of a warp's staging

// How a tile leaves by TMA. Each math warp stages its 16 rows in boxes of kStoreAtomBytes of columns, a wave in one round if
// kStoreBuffers are all that there are, else some of them; rounds take turns with the slots that the buffers are.
template <class Config>
struct StoreRounds {
    static constexpr u32 kAtom = Config::kStoreAtomBytes / sizeof(typename Config::Out);  // columns
    static constexpr u32 kAtoms = Config::kColumns / kAtom, kAll = Config::kWaves * kAtoms;
    static constexpr u32 kBuffers = Config::kStoreBuffers;
    static constexpr u32 kRound = kBuffers == kAll ? kAtoms : kBuffers > 1 ? kBuffers / 2 : 1;
    static constexpr u32 kRounds = ceil_div(kAll, kRound), kSlots = kBuffers / kRound;
    static_assert(kSlots <= kMostSlots, "each slot has two barriers");
};

template <class Config, class Operands = ScaledFp8<Config>>
struct SharedLayout {
    static constexpr u32 kRows = Config::kRows, kColumns = Config::kColumns;
    static constexpr u32 kTileM = Config::kSwap ? kColumns : kRows, kTileN = Config::kSwap ? kRows : kColumns;
    static constexpr bool kStoreByTma = !Config::kSwap && Config::kSplitK == 1;
    static constexpr u32 kOutBytes = sizeof(typename Config::Out);

    // A tile that begins anywhere can touch this many blocks of 128 of N.
    static constexpr u32 kScalesB = Operands::kScalesPitch      ? 4 * Operands::kScalesPitch
                                    : Operands::kScaleN == 1    ? kTileN
                                    : kScaleBlock % kTileN == 0 ? 1
                                    : kTileN % kScaleBlock == 0 ? kTileN / kScaleBlock
                                                                : ceil_div(kTileN, kScaleBlock) + 1;

    static constexpr u32 kRowsBytes = Operands::kRowsTile * kRowBytes;
    static constexpr u32 kColumnsBytes = Operands::kColumnsTile * kRowBytes;
    static constexpr u32 kBlockBytes = kRowsBytes + kColumnsBytes;
    // Of a block: A's, then B's; behind them what the math warps are told of a tile, where it has room in its first stage.
    static constexpr bool kTellsTiles = Operands::kScaleN > 0 && Operands::kScalesPitch == 0;
    static constexpr u32 kScalesBytes = Operands::kScaleN ? align_up((kTileM + kScalesB + (kTellsTiles ? 1 : 0)) * 4, 16) : 0;
    static constexpr u32 kBlocks = Config::kStages * Config::kStageBlocks;

    // Without buffers of its own, the result leaves by the ring of tiles: C, if there is one, comes into stages behind
    // the blocks of K, in boxes of all rows and 128 bytes of columns, and D takes its place.
    static constexpr bool kOutByRing = kStoreByTma && Config::kStoreBuffers == 0;
    static constexpr u32 kOutBoxColumns = 128 / kOutBytes, kOutBoxes = kColumns / kOutBoxColumns;
    static constexpr u32 kOutBoxesPerStage = Config::kStageBlocks * kBlockBytes / kRowsBytes;
    static constexpr u32 kOutStages = kOutByRing ? ceil_div(kOutBoxes, kOutBoxesPerStage) : 0;
    // In two waves C and D take all stages, and nothing loads meanwhile. Where K is long enough, the L2 cache adds as fast.
    static constexpr bool kAddsInL2 = requires { Config::kKGrouped; } && kOutByRing && Config::kHasC &&
                                      Config::kWaves == 2 && kOutBytes == 4;
    static_assert(!kOutByRing || kColumns % kOutBoxColumns == 0, "rows of the result are whole boxes");
    static_assert(kOutStages <= Config::kStages, "the ring holds the result");

    // By TMA: each warp has a ring of boxes of its 16 rows, kStoreAtomBytes of columns wide and swizzled as wide.
    static constexpr u32 kAtomColumns = Config::kStoreAtomBytes / kOutBytes;
    static constexpr u32 kAtomBytes = 16 * Config::kStoreAtomBytes;
    static constexpr u32 kWarpStoreBytes = Config::kStoreBuffers * kAtomBytes;
    // Otherwise: the FP32 tile [kTileM][kPitch]; the pitch spreads the accumulator fragments over the banks.
    static constexpr u32 kPitch = kTileN + (Config::kSwap ? 4 : 8);
    static constexpr u32 kPartialBytes = align_up(kTileM * kPitch * 4, 1024);
    static constexpr u32 kEpilogueBytes = kStoreByTma                ? Config::kMathGroups * 4 * kWarpStoreBytes
                                          : Operands::kPartialsInRing ? 0
                                                                      : kPartialBytes;

    // With kStoreWarp a warp of its own stores what the math warps have staged, and has barriers for it.
    static constexpr bool kStoreWarp = Config::kStoreWarp;
    static constexpr u32 kStoreBarriers = kStoreByTma && !kOutByRing ? 2 * kMostSlots * Config::kMathGroups : 0;
    static_assert(!kStoreWarp || kStoreBarriers > 0, "only boxes that have buffers are handed over");

    // Offsets: the ring of tiles, the epilogue's staging, the ring of scales, the barriers.
    static constexpr u32 kRing = kBlocks * kBlockBytes;
    static constexpr u32 kEpilogue = Operands::kPartialsInRing ? 0 : kRing;
    static_assert(!Operands::kPartialsInRing || kPartialBytes <= kRing, "the ring has room for the partial tile");
    static constexpr u32 kScales = kRing + kEpilogueBytes;
    static constexpr u32 kBarriers = kScales + kBlocks * kScalesBytes;
    static constexpr bool kThree = Operands::kScaleN > 0 || requires { Config::kKGrouped; };  // barriers a stage
    static constexpr u32 kStoresFrom = (kThree ? 3 : 2) * Config::kStages + 2;                 // of the barriers
    static constexpr u32 kBarriersEnd = kBarriers + 8 * (kStoresFrom + kStoreBarriers);
    static constexpr u32 kEnd = align_up(kBarriersEnd, 16);
};

template <class Config, class Operands = ScaledFp8<Config>>
struct SharedMemory {
    using Layout = SharedLayout<Config, Operands>;
    u8* base;
    __device__ __forceinline__ u8* rows(u32 block) const { return base + block * Layout::kBlockBytes; }
    __device__ __forceinline__ u8* columns(u32 block) const { return rows(block) + Layout::kRowsBytes; }
    __device__ __forceinline__ u8* out_box(u32 stage, u32 box) const {
        return rows(stage * Config::kStageBlocks) + box * Layout::kRowsBytes;
    }
    __device__ __forceinline__ u8* epilogue() const { return base + Layout::kEpilogue; }
    __device__ __forceinline__ float* scales_a(u32 block) const {
        return reinterpret_cast<float*>(base + Layout::kScales + block * Layout::kScalesBytes);
    }
    __device__ __forceinline__ float* scales_b(u32 block) const { return scales_a(block) + Layout::kTileM; }
    // Of the tile whose first stage it is.
    __device__ __forceinline__ TileNote& note(u32 s) const {
        static_assert(Layout::kTellsTiles && Layout::kScalesB <= 3, "there is room for it");
        return *reinterpret_cast<TileNote*>(scales_b(s * Config::kStageBlocks) + Layout::kScalesB);
    }
    __device__ __forceinline__ Barrier* barriers() const {
        return reinterpret_cast<Barrier*>(base + Layout::kBarriers);
    }
    __device__ __forceinline__ Barrier& full(u32 s) const { return barriers()[s]; }
    __device__ __forceinline__ Barrier& empty(u32 s) const { return barriers()[Config::kStages + s]; }
    __device__ __forceinline__ Barrier& partials_ready() const { return barriers()[2 * Config::kStages]; }
    __device__ __forceinline__ Barrier& partials_read() const { return barriers()[2 * Config::kStages + 1]; }
    // Scales that come by other means than TMA have barriers of their own; so have, where there are none, tiles that are
    // not yet as they should be.
    __device__ __forceinline__ Barrier& scales_full(u32 s) const { return barriers()[2 * Config::kStages + 2 + s]; }
    __device__ __forceinline__ Barrier& landed(u32 s) const { return scales_full(s); }
    __device__ __forceinline__ void* behind_barriers() const {
        return barriers() + Layout::kStoresFrom + Layout::kStoreBarriers;
    }
};
