// The gradient of the weights that rows are summed with: dots[token, j] = the product of x[token] with y[rows_j], in FP32.
// Zero for copies of no expert. A warp has a copy of a token; the lanes' sums meet in a fixed order.
#pragma once
#include "common/barrier.cuh"
#include "common/row_vector.cuh"
#include "common/types.cuh"

template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    sm90_moe_row_dots(const u8* x, const u8* y, const int* rows, float* dots, u32 copies, u32 row_bytes, u32 y_rows) {
    using Vector = RowVector<typename Config::In, Config::kAccessBytes>;
    constexpr u32 kBytes = Config::kAccessBytes;
    wait_for_predecessor();
    release_successor();
    // Neighbouring warps have copies of one token, whose row they read from L1.
    const u32 copy = blockIdx.x * (Config::kThreads / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (copy >= copies) return;
    const u32 row = rows[copy];
    float sums[Vector::kElements];
#pragma unroll
    for (u32 i = 0; i < Vector::kElements; ++i) sums[i] = 0;
    if (row < y_rows) {
        const u8* const left = x + static_cast<u64>(copy / Config::kTopK) * row_bytes;
        const u8* const right = y + static_cast<u64>(row) * row_bytes;
#pragma unroll 4
        for (u32 at = lane * kBytes; at < row_bytes; at += 32 * kBytes) {
            Vector a, b;
            a.load(left + at);
            b.load(right + at);
#pragma unroll
            for (u32 i = 0; i < Vector::kElements; ++i) sums[i] = fmaf(a.value(i), b.value(i), sums[i]);
        }
    }
    float sum = sums[0];
#pragma unroll
    for (u32 i = 1; i < Vector::kElements; ++i) sum += sums[i];
#pragma unroll
    for (u32 step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) dots[copy] = sum;
}
