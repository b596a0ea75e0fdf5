// From the accumulators of a GEMM tile to D, adding C where there is one.
#pragma once
#include "common/barrier.cuh"
#include "common/gemm_layout.cuh"
#include "common/head_splits.cuh"
#include "common/result_boxes.cuh"
#include "common/result_rows.cuh"
#include "common/split_k.cuh"
#include "common/tile_order.cuh"
#include "common/tma.cuh"

// Of a warpgroup's accumulators of 64 rows, a thread holds rows `row`, `row + 8` and columns 8 j + `column` + 0, 1.
struct Fragment {
    u32 row, column;
};

template <class Config, class Operands = ScaledFp8<Config>, class SharedType = SharedMemory<Config, Operands>>
struct GemmEpilogue {
    using Settings = Config;
    using Shared = SharedType;
    using Layout = typename Shared::Layout;
    using Out = typename Config::Out;
    using Columns = typename ResultColumns<Config>::type;
    static constexpr u32 kGroups = Config::kMathGroups, kWaves = Config::kWaves, kColumns = Config::kColumns;
    static constexpr u32 kAccumulators = kColumns / 2, kMathThreads = kGroups * 128, kSplitK = Config::kSplitK;
    // For each CTA's partial tile on each CTA's barriers.
    static constexpr u32 kSplitArrivals = kWarpArrivals == 1 ? 1 : kMathThreads;
    // D is where C was. TMA adds in FP32 only; each element is added to once, so the result is always the same.
    static constexpr bool kAddInPlace = Config::kHasC && sizeof(Out) == 4;

