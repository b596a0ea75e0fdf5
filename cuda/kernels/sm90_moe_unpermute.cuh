// The sum of the rows that belong to each token, times weights or as they are: out[token] = sum over j of w_j y[rows_j].
// In FP32, in the order of the copies, rounded once. Copies of no expert count nothing.
#pragma once
#include "common/barrier.cuh"
#include "common/row_vector.cuh"
#include "common/types.cuh"

template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    sm90_moe_unpermute(const u8* y, const int* rows, const float* weights, u8* out, u32 row_bytes, u32 pieces,
                       u32 y_rows) {
    using Vector = RowVector<typename Config::In, Config::kAccessBytes>;
    constexpr u32 kTopK = Config::kTopK, kAtOnce = Config::kAtOnce, kVectors = Config::kVectors;
    constexpr u32 kBytes = Config::kAccessBytes, kStep = Config::kThreads * kBytes;
    wait_for_predecessor();
    release_successor();
    const u32 token = blockIdx.x / pieces, piece = blockIdx.x % pieces;
    const u32 first = (piece * kVectors * Config::kThreads + threadIdx.x) * kBytes;
    const int* const places = rows + static_cast<u64>(token) * kTopK;
    const float* const by = weights + static_cast<u64>(token) * kTopK;
#pragma unroll
    for (u32 v = 0; v < kVectors; ++v) {
        const u32 at = first + v * kStep;
        if (at >= row_bytes) return;
        float sums[Vector::kElements];
#pragma unroll
        for (u32 i = 0; i < Vector::kElements; ++i) sums[i] = 0;
#pragma unroll 1
        for (u32 j0 = 0; j0 < kTopK; j0 += kAtOnce) {
            Vector found[kAtOnce];
            u32 row[kAtOnce];
#pragma unroll
            for (u32 j = 0; j < kAtOnce; ++j) {
                row[j] = j0 + j < kTopK ? static_cast<u32>(places[j0 + j]) : y_rows;
                if (row[j] < y_rows) found[j].load(y + static_cast<u64>(row[j]) * row_bytes + at);
            }
#pragma unroll
            for (u32 j = 0; j < kAtOnce; ++j) {
                if (row[j] >= y_rows) continue;
                float weight = 1;
                if constexpr (Config::kWeighted) weight = by[j0 + j];
#pragma unroll
                for (u32 i = 0; i < Vector::kElements; ++i) {
                    if constexpr (Config::kWeighted)
                        sums[i] = fmaf(weight, found[j].value(i), sums[i]);
                    else
                        sums[i] += found[j].value(i);
                }
            }
        }
        Vector rounded;
        rounded.round_from(sums);
        rounded.store(out + static_cast<u64>(token) * row_bytes + at);
    }
}
