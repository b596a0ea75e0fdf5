// Quantises a matrix to FP8 (e4m3), one scale a block, in one pass over it: as it lies ("straight"), transposed
// ("turned"), or both from one read.
//
// A CTA takes a tile of kTileRows x 128. A thread has 4 or 8 rows of 8 columns, a half-warp as many rows of all 128: the
// largest magnitudes of rows meet by shuffles, those of columns and of blocks of 128 x 128 through shared memory. What
// is turned goes through shared memory, where four rows of a column are one word.
//
// With `Config::kGated` x has twice the columns, and what is quantised is their SwiGLU: the first half gates the second.
// With `Config::kBatched` x is a stack of matrices, one for each blockIdx.y, and scaled by blocks of 128 x 128.
#pragma once
#include "common/barrier.cuh"
#include "common/fp8_cast.cuh"
#include "common/swiglu.cuh"
#include "common/types.cuh"

template <class Config>
struct Sm90CastFp8 {
    using In = typename Config::In;
    using Scale = typename Config::Scale;
    using Words = ::Words<In>;
    using BlockScale = ::BlockScale<Scale>;
    static constexpr u32 kTileRows = Config::kTileRows, kTileColumns = 128;
    static constexpr u32 kRows = Config::kThreadRows, kColumns = 8;  // of a thread
    static constexpr u32 kThreads = kTileRows / kRows * 16, kWarps = kThreads / 32;
    static constexpr u32 kWords = kColumns / Words::kElements;
    static constexpr u32 kLoad = Config::kLoad;               // elements of an access to x, which divide a row of it
    static constexpr u32 kStore = Config::kStore;             // bytes of an access to turned data, likewise
    static constexpr u32 kLanes = Config::kScaleColumns / 8;  // that share a row's scale
    static constexpr u32 kQuads = kTileRows / 4;
    static constexpr bool kBlock = Config::kBlock, kStraight = Config::kStraight, kTurned = Config::kTurned;
    static constexpr bool kGated = requires { requires Config::kGated; };
    static_assert(kLoad * sizeof(In) <= 16 && kStore <= 16, "an access is of at most 16 bytes");
    static_assert(kTileRows == 128 || (!kBlock && !kTurned), "what is scaled along columns takes 128 rows");
    static_assert(kRows % 4 == 0, "four rows of a column are a word");
    static_assert(kLanes == 16 || kStraight, "only rows have other scales");

    struct alignas(16) Shared {
        union {
            u32 column_amax[kWarps][kTurned ? 128 : 1];  // by `slot`
            u32 turned[kTurned ? 128 * kQuads : 1];      // [column][four rows], swizzled
        };
        float column_reciprocals[kTurned ? 128 : 1];  // by `slot`
        u32 block_amax[kWarps];
    };

    struct Problem {
        const In* x;
        u8* straight;           // [rows, columns]
        Scale* straight_scale;  // [column blocks][rows], or [row blocks][column blocks]
        u8* turned;             // [columns, rows]
        Scale* turned_scale;    // [row blocks][columns], or [column blocks][row blocks]
        u32 rows, columns, smallest;
    };

    // Of x, those that the tile has; beyond the last all is zero.
    struct Rows {
        u32 first, end;
    };

    const Problem& problem;
    Shared& shared;
    const u32 row_tile, column_tile, lane, chunk, strip;  // of a tile's kRows rows, a half-warp's
    const Rows rows;
    u32 words[kRows][kWords];

    __device__ __forceinline__ Sm90CastFp8(const Problem& problem, Shared& shared, u32 tile)
        : Sm90CastFp8(problem, shared, tile,
                      {tile / ceil_div(problem.columns, kTileColumns) * kTileRows, problem.rows}) {}