    static __device__ __forceinline__ void add_c(float (&v)[4], const Out* c, u32 row, u32 column, u32 m, u32 n) {
        if (column >= n) return;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            if (row + 8 * half >= m) continue;
            const Out* from = c + static_cast<u64>(row + 8 * half) * n + column;
            if constexpr (sizeof(Out) == 4) {
                const float2 old = *reinterpret_cast<const float2*>(from);
                v[2 * half] += old.x, v[2 * half + 1] += old.y;
            } else {
                const u32 old = *reinterpret_cast<const u32*>(from);
                v[2 * half] += bf16_low(old), v[2 * half + 1] += bf16_high(old);
            }
        }
    }

    // The accumulators of one atom of columns, C added, to shared memory as TMA swizzles it.
    static __device__ __forceinline__ void stage_atom(u8* atom, float (&v)[kAccumulators], u32 first, const Out* c,
                                                      u32 row, u32 at_n, Fragment at, u32 lane, u32 m, u32 n) {
        constexpr u32 kAtomRow = Config::kStoreAtomBytes;
#pragma unroll
        for (u32 within = 0; within < Layout::kAtomColumns; within += 16) {
            const u32 i = (first + within) / 2;
            if constexpr (Config::kHasC && !kAddInPlace) {
                add_c(*reinterpret_cast<float (*)[4]>(&v[i]), c, row, at_n + within, m, n);
                add_c(*reinterpret_cast<float (*)[4]>(&v[i + 4]), c, row, at_n + within + 8, m, n);
            }
            if constexpr (sizeof(Out) == 2) {
                const u32 to = swizzled<kAtomRow>(lane % 16 * kAtomRow + (within + lane / 16 * 8) * 2);
                asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                                 shared_address(atom + to)),
                             "r"(pack_bf16(v[i], v[i + 1])), "r"(pack_bf16(v[i + 2], v[i + 3])),
                             "r"(pack_bf16(v[i + 4], v[i + 5])), "r"(pack_bf16(v[i + 6], v[i + 7]))
                             : "memory");
            } else {
#pragma unroll
                for (u32 q = 0; q < 4; ++q) {
                    const u32 to = (lane / 4 + q % 2 * 8) * kAtomRow + (within + q / 2 * 8 + at.column) * 4;
                    *reinterpret_cast<float2*>(atom + swizzled<kAtomRow>(to)) =
                        make_float2(v[i + 2 * q], v[i + 2 * q + 1]);
                }
            }
        }
    }

    using Rounds = StoreRounds<Config>;

    // Where box `i` of round `round` has its rows in the tile, from the warpgroup's first on, and its columns.
    static __device__ __forceinline__ constexpr u32 row_of(u32 round, u32 i) {
        return (round * Rounds::kRound + i) / Rounds::kAtoms * kGroups * 64;
    }
    static __device__ __forceinline__ constexpr u32 column_of(u32 round, u32 i) {
        return (round * Rounds::kRound + i) % Rounds::kAtoms * Rounds::kAtom;
    }

    // Registers -> swizzled shared memory: the warp's boxes of round kIndex, from `staging` on.
    template <u32 kIndex, class Corner>
    static __device__ __forceinline__ void stage_round(u8* staging, float (&sum)[kWaves][kAccumulators], const Out* c,
                                                       Corner corner, Fragment at, u32 group, u32 lane, u32 m, u32 n) {
        static_assert(Rounds::kAtom % 16 == 0, "a stmatrix writes 16 columns");
        constexpr u32 kFirst = kIndex * Rounds::kRound;
        unrolled<(Rounds::kAll - kFirst < Rounds::kRound ? Rounds::kAll - kFirst : Rounds::kRound)>([&](auto i) {
            constexpr u32 kColumn = column_of(kIndex, i.value);
            stage_atom(staging + i.value * Layout::kAtomBytes, sum[(kFirst + i.value) / Rounds::kAtoms], kColumn, c,
                       corner.row + row_of(kIndex, i.value) + group * 64 + at.row, corner.column + kColumn + at.column,
                       at, lane, m, n);
        });
    }

    // By one lane: a box of 16 rows, from there to D.
    template <class Corner>
    static __device__ __forceinline__ void send_box(Corner corner, const TensorMap& d_map, const u8* atom, u32 column,
                                                    u32 row) {
        static_assert(Columns::fits(Rounds::kAtom), "a box of columns stays together in D");
        if constexpr (kAddInPlace) {
            add_result_box(corner, d_map, atom, column, row);
        } else {
            store_result_box(corner, d_map, atom, Columns::at(column), row);
        }
    }

    // Each warp stores its own 16 rows, so that no warp waits for another. Boxes go in rounds: a fence, which waits for
    // all of a warp's shared memory, and a wait for the store engine cost more than the copies between them.
    template <class Corner, class Rows = AllRows>
    static __device__ __forceinline__ void store_by_tma(const Shared& shared, float (&sum)[kWaves][kAccumulators],
                                                        const TensorMap& d_map, const Out* c, Corner corner, Fragment at,
                                                        u32 group, u32 warp, u32 lane, u32 m, u32 n, Rows rows = {}) {
        constexpr u32 kSlots = Rounds::kSlots;
        u8* const staging = shared.epilogue() + (group * 4 + warp) * Layout::kWarpStoreBytes;
        unrolled<Rounds::kRounds>([&](auto round) {
            constexpr u32 kFirst = round.value * Rounds::kRound;
            constexpr u32 kCount = Rounds::kAll - kFirst < Rounds::kRound ? Rounds::kAll - kFirst : Rounds::kRound;
            // Of the lane that stores: the others have none. Every tile begins with the first slot.
            if constexpr (kFirst == 0 && Rounds::kRounds % kSlots != 0) tma_store_wait_read<0>();
            tma_store_wait_read<kSlots - 1>();
            __syncwarp();
            u8* const boxes = staging + round.value % kSlots * Rounds::kRound * Layout::kAtomBytes;
            stage_round<round.value>(boxes, sum, c, corner, at, group, lane, m, n);
            fence_async_proxy();
            __syncwarp();
            const auto each = [&](auto f) {
                unrolled<kCount>([&](auto i) {
                    f(boxes + i.value * Layout::kAtomBytes,
                      corner.row + row_of(round.value, i.value) + group * 64 + warp * 16,
                      corner.column + column_of(round.value, i.value));
                });
            };
            const auto send = [&](const u8* box, u32 row, u32 column) { send_box(corner, d_map, box, column, row); };
            if constexpr (Rows::kAll) {
                if (lane == 0) each(send);
            } else {
                each([&](const u8* box, u32 row, u32 column) {
                    if (!rows.whole(row)) {
                        rows.template store_box<Config::kStoreAtomBytes>(box, row, column, n, lane);
                    } else if (lane == 0) {
                        send(box, row, column);
                    }
                });
            }
            if (lane == 0) tma_store_commit();
        });
    }

    template <class Rows = AllRows>
    static __device__ __forceinline__ void store_by_split(const Shared& shared,
                                                          const float (&sum)[kWaves][kAccumulators], const Out* c,
                                                          Out* d, Tile corner, Fragment at, u32 group, u32 thread,
                                                          u32 rank, u32 phase, u32 m, u32 n, Rows rows = {}) {
        constexpr u32 kPitch = Layout::kPitch;
        float* const partial = reinterpret_cast<float*>(shared.epilogue());
        // Peers may still read the partial tile of the iteration before.
        if constexpr (kSplitK > 1) shared.partials_read().wait(phase ^ 1);
        // Or this CTA's other warps the tile before, or the tiles that lay here.
        if constexpr (kSplitK == 1 || Operands::kPartialsInRing) named_barrier_sync(1, kMathThreads);
#pragma unroll
        for (u32 w = 0; w < kWaves; ++w) {
            const u32 row = (w * kGroups + group) * 64 + at.row;
#pragma unroll
            for (u32 j = 0; j < kColumns / 8; ++j) {
                const float* v = &sum[w][4 * j];
                const u32 column = 8 * j + at.column;
                if constexpr (Config::kSwap) {
                    partial[column * kPitch + row] = v[0], partial[(column + 1) * kPitch + row] = v[1];
                    partial[column * kPitch + row + 8] = v[2], partial[(column + 1) * kPitch + row + 8] = v[3];
                } else {
                    *reinterpret_cast<float2*>(partial + row * kPitch + column) = make_float2(v[0], v[1]);
                    *reinterpret_cast<float2*>(partial + (row + 8) * kPitch + column) = make_float2(v[2], v[3]);
                }
            }
        }
        named_barrier_sync(1, kMathThreads);
        if constexpr (kSplitK > 1) {
            if constexpr (kSplitArrivals == 1) {
                if (thread < kSplitK) shared.partials_ready().publish_remote(thread);
            } else {
                for (u32 peer = 0; peer < kSplitK; ++peer) shared.partials_ready().publish_remote(peer);
            }
            shared.partials_ready().wait_cluster(phase);
        }
        const u32 m0 = Config::kSwap ? corner.column : corner.row, n0 = Config::kSwap ? corner.row : corner.column;
        add_up_and_store<kSplitK, Config::kHasC, Layout::kTileM, Layout::kTileN, kPitch, kMathThreads, Columns,
                         Out, 1>(partial, d, c, m0, n0, rows.bound(m), n, rank, thread, rows);
        if constexpr (kSplitK > 1) {
            if constexpr (Operands::kPartialsInRing) fence_async_proxy();  // TMA writes here next
            named_barrier_sync(1, kMathThreads);
            if constexpr (kSplitArrivals == 1) {
                if (thread < kSplitK) shared.partials_read().arrive_remote(thread);
            } else {
                for (u32 peer = 0; peer < kSplitK; ++peer) shared.partials_read().arrive_remote(peer);
            }
        }
    }
};
