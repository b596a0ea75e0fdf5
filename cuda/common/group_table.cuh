// The groups of an m-grouped GEMM as a CTA finds them on the device: which rows each has, and where its tiles begin.
//
// Nothing that the device says is trusted: rows end at M, a group that none can have is none, and a table is always
// such that its tiles lie in A and D.
#pragma once
#include "common/barrier.cuh"
#include "common/types.cuh"

struct alignas(16) GroupEntry {
    u32 first_tile, start, end;  // rows [start, end) of A and D, not all of them the group's if it is scattered
    u32 group;                   // with kScattered
};

// In shared memory. Only groups with rows have entries; behind the last is one whose `first_tile` is `tiles`.
struct alignas(16) GroupTable {
    static constexpr u32 kScattered = 1u << 31;
    u32 tiles, used, groups;  // `used`: rows before the end of the last group
    const int* index;         // the layout
    GroupEntry entries[1];
};

// What each group says of itself, before it is checked.
struct GroupSpans {
    u32 *start, *end, *runs;
    __device__ __forceinline__ GroupSpans(u8* base, u32 groups)
        : start(reinterpret_cast<u32*>(base)), end(start + groups), runs(end + groups) {}
};

__device__ __forceinline__ u32 clamped(int value, u32 most) { return min(static_cast<u32>(max(value, 0)), most); }

// layout[g] is where group g ends and the next begins.
struct PsumGroups {
    static constexpr bool kIndexed = false, kFollow = true, kFillsUp = true;
    static __device__ __forceinline__ void find(const GroupSpans& spans, const int* layout, u32 groups, u32 m,
                                                u32 thread, u32 threads) {
        for (u32 g = thread; g < groups; g += threads) spans.end[g] = clamped(layout[g], m), spans.runs[g] = 1;
    }
};

// Each group has as many rows as the others, of which the first layout[g] count.
struct MaskedGroups {
    static constexpr bool kIndexed = false, kFollow = false, kFillsUp = false;
    static __device__ __forceinline__ void find(const GroupSpans& spans, const int* layout, u32 groups, u32 m,
                                                u32 thread, u32 threads) {
        const u32 most = m / groups;
        for (u32 g = thread; g < groups; g += threads) {
            spans.start[g] = g * most, spans.end[g] = g * most + clamped(layout[g], most), spans.runs[g] = 1;
        }
    }
};

// layout[row] is the group of a row, if there is such a group.
struct IndexGroups {
    static constexpr bool kIndexed = true, kFollow = false, kFillsUp = true;
    static __device__ __forceinline__ void find(const GroupSpans& spans, const int* layout, u32 groups, u32 m,
                                                u32 thread, u32 threads) {
        for (u32 g = thread; g < groups; g += threads) spans.start[g] = ~0u, spans.end[g] = 0, spans.runs[g] = 0;
        __syncthreads();
        // All loads of a round are under way at once: a CTA has the whole layout to read before it can begin.
        constexpr u32 kRows = 16;  // of a thread in a round, 4 of them neighbours
        const u32 lane = thread % 32;
        const int none = static_cast<int>(groups);
        const auto at = [&](u32 row) { return row < m ? layout[row] : none; };
        for (u32 base = (thread - lane) * kRows; base < m; base += threads * kRows) {
            int mine[kRows / 4][4], before[kRows / 4], after[kRows / 4];
#pragma unroll
            for (u32 i = 0; i < kRows / 4; ++i) {
                const u32 row = base + i * 128 + lane * 4;
                if (row + 4 <= m) {
                    const int4 four = *reinterpret_cast<const int4*>(layout + row);
                    mine[i][0] = four.x, mine[i][1] = four.y, mine[i][2] = four.z, mine[i][3] = four.w;
                } else {
#pragma unroll
                    for (u32 j = 0; j < 4; ++j) mine[i][j] = at(row + j);
                }
                before[i] = lane == 0 && row > 0 ? at(row - 1) : none;
                after[i] = lane == 31 ? at(row + 4) : none;
            }
#pragma unroll
            for (u32 i = 0; i < kRows / 4; ++i) {
                const u32 row = base + i * 128 + lane * 4;
                const int left = __shfl_up_sync(0xffffffff, mine[i][3], 1);
                const int right = __shfl_down_sync(0xffffffff, mine[i][0], 1);
#pragma unroll
                for (u32 j = 0; j < 4; ++j) {
                    const int group = mine[i][j];
                    const int above = j > 0 ? mine[i][j - (j > 0)] : lane == 0 ? before[i] : left;
                    const int below = j < 3 ? mine[i][j + (j < 3)] : lane == 31 ? after[i] : right;
                    if (static_cast<u32>(group) >= groups) continue;
                    if (above != group) atomicMin(&spans.start[group], row + j), atomicAdd(&spans.runs[group], 1);
                    if (below != group) atomicMax(&spans.end[group], row + j + 1);
                }
            }
        }
    }
};

