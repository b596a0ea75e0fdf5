// Copies the rows of tokens to where `rows` says, each to kTopK places, times a weight or as it is: y[row] = w x[token].
//
// A row is read once, and written as often as it has copies. Copies of no expert have the complement of a row, which is
// made zero: so every row of the result is written.
#pragma once
#include "common/barrier.cuh"
#include "common/row_vector.cuh"
#include "common/types.cuh"

template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    sm90_moe_permute(const u8* x, const int* rows, const float* weights, u8* y, u32 row_bytes, u32 pieces,
                     u32 result_rows) {
    using Vector = RowVector<typename Config::In, Config::kAccessBytes>;
    constexpr u32 kTopK = Config::kTopK, kVectors = Config::kVectors, kBytes = Config::kAccessBytes;
    wait_for_predecessor();
    release_successor();
    const u32 token = blockIdx.x / pieces, piece = blockIdx.x % pieces;
    const u32 first = (piece * kVectors * Config::kThreads + threadIdx.x) * kBytes;
    constexpr u32 kStep = Config::kThreads * kBytes;
    const u8* const from = x + static_cast<u64>(token) * row_bytes;
    Vector vectors[kVectors];
#pragma unroll
    for (u32 v = 0; v < kVectors; ++v) {
        if (first + v * kStep < row_bytes) vectors[v].load(from + first + v * kStep);
    }
#pragma unroll Config::kUnroll
    for (u32 j = 0; j < kTopK; ++j) {
        const int found = rows[static_cast<u64>(token) * kTopK + j];
        const u32 row = found < 0 ? ~found : found;
        if (row >= result_rows) continue;
        float weight = 1;
        if constexpr (Config::kWeighted) weight = weights[static_cast<u64>(token) * kTopK + j];
        u8* const to = y + static_cast<u64>(row) * row_bytes;
#pragma unroll
        for (u32 v = 0; v < kVectors; ++v) {
            if (first + v * kStep >= row_bytes) continue;
            Vector copy = vectors[v];
            if constexpr (Config::kWeighted) {
                float scaled[Vector::kElements];
#pragma unroll
                for (u32 i = 0; i < Vector::kElements; ++i) scaled[i] = weight * vectors[v].value(i);
                copy.round_from(scaled);
            }
            if (found < 0) copy.clear();
            copy.store(to + first + v * kStep);
        }
    }
}
