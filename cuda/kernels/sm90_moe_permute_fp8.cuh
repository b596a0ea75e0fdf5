// Quantises tokens to FP8 (e4m3), one scale for each 128 columns, and copies them to where `rows` says: what
// sm90_cast_fp8 makes of the rows that sm90_moe_permute writes, bit for bit, without writing and reading those.
//
// Eight lanes have a block of 128 columns of a token. Each row is read and quantised once.
#pragma once
#include "common/barrier.cuh"
#include "common/fp8_cast.cuh"
#include "common/types.cuh"

template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    sm90_moe_permute_fp8(const typename Config::In* x, const int* rows, u8* y, float* scales, u32 columns, u32 pieces,
                         u32 result_rows, float smallest) {
    using In = typename Config::In;
    using Words = ::Words<In>;
    constexpr u32 kTopK = Config::kTopK, kLanes = 8, kColumns = 16;
    constexpr u32 kWords = kColumns / Words::kElements;
    constexpr u32 kAccess = 16 / sizeof(In);  // elements
    wait_for_predecessor();
    release_successor();
    const u32 token = blockIdx.x / pieces, piece = blockIdx.x % pieces, lane = threadIdx.x % kLanes;
    const u32 block = piece * (Config::kThreads / kLanes) + threadIdx.x / kLanes;
    const u32 column = block * 128 + lane * kColumns;
    const In* const from = x + static_cast<u64>(token) * columns;
    alignas(16) u32 words[kWords];
#pragma unroll
    for (u32 w = 0; w < kWords; ++w) words[w] = 0;
#pragma unroll
    for (u32 i = 0; i < kColumns; i += kAccess) {
        if (column + i < columns) read_bytes<16>(words + i / Words::kElements, from + column + i, 0);
    }
    u32 amax = largest_magnitude<In>(words);
#pragma unroll
    for (u32 step = 1; step < kLanes; step *= 2) amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, step));
    const u32 least = __float_as_uint(smallest);
    const float known = __uint_as_float(max(__float_as_uint(Words::value(amax)), least));
    const BlockScale<float> scale = BlockScale<float>::of(known, e4m3_inverse());
    const float none = BlockScale<float>::of(smallest, e4m3_inverse()).stored;
    alignas(16) u32 packed[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        float v[4];
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            const u32 at = 4 * i + e;
            v[e] = Words::value(Words::element(words[at / Words::kElements], at % Words::kElements)) * scale.reciprocal;
        }
        packed[i] = pack_e4m3(v[0], v[1], v[2], v[3]);
    }
    if (column >= columns) return;
    const int* const places = rows + static_cast<u64>(token) * kTopK;
#pragma unroll Config::kUnroll
    for (u32 j = 0; j < kTopK; ++j) {
        const int place = places[j];
        const u32 row = place < 0 ? ~place : place;
        if (row >= result_rows) continue;
        uint4 data = make_uint4(packed[0], packed[1], packed[2], packed[3]);
        if (place < 0) data = make_uint4(0, 0, 0, 0);
        *reinterpret_cast<uint4*>(y + static_cast<u64>(row) * columns + column) = data;
    }
    // Lanes share out the copies: a scale is one of few that lie side by side. Those beyond the last column have left.
    const u32 present = min(kLanes, ceil_div(columns - block * 128, kColumns));
    for (u32 j = lane; j < kTopK; j += present) {
        const int place = places[j];
        const u32 row = place < 0 ? ~place : place;
        if (row < result_rows)
            scales[static_cast<u64>(block) * result_rows + row] = place < 0 ? none : scale.stored;
    }
}