    __device__ __forceinline__ Sm90CastFp8(const Problem& problem, Shared& shared, u32 tile, Rows rows)
        : problem(problem),
          shared(shared),
          row_tile(tile / ceil_div(problem.columns, kTileColumns)),
          column_tile(tile % ceil_div(problem.columns, kTileColumns)),
          lane(threadIdx.x % 32),
          chunk(lane % 16),
          strip(threadIdx.x / 16),
          rows(rows) {}

    // Element j of a thread's columns: accesses of a group of lanes are neighbours.
    static __device__ __forceinline__ u32 column_of(u32 chunk, u32 j) {
        return chunk / kLanes * kLanes * 8 + (j / kLoad * kLanes + chunk % kLanes) * kLoad + j % kLoad;
    }

    // Where the maximum of a column is: without bank conflicts for the threads that have it as element j.
    static __device__ __forceinline__ u32 slot_of(u32 chunk, u32 j) { return j % 4 * 32 + j / 4 * 16 + chunk; }

    __device__ __forceinline__ u32 row(u32 i) const { return rows.first + strip * kRows + i; }
    __device__ __forceinline__ u32 column(u32 j) const { return column_tile * kTileColumns + column_of(chunk, j); }

    __device__ __forceinline__ float value(u32 i, u32 j) const {
        return Words::value(Words::element(words[i][j / Words::kElements], j % Words::kElements));
    }

    __device__ __forceinline__ void load() {
#pragma unroll
        for (u32 i = 0; i < kRows; ++i) {
            const In* from = problem.x + static_cast<u64>(row(i)) * problem.columns * (kGated ? 2 : 1);
#pragma unroll
            for (u32 w = 0; w < kWords; ++w) words[i][w] = 0;
#pragma unroll
            for (u32 j = 0; j < kColumns; j += kLoad) {
                if (row(i) < rows.end && column(j) < problem.columns)
                    read_bytes<kLoad * sizeof(In)>(&words[i][j / Words::kElements], from + column(j),
                                                   j % Words::kElements);
            }
        }
        if constexpr (kGated) gate();
    }

    __device__ __forceinline__ void gate() {
#pragma unroll
        for (u32 i = 0; i < kRows; ++i) {
            const In* from = problem.x + (static_cast<u64>(row(i)) * 2 + 1) * problem.columns;
            alignas(16) u32 up[kWords];
#pragma unroll
            for (u32 w = 0; w < kWords; ++w) up[w] = 0;
#pragma unroll
            for (u32 j = 0; j < kColumns; j += kLoad) {
                if (row(i) < problem.rows && column(j) < problem.columns)
                    read_bytes<kLoad * sizeof(In)>(&up[j / Words::kElements], from + column(j), j % Words::kElements);
            }
#pragma unroll
            for (u32 w = 0; w < kWords; ++w) words[i][w] = swiglu_word<In>(words[i][w], up[w]);
        }
    }

    __device__ __forceinline__ BlockScale scale_of(u32 amax) const {
        const float known = __uint_as_float(max(__float_as_uint(Words::value(amax)), problem.smallest));
        return BlockScale::of(known, e4m3_inverse());
    }

    // ---- scales ---------------------------------------------------------------------------------------------------

    __device__ __forceinline__ u32 row_amax(u32 i) const { return largest_magnitude<In>(words[i]); }

    // Of the group's row `first + lane % 4`.
    __device__ __forceinline__ BlockScale row_scale(u32 first) const {
        return scale_of(row_maximum<kLanes>([this, first](u32 i) { return row_amax(first + i); }, lane));
    }

    __device__ __forceinline__ BlockScale block_scale() const {
        u32 amax = row_amax(0);
#pragma unroll
        for (u32 i = 1; i < kRows; ++i) amax = max(amax, row_amax(i));
        amax = __reduce_max_sync(0xffffffffu, amax);
        if (lane == 0) shared.block_amax[threadIdx.x / 32] = amax;
        __syncthreads();
        return scale_of(__reduce_max_sync(0xffffffffu, shared.block_amax[lane % kWarps]));
    }

