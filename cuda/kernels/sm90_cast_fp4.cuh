// Quantises a matrix to FP4 (e2m1, two to a byte, the first in its lower half), one scale for each row and
// kScaleColumns columns, in one pass over it.
//
// A CTA takes a tile of kTileRows x 256. A warp has 4 whole rows of it, a thread 8 columns of each: one word of packed
// data a row. The largest magnitudes meet by shuffles.
#pragma once
#include "common/barrier.cuh"
#include "common/cast.cuh"
#include "common/fp4_cast.cuh"
#include "common/types.cuh"

template <class Config>
struct Sm90CastFp4 {
    using In = typename Config::In;
    using Scale = typename Config::Scale;
    using Words = ::Words<In>;
    using BlockScale = ::BlockScale<Scale>;
    static constexpr u32 kRows = 4, kColumns = 8;  // of a thread
    static constexpr u32 kTileRows = Config::kTileRows, kTileColumns = 32 * kColumns;
    static constexpr u32 kThreads = kTileRows / kRows * 32;
    static constexpr u32 kWords = kColumns / Words::kElements;
    static constexpr u32 kLoad = Config::kLoad;                      // elements of an access to x, which divide a row
    static constexpr u32 kLanes = Config::kScaleColumns / kColumns;  // that share a row's scale
    static_assert(kTileRows % kRows == 0 && kLanes >= kRows, "a lane finds the scale of one row at most");
    static_assert(kLoad % 2 == 0 && kLoad * sizeof(In) <= 16, "an access is of whole bytes of data, at most 16 of x");

    struct Problem {
        const In* x;
        u8* data;      // [rows, columns / 2]
        Scale* scale;  // [rows, blocks of kScaleColumns]
        u32 rows, columns, smallest;
    };

    const Problem& problem;
    const u32 first_row, column_tile, lane, first_column;
    u32 words[kRows][kWords];

    __device__ __forceinline__ Sm90CastFp4(const Problem& problem, u32 tile)
        : problem(problem),
          first_row(tile / ceil_div(problem.columns, kTileColumns) * kTileRows + threadIdx.x / 32 * kRows),
          column_tile(tile % ceil_div(problem.columns, kTileColumns)),
          lane(threadIdx.x % 32),
          first_column(column_tile * kTileColumns + lane / kLanes * Config::kScaleColumns + lane % kLanes * kLoad) {}

    // How far behind the first of a thread's columns element j is: accesses of lanes that share a scale are neighbours.
    static __device__ __forceinline__ u32 behind(u32 j) { return j / kLoad * kLoad * kLanes + j % kLoad; }

    __device__ __forceinline__ bool has(u32 i, u32 j) const {
        return first_row + i < problem.rows && first_column + behind(j) < problem.columns;
    }

    __device__ __forceinline__ void load() {
        const In* from = problem.x + static_cast<u64>(first_row) * problem.columns + first_column;
#pragma unroll
        for (u32 i = 0; i < kRows; ++i, from += problem.columns) {
#pragma unroll
            for (u32 w = 0; w < kWords; ++w) words[i][w] = 0;
#pragma unroll
            for (u32 j = 0; j < kColumns; j += kLoad) {
                if (has(i, j))
                    read_bytes<kLoad * sizeof(In)>(&words[i][j / Words::kElements], from + behind(j),
                                                   j % Words::kElements);
            }
        }
    }

    // Of row `lane % 4`.
    __device__ __forceinline__ BlockScale row_scale() const {
        const u32 amax = row_maximum<kLanes>([this](u32 i) { return largest_magnitude<In>(words[i]); }, lane);
        const float known = __uint_as_float(max(__float_as_uint(Words::value(amax)), problem.smallest));
        return BlockScale::of(known, e2m1_inverse());
    }

    __device__ __forceinline__ void store_scale(Scale scale) const {
        const u32 group = column_tile * (kTileColumns / Config::kScaleColumns) + lane / kLanes;
        const u32 groups = ceil_div(problem.columns, Config::kScaleColumns);
        const u32 row = first_row + lane % kRows;
        if (lane % kLanes < kRows && row < problem.rows && group < groups)
            problem.scale[static_cast<u64>(row) * groups + group] = scale;
    }

    // `by` is the reciprocal of a scale. FP4 has no NaN: zeros stand under a scale that is NaN or Inf.
    __device__ __forceinline__ void store_row(u32 i, float by, u8* to) const {
        const u32 packed = by > 0 ? pack_e2m1<In>(words[i], by) : 0;
#pragma unroll
        for (u32 j = 0; j < kColumns; j += kLoad) {
            if (has(i, j)) write_bytes<kLoad / 2>(to + behind(j) / 2, &packed, j / 2);
        }
    }

    __device__ __forceinline__ void run() {
        load();
        const BlockScale mine = row_scale();
        store_scale(mine.stored);
        const u32 row_bytes = problem.columns / 2;
        u8* to = problem.data + static_cast<u64>(first_row) * row_bytes + first_column / 2;
#pragma unroll
        for (u32 i = 0; i < kRows; ++i, to += row_bytes)
            store_row(i, __shfl_sync(0xffffffffu, mine.reciprocal, lane / kLanes * kLanes + i), to);
    }
};

template <class Config>
__global__ void __launch_bounds__(Config::kTileRows / 4 * 32)
    sm90_cast_fp4(const typename Config::In* x, u8* data, typename Config::Scale* scale, u32 rows, u32 columns,
                  float smallest) {
    using Cast = Sm90CastFp4<Config>;
    const typename Cast::Problem problem{x, data, scale, rows, columns, __float_as_uint(smallest)};
    wait_for_predecessor();
    release_successor();
    Cast(problem, blockIdx.x).run();
}
