// Where the copies of tokens go when they are sorted by expert: a stable counting sort in one launch.
//
// Each CTA places a run of copies. It counts the experts of all copies, those before its run apart from the rest, so
// that no CTA waits for another: reading them all again costs less than a second launch, up to some 10^5 copies.
// Counts are integers, so the order of the atomic additions does not matter. Lanes count apart, each in a bank of its own,
// as far as shared memory allows: those of a warp with the same expert would wait for each other.
#pragma once
#include "common/barrier.cuh"
#include "common/types.cuh"

template <class Config>
struct Sm90MoeSort {
    static constexpr u32 kThreads = Config::kThreads, kLanes = 32, kCopies = Config::kCopies;
    static constexpr u32 kNone = 0xffffffffu;

    const int* experts;
    u32 count, groups;

    // Copies of no expert are sorted behind all others.
    __device__ __forceinline__ u32 bucket(u32 copy) const { return min(static_cast<u32>(experts[copy]), groups); }

    // `before` and `rest` have kCopies counters for each expert.
    __device__ __forceinline__ void count_all(u32 begin, u32* before, u32* rest) const {
        const u32 copy = threadIdx.x % kCopies;
#pragma unroll 8
        for (u32 i = threadIdx.x; i < count; i += kThreads)
            atomicAdd((i < begin ? before : rest) + bucket(i) * kCopies + copy, 1u);
    }

    // By warps, an expert each.
    __device__ __forceinline__ void add_up(const u32* counters, u32* sums) const {
        const u32 lane = threadIdx.x % kLanes;
        for (u32 e = threadIdx.x / kLanes; e < 2 * (groups + 1); e += kThreads / kLanes) {
            const u32 sum = __reduce_add_sync(0xffffffffu, lane < kCopies ? counters[e * kCopies + lane] : 0);
            if (lane == 0) sums[e] = sum;
        }
    }

    // By one warp: `before` becomes where the run's first copy of each expert goes.
    __device__ __forceinline__ void prefix(u32* before, const u32* rest, int* sizes, int* ends, u32 lane) const {
        const u32 each = ceil_div(groups + 1, kLanes), first = min(lane * each, groups + 1);
        const u32 last = min(first + each, groups + 1);
        u32 mine = 0;
        for (u32 e = first; e < last; ++e) mine += before[e] + rest[e];
        u32 start = mine;
#pragma unroll
        for (u32 step = 1; step < kLanes; step *= 2) {
            const u32 other = __shfl_up_sync(0xffffffffu, start, step);
            if (lane >= step) start += other;
        }
        start -= mine;
        for (u32 e = first; e < last; ++e) {
            const u32 size = before[e] + rest[e];
            before[e] += start;
            start += size;
            if (blockIdx.x == 0 && e < groups) sizes[e] = size, ends[e] = start;
        }
    }

    // Warps take their turns, so that copies of an expert stay in their order.
    __device__ __forceinline__ void place(u32 begin, u32 end, u32* next, int* rows) const {
        const u32 warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
        for (u32 base = begin; base < end; base += kThreads) {
            const u32 i = base + threadIdx.x, mine = i < end ? bucket(i) : kNone;
            const u32 alike = __match_any_sync(0xffffffffu, mine), rank = __popc(alike & ((1u << lane) - 1));
            const u32 warps = ceil_div(min(end - base, kThreads), kLanes);
            for (u32 turn = 0; turn < warps; ++turn) {
                if (turn == warp) {
                    u32 row = 0;
                    if (mine != kNone && rank == 0) row = next[mine], next[mine] = row + __popc(alike);
                    row = __shfl_sync(0xffffffffu, row, __ffs(alike) - 1) + rank;
                    if (mine != kNone) rows[i] = mine < groups ? row : ~row;
                }
                __syncthreads();
            }
        }
    }
};

// rows: for each copy its row, or the complement of it if the copy has no expert. sizes, ends: of each expert's rows.
// copies: that a CTA places. Shared memory: for each expert and one more two sums, and as many counters kCopies times.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    sm90_moe_sort(const int* experts, int* rows, int* sizes, int* ends, u32 count, u32 groups, u32 copies) {
    extern __shared__ u32 sums[];
    u32* const before = sums;
    u32* const rest = sums + groups + 1;
    u32* const counters = sums + 2 * (groups + 1);
    const Sm90MoeSort<Config> sort{experts, count, groups};
    for (u32 i = threadIdx.x; i < 2 * (groups + 1) * Config::kCopies; i += Config::kThreads) counters[i] = 0;
    __syncthreads();
    wait_for_predecessor();
    release_successor();
    const u32 begin = min(blockIdx.x * copies, count), end = min(begin + copies, count);
    sort.count_all(begin, counters, counters + (groups + 1) * Config::kCopies);
    __syncthreads();
    sort.add_up(counters, sums);
    __syncthreads();
    if (threadIdx.x < 32) sort.prefix(before, rest, sizes, ends, threadIdx.x);
    __syncthreads();
    sort.place(begin, end, before, rows);
}
