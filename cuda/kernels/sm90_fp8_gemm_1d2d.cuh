// D[M, N] = A[M, K] B[N, K]^T (+ C) in FP8 (e4m3), A scaled per row and 128 of K, B per 128 x 128 block. Hopper.
#pragma once
#include "common/fp8_gemm.cuh"
#include "common/fp8_runs.cuh"
#include "common/scales_1d2d.cuh"

template <class Config>
__global__ void __launch_bounds__(Config::kMathGroups * 128 + 128, 1)
    sm90_fp8_gemm_1d2d(const __grid_constant__ TensorMap rows_map, const __grid_constant__ TensorMap columns_map,
                       const __grid_constant__ TensorMap d_map, const float* scales_a, const float* scales_b,
                       const typename Config::Out* c, typename Config::Out* d, u32 m, u32 n, u32 k) {
    // C is not read through a tensor map here.
    Fp8Gemm<Config, Scales1d2d<Config>>::run(rows_map, columns_map, d_map, d_map, scales_a, scales_b, c, d, m, n, k);
}
