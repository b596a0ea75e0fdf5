// D[g] = A_g^T B_g (+ C[g]) in BF16 for groups g of rows of A[K, M] and B[K, N], whose sizes are in device memory. Hopper.
#pragma once
#include "common/k_group_walk.cuh"
#include "kernels/sm90_bf16_gemm.cuh"

template <class Config>
__global__ void __launch_bounds__(Config::kMathGroups * 128 + 128, 1)
    sm90_k_grouped_bf16_gemm(const __grid_constant__ TensorMap rows_map, const __grid_constant__ TensorMap columns_map,
                             const __grid_constant__ TensorMap d_map, const int* ks, const typename Config::Out* c,
                             typename Config::Out* d, u32 groups, u32 m, u32 n, u32 k) {
    static_assert(Config::kMnRows && Config::kMnColumns, "blocks of K begin at any row");
    using Gemm = Sm90Bf16Gemm<Config>;
    Gemm::run(rows_map, columns_map, d_map, c, d, m, n, k, [&](const typename Gemm::Shared& shared) {
        Gemm::Walk::table_of(shared).template fill<1>(ks, groups, k);
    });
}
