// D[i, N] = A[i, K] B[g]^T for each row i of group g, in BF16; B[g] is [N, K], or [K, N] with N contiguous. Hopper.
//
// `layout` tells which rows each group has; Config::Groups says how.
#pragma once
#include "common/group_walk.cuh"
#include "kernels/sm90_bf16_gemm.cuh"

template <class Config>
__global__ void __launch_bounds__(Config::kMathGroups * 128 + 128, 1)
    sm90_m_grouped_bf16_gemm(const __grid_constant__ TensorMap rows_map, const __grid_constant__ TensorMap columns_map,
                             const __grid_constant__ TensorMap d_map, const int* layout, typename Config::Out* d, u32 m,
                             u32 n, u32 k, u32 groups) {
    using Gemm = Sm90Bf16Gemm<Config>;
    using Walk = typename Gemm::Walk;
    static_assert(Walk::kBeside == 1, "who shares tiles must wait for the others' tables");
    Gemm::run(rows_map, columns_map, d_map, d, d, m, n, k, [&](const typename Gemm::Shared& shared) {
        build_group_table<typename Config::Groups, Walk::kTileM>(Walk::table_of(shared), shared.base, layout, groups, m,
                                                                 Walk::tiles_across(n));
    });
}