    __device__ __forceinline__ void publish_column_amax() const {
        u32 found[kWords];
#pragma unroll
        for (u32 w = 0; w < kWords; ++w) {
            found[w] = Words::magnitude(words[0][w]);
#pragma unroll
            for (u32 i = 1; i < kRows; ++i) found[w] = Words::larger(found[w], Words::magnitude(words[i][w]));
        }
        // The two halves of a warp have the same columns; each keeps half of them.
        const bool upper = lane >= 16;
#pragma unroll
        for (u32 w = 0; w < kWords / 2; ++w) {
            const u32 mine = upper ? found[w + kWords / 2] : found[w], other = upper ? found[w] : found[w + kWords / 2];
            const u32 largest = Words::larger(mine, __shfl_xor_sync(0xffffffffu, other, 16));
#pragma unroll
            for (u32 e = 0; e < Words::kElements; ++e)
                shared.column_amax[threadIdx.x / 32][(w * Words::kElements + e) * 32 + lane] =
                    Words::element(largest, e);
        }
    }

    __device__ __forceinline__ void scale_columns() const {
        const u32 t = threadIdx.x;
        if (t >= kTileColumns) return;
        const u32 slot = slot_of(t % (16 * kLoad) / kLoad, t / (16 * kLoad) * kLoad + t % kLoad);
        u32 amax = shared.column_amax[0][slot];
#pragma unroll
        for (u32 w = 1; w < kWarps; ++w) amax = max(amax, shared.column_amax[w][slot]);
        const BlockScale found = scale_of(amax);
        shared.column_reciprocals[slot] = found.reciprocal;
        const u32 column = column_tile * kTileColumns + t;
        if (column < problem.columns)
            problem.turned_scale[static_cast<u64>(row_tile) * problem.columns + column] = found.stored;
    }

    // ---- data -----------------------------------------------------------------------------------------------------

    // To `to`, which goes on to the next row: addresses that are kept from loading would take two registers a row.
    __device__ __forceinline__ void store_row(u32 i, float by, u8*& to) const {
        const u32 bytes[2] = {pack_e4m3(value(i, 0) * by, value(i, 1) * by, value(i, 2) * by, value(i, 3) * by),
                              pack_e4m3(value(i, 4) * by, value(i, 5) * by, value(i, 6) * by, value(i, 7) * by)};
#pragma unroll
        for (u32 j = 0; j < kColumns; j += kLoad) {
            if (row(i) < problem.rows && column(j) < problem.columns)
                write_bytes<kLoad>(to + column(j), bytes + j / 4, j % 4);
        }
        to += problem.columns;
    }

    // What has been made of the words is made anew: to keep it would take twice the registers.
    __device__ __forceinline__ void forget() {
#pragma unroll
        for (u32 i = 0; i < kRows; ++i) {
#pragma unroll
            for (u32 w = 0; w < kWords; ++w) asm volatile("" : "+r"(words[i][w]));
        }
    }

    // Of the turned tile, words are swizzled so that lanes of neighbouring columns write to other banks.
    static __device__ __forceinline__ u32 turned_word(u32 column, u32 quad) {
        return column * kQuads + (quad ^ (column / kLoad % 8 * 4));
    }

    __device__ __forceinline__ void turn(u32 j, float by) const {
#pragma unroll
        for (u32 i = 0; i < kRows; i += 4)
            shared.turned[turned_word(column_of(chunk, j), (strip * kRows + i) / 4)] =
                pack_e4m3(value(i, j) * by, value(i + 1, j) * by, value(i + 2, j) * by, value(i + 3, j) * by);
    }