// Fills the table; run by all threads of a CTA. `scratch` is 12 bytes a group that TMA may write to afterwards.
// Tiles are of kTileM rows of a group, and there are `tiles_n` of them beside each other.
template <class Groups, u32 kTileM>
__device__ __forceinline__ void build_group_table(GroupTable& table, u8* scratch, const int* layout, u32 groups, u32 m,
                                                  u32 tiles_n) {
    const u32 thread = threadIdx.x, lane = thread % 32;
    const GroupSpans spans(scratch, groups);
    Groups::find(spans, layout, groups, m, thread, blockDim.x);
    __syncthreads();
    if (thread < 32) {  // a lane takes several groups in a row
        const u32 each = ceil_div(groups, 32), from = min(lane * each, groups), to = min(from + each, groups);
        u32 ended = 0, used = 0;  // where the groups before these end; all
        if constexpr (Groups::kFollow) {
            u32 most = 0;
            for (u32 g = from; g < to; ++g) most = max(most, spans.end[g]);
#pragma unroll
            for (u32 step = 1; step < 32; step *= 2) {
                const u32 other = __shfl_up_sync(0xffffffff, most, step);
                if (lane >= step) most = max(most, other);
            }
            used = __shfl_sync(0xffffffff, most, 31);
            ended = __shfl_up_sync(0xffffffff, most, 1);
            if (lane == 0) ended = 0;
        }
        // f(group, start, end) for those of this lane that have rows.
        const auto each_group = [&](auto f) {
            u32 start = ended;
            for (u32 g = from; g < to; ++g) {
                if constexpr (!Groups::kFollow) start = spans.start[g];
                const u32 end = spans.end[g];
                if (end <= start) continue;
                f(g, start, end);
                start = end;
            }
        };
        u32 tiles = 0, count = 0;
        each_group([&](u32, u32 start, u32 end) { tiles += ceil_div(end - start, kTileM) * tiles_n, ++count; });
        const u32 mine = tiles, my_count = count;
#pragma unroll
        for (u32 step = 1; step < 32; step *= 2) {
            const u32 other = __shfl_up_sync(0xffffffff, tiles, step);
            const u32 other_count = __shfl_up_sync(0xffffffff, count, step);
            if (lane >= step) tiles += other, count += other_count;
        }
        if (lane == 31) {
            table.tiles = tiles, table.used = used, table.groups = groups, table.index = layout;
            table.entries[count].first_tile = tiles;
        }
        u32 first = tiles - mine, at = count - my_count;
        each_group([&](u32 g, u32 start, u32 end) {
            const u32 scattered = spans.runs[g] > 1 ? GroupTable::kScattered : 0;
            table.entries[at++] = {first, start, end, g | scattered};
            first += ceil_div(end - start, kTileM) * tiles_n;
        });
    }
    fence_async_proxy();  // TMA writes to the scratch next
    __syncthreads();
}

// Zeros in the rows of D that belong to no group: a share of them for each of kWarps warps of each CTA.
template <class Groups, u32 kWarps, class Out>
__device__ __forceinline__ void fill_up_rows(const GroupTable& table, Out* d, u32 m, u32 n, u32 warp) {
    if constexpr (!Groups::kFillsUp) return;
    const u32 lane = threadIdx.x % 32, first = blockIdx.x * kWarps + warp, step = gridDim.x * kWarps;
    const u32 vectors = n * sizeof(Out) / 16;  // in a row
    const uint4 zeros = make_uint4(0, 0, 0, 0);
    if constexpr (Groups::kIndexed) {
        for (u32 base = first * 32; base < m; base += step * 32) {
            const u32 row = base + lane;
            const bool none = row < m && static_cast<u32>(table.index[row]) >= table.groups;
            for (u32 left = __ballot_sync(0xffffffff, none); left != 0; left &= left - 1) {
                uint4* const to = reinterpret_cast<uint4*>(d + static_cast<u64>(base + __ffs(left) - 1) * n);
                for (u32 i = lane; i < vectors; i += 32) to[i] = zeros;
            }
        }
    } else {
        for (u32 row = table.used + first; row < m; row += step) {
            uint4* const to = reinterpret_cast<uint4*>(d + static_cast<u64>(row) * n);
            for (u32 i = lane; i < vectors; i += 32) to[i] = zeros;
        }
    }
}
