// A warp that stores tiles for the math warps: these stage a tile in shared memory and go on to the next, without waiting for
// the fence and the copies of TMA.
#pragma once
#include "common/barrier.cuh"
#include "common/gemm_epilogue.cuh"
#include "common/gemm_walk.cuh"
#include "common/tma.cuh"

// Columns between the results of neighbouring warpgroups; where it is 0 they lie below each other.
template <class Epilogue, u32 kBeside = 0>
struct StoreWarp {
    using Shared = typename Epilogue::Shared;
    using Layout = typename Epilogue::Layout;
    using Rounds = typename Epilogue::Rounds;
    using Config = typename Epilogue::Settings;
    using Out = typename Config::Out;
    using Turns = Pipeline<Rounds::kSlots>;  // of slots; both sides walk through the same tiles
    static constexpr u32 kGroups = Config::kMathGroups;

    // Of a warpgroup's slot: its warps have staged what the slot has room for; that has been read.
    static __device__ __forceinline__ Barrier& staged(const Shared& shared, u32 group, u32 slot) {
        return shared.barriers()[Layout::kStoresFrom + 2 * (group * kMostSlots + slot)];
    }
    static __device__ __forceinline__ Barrier& unstaged(const Shared& shared, u32 group, u32 slot) {
        return shared.barriers()[Layout::kStoresFrom + 2 * (group * kMostSlots + slot) + 1];
    }

    // Where every tile begins with the first slot, the compiler is to know which a round has.
    static __device__ __forceinline__ u32 slot_of(const Turns& turns, u32 round) {
        return Rounds::kRounds % Rounds::kSlots == 0 ? round % Rounds::kSlots : turns.stage;
    }

    static __device__ __forceinline__ u8* boxes(const Shared& shared, u32 group, u32 warp, u32 slot) {
        return shared.epilogue() + (group * 4 + warp) * Layout::kWarpStoreBytes +
               slot * Rounds::kRound * Layout::kAtomBytes;
    }

    // By the lanes of the warp that sets up barriers.
    static __device__ __forceinline__ void init(const Shared& shared, u32 lane) {
        if (lane >= kGroups * Rounds::kSlots) return;
        staged(shared, lane / Rounds::kSlots, lane % Rounds::kSlots).init(4 * kWarpArrivals);
        unstaged(shared, lane / Rounds::kSlots, lane % Rounds::kSlots).init(kWarpArrivals);
    }

    // By the math warps. `corner`, and `c` if it is added here, are D's.
    template <class Corner>
    static __device__ __forceinline__ void stage(const Shared& shared, Turns& turns,
                                                 float (&sum)[Epilogue::kWaves][Epilogue::kAccumulators], const Out* c,
                                                 Corner corner, Fragment at, u32 group, u32 warp, u32 lane, u32 m, u32 n) {
        unrolled<Rounds::kRounds>([&](auto round) {
            const u32 slot = slot_of(turns, round.value);
            unstaged(shared, group, slot).wait(turns.phase ^ 1);
            Epilogue::template stage_round<round.value>(boxes(shared, group, warp, slot), sum, c, corner, at,
                                                        kBeside ? 0 : group, lane, m, n);
            arrive_warp(staged(shared, group, slot), lane);
            turns.advance();
        });
    }

    // By the math warps of a kernel that may have such a warp: the tile is staged, or stored where there is none. Only then
    // are `rows` looked at, and `corner` where there is no C.
    template <class Corner, class Rows>
    static __device__ __forceinline__ void put(const Shared& shared, Turns& turns,
                                               float (&sum)[Epilogue::kWaves][Epilogue::kAccumulators],
                                               const TensorMap& d_map, const Out* c, Corner corner, Fragment at, u32 group,
                                               u32 warp, u32 lane, u32 m, u32 n, Rows rows) {
        if constexpr (Layout::kStoreWarp) {
            stage(shared, turns, sum, c, corner, at, group, warp, lane, m, n);
        } else {
            Epilogue::store_by_tma(shared, sum, d_map, c, corner, at, group, warp, lane, m, n, rows);
        }
    }

    // By the producers' warps: `first` and the one behind it load nothing. One stores, if tiles are handed over; rows of no
    // tile are for the other, or for both.
    template <class Walk>
    static __device__ __forceinline__ void serve(const Shared& shared, const TensorMap& d_map, Out* d, u32 m, u32 n, u32 k,
                                                 u32 warp, u32 first) {
        if constexpr (Layout::kStoreWarp) {
            if (whole_warp(warp == first)) run<Walk>(shared, d_map, d, m, n, k);
            if (warp == first + 1) Walk::template fill_up<1>(shared, d, m, n, 0);
        } else {
            if (warp >= first) Walk::template fill_up<2>(shared, d, m, n, warp - first);
        }
    }

    // By the warp that stores: what a warpgroup has staged in a round. The fence is for what others have written: it stands
    // between their arrival and the reads of TMA.
    template <class Corner, class Rows>
    static __device__ __forceinline__ void send(const Shared& shared, const TensorMap& d_map, Corner corner, Rows rows,
                                                u32 round, u32 group, u32 slot, u32 n, u32 lane) {
        const u32 count = min(Rounds::kRound, Rounds::kAll - round * Rounds::kRound);
        const u32 top = corner.row + (kBeside ? 0 : group * 64), left = corner.column + group * kBeside;
        fence_async_proxy();
#pragma unroll 1
        for (u32 box = lane; box < 4 * count; box += 32) {
            const u32 warp = box / count, i = box % count;
            const u32 row = top + Epilogue::row_of(round, i) + warp * 16;
            if (rows.whole(row))
                Epilogue::send_box(corner, d_map, boxes(shared, group, warp, slot) + i * Layout::kAtomBytes,
                                   left + Epilogue::column_of(round, i), row);
        }
        tma_store_commit();
        if constexpr (!Rows::kAll) {
#pragma unroll 1
            for (u32 box = 0; box < 4 * count; ++box) {
                const u32 warp = box / count, i = box % count;
                const u32 row = top + Epilogue::row_of(round, i) + warp * 16;
                if (!rows.whole(row) && rows.any(row))
                    rows.template store_box<Config::kStoreAtomBytes>(
                        boxes(shared, group, warp, slot) + i * Layout::kAtomBytes, row,
                        left + Epilogue::column_of(round, i), n, lane);
            }
        }
        tma_store_wait_read<0>();
    }

    // By the warp that stores, for a tile: the results of warpgroups from `first` on.
    template <class Corner, class Rows>
    static __device__ __forceinline__ void send_tile(const Shared& shared, Turns& turns, const TensorMap& d_map,
                                                     Corner corner, Rows rows, u32 n, u32 lane, u32 first = 0,
                                                     u32 end = kGroups) {
#pragma unroll 1
        for (u32 round = 0; round < Rounds::kRounds; ++round, turns.advance()) {
#pragma unroll 1
            for (u32 group = first; group < end; ++group) {
                staged(shared, group, turns.stage).wait(turns.phase);
                send(shared, d_map, corner, rows, round, group, turns.stage, n, lane);
                arrive_warp(unstaged(shared, group, turns.stage), lane);
            }
        }
    }

    template <class Walk>
    static __device__ __forceinline__ void run(const Shared& shared, const TensorMap& d_map, Out* d, u32 m, u32 n, u32 k) {
        Walk walk(shared, m, n, k);
        Turns turns;
        for (u32 index = walk.first; index < walk.count(); index += walk.step) {
            const auto corner = walk.corner(index);
            send_tile(shared, turns, d_map, corner, walk.rows(d), n, threadIdx.x % 32);
        }
    }
};