    // Neighbouring lanes store neighbours, however narrow the accesses are.
    __device__ __forceinline__ void store_turned() const {
        constexpr u32 kPieces = kTileRows / kStore;  // of a column
#pragma unroll 4
        for (u32 at = threadIdx.x; at < kTileColumns * kPieces; at += kThreads) {
            const u32 within = at / kPieces, byte = at % kPieces * kStore;
            const u32 column = column_tile * kTileColumns + within, row = row_tile * kTileRows + byte;
            if (column >= problem.columns || row >= problem.rows) continue;
            const u32* from = &shared.turned[turned_word(within, byte / 4)];
            write_bytes<kStore>(problem.turned + static_cast<u64>(column) * problem.rows + row, from, byte % 4);
        }
    }

    // ---- all of it ------------------------------------------------------------------------------------------------

    __device__ __forceinline__ void run() {
        load();
        u8* to = problem.straight + static_cast<u64>(row(0)) * problem.columns;
        if constexpr (kBlock) {
            const BlockScale scale = block_scale();
            const u32 row_tiles = ceil_div(problem.rows, kTileRows), column_tiles = ceil_div(problem.columns, 128);
            if (threadIdx.x == 0) {
                if constexpr (kStraight)
                    problem.straight_scale[static_cast<u64>(row_tile) * column_tiles + column_tile] = scale.stored;
                if constexpr (kTurned)
                    problem.turned_scale[static_cast<u64>(column_tile) * row_tiles + row_tile] = scale.stored;
            }
            if constexpr (kStraight) {
#pragma unroll
                for (u32 i = 0; i < kRows; ++i) store_row(i, scale.reciprocal, to);
            }
            if constexpr (kTurned) {
                if constexpr (kStraight) forget();
#pragma unroll
                for (u32 j = 0; j < kColumns; ++j) turn(j, scale.reciprocal);
            }
        } else {
            if constexpr (kTurned) publish_column_amax();
            if constexpr (kStraight) {
                const u32 group = column_tile * (16 / kLanes) + chunk / kLanes, leader = lane / kLanes * kLanes;
#pragma unroll
                for (u32 first = 0; first < kRows; first += 4) {
                    const BlockScale found = row_scale(first);
                    const u32 mine = row(first + lane % 4);
                    if (lane % kLanes < 4 && mine < problem.rows && group * kLanes * 8 < problem.columns)
                        problem.straight_scale[static_cast<u64>(group) * problem.rows + mine] = found.stored;
#pragma unroll
                    for (u32 i = 0; i < 4; ++i)
                        store_row(first + i, __shfl_sync(0xffffffffu, found.reciprocal, leader + i), to);
                }
            }
            if constexpr (kTurned) {
                if constexpr (kStraight) forget();
                __syncthreads();
                scale_columns();
                __syncthreads();
#pragma unroll
                for (u32 j = 0; j < kColumns; ++j) turn(j, shared.column_reciprocals[slot_of(chunk, j)]);
            }
        }
        if constexpr (kTurned) {
            __syncthreads();
            store_turned();
        }
    }
};

template <class Config>
__global__ void __launch_bounds__(Sm90CastFp8<Config>::kThreads, Config::kMinCtas)
    sm90_cast_fp8(const typename Config::In* x, u8* straight, typename Config::Scale* straight_scale, u8* turned,
                  typename Config::Scale* turned_scale, u32 rows, u32 columns, float smallest) {
    using Cast = Sm90CastFp8<Config>;
    __shared__ typename Cast::Shared shared;
    if constexpr (requires { requires Config::kBatched; }) {
        static_assert(Config::kBlock, "matrices of a stack are scaled by blocks");
        const u64 size = static_cast<u64>(rows) * columns * blockIdx.y;
        const u64 blocks = static_cast<u64>(ceil_div(rows, 128)) * ceil_div(columns, 128) * blockIdx.y;
        x += size, straight += size, turned += size, straight_scale += blocks, turned_scale += blocks;
    }
    const typename Cast::Problem problem{x,    straight, straight_scale,           turned, turned_scale,
                                         rows, columns,  __float_as_uint(smallest)};
    wait_for_predecessor();
    release_successor();
    Cast(problem, shared, blockIdx.x).run();
}
