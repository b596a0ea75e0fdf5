// D[g] = A_g B_g^T (+ C[g]) in FP8 (e4m3) for groups g of blocks of K, whose sizes are in device memory; A[M, K] and B[N, K]
// are scaled per row and block of 128 of K. Hopper.
#pragma once
#include "common/fp8_by_rows.cuh"
#include "common/fp8_gemm.cuh"
#include "common/k_group_walk.cuh"
#include "common/scales_1d1d.cuh"

template <class Config>
__global__ void __launch_bounds__(Config::kMathGroups * 128 + 128, 1)
    sm90_k_grouped_fp8_gemm_1d1d(const __grid_constant__ TensorMap rows_map,
                                 const __grid_constant__ TensorMap columns_map, const __grid_constant__ TensorMap c_map,
                                 const __grid_constant__ TensorMap d_map, const float* scales_a, const float* scales_b,
                                 const int* ks, const typename Config::Out* c, typename Config::Out* d, u32 groups,
                                 u32 m, u32 n, u32 k) {
    using Gemm = Fp8Gemm<Config, Scales1d1d<Config>>;
    Gemm::run(rows_map, columns_map, c_map, d_map, scales_a, scales_b, c, d, m, n, k,
              [&](const typename Gemm::Shared& shared) {
                  Gemm::Walk::table_of(shared).template fill<kBlockK>(ks, groups, k);
              });
}
