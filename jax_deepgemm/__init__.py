"""DeepGEMM for JAX: FP8 matrix multiplication with block scales, as ordinary JAX functions."""

from __future__ import annotations

from jax_deepgemm.checks import Quantized as Quantized
from jax_deepgemm.config import set_cache_folder as set_cache_folder
from jax_deepgemm.config import set_num_sms as set_num_sms
from jax_deepgemm.config import set_pdl as set_pdl
from jax_deepgemm.config import set_target as set_target
from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig as Bf16GemmConfig
from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d as GemmConfig1d1d
from jax_deepgemm.heuristics.fp4_config import Fp4GemmConfig as Fp4GemmConfig
from jax_deepgemm.heuristics.fp4_swapped_config import Fp4SwappedConfig as Fp4SwappedConfig
from jax_deepgemm.heuristics.gemm_config import GemmConfig as GemmConfig
from jax_deepgemm.heuristics.k_grouped_config import KGroupedBf16Config as KGroupedBf16Config
from jax_deepgemm.heuristics.resident_config import ResidentConfig as ResidentConfig
from jax_deepgemm.ops.bf16_gemm import bf16_gemm_nn as bf16_gemm_nn
from jax_deepgemm.ops.bf16_gemm import bf16_gemm_nt as bf16_gemm_nt
from jax_deepgemm.ops.bf16_gemm import bf16_gemm_tn as bf16_gemm_tn
from jax_deepgemm.ops.bf16_gemm import bf16_gemm_tt as bf16_gemm_tt
from jax_deepgemm.ops.casting import cast_back_from_fp8 as cast_back_from_fp8
from jax_deepgemm.ops.casting import per_block_cast_to_fp8 as per_block_cast_to_fp8
from jax_deepgemm.ops.casting import per_channel_cast_to_fp8 as per_channel_cast_to_fp8
from jax_deepgemm.ops.casting import per_token_cast_to_fp8 as per_token_cast_to_fp8
from jax_deepgemm.ops.fp4_casting import cast_back_from_fp4 as cast_back_from_fp4
from jax_deepgemm.ops.fp4_casting import per_token_cast_to_fp4 as per_token_cast_to_fp4
from jax_deepgemm.ops.fp8_dot_general import fp8_dot_general as fp8_dot_general
from jax_deepgemm.ops.fp8_fp4_gemm import fp8_fp4_gemm_nn as fp8_fp4_gemm_nn
from jax_deepgemm.ops.fp8_fp4_gemm import fp8_fp4_gemm_nt as fp8_fp4_gemm_nt
from jax_deepgemm.ops.fp8_fp4_gemm import fp8_fp4_gemm_tn as fp8_fp4_gemm_tn
from jax_deepgemm.ops.fp8_fp4_gemm import fp8_fp4_gemm_tt as fp8_fp4_gemm_tt
from jax_deepgemm.ops.fp8_gemm import fp8_gemm_nn as fp8_gemm_nn
from jax_deepgemm.ops.fp8_gemm import fp8_gemm_nt as fp8_gemm_nt
from jax_deepgemm.ops.fp8_gemm import fp8_gemm_tn as fp8_gemm_tn
from jax_deepgemm.ops.fp8_gemm import fp8_gemm_tt as fp8_gemm_tt
from jax_deepgemm.ops.fp8_gemm_skip_head_mid import fp8_gemm_nt_skip_head_mid as fp8_gemm_nt_skip_head_mid
from jax_deepgemm.ops.fp8_linear import fp8_linear as fp8_linear
from jax_deepgemm.ops.k_grouped_bf16_gemm import k_grouped_bf16_gemm_tn_contiguous as k_grouped_bf16_gemm_tn_contiguous
from jax_deepgemm.ops.k_grouped_casting import k_grouped_cast_to_fp8 as k_grouped_cast_to_fp8
from jax_deepgemm.ops.k_grouped_fp8_gemm import k_grouped_fp8_gemm_tn_contiguous as k_grouped_fp8_gemm_tn_contiguous
from jax_deepgemm.ops.m_grouped_bf16_gemm import m_grouped_bf16_gemm_nn_contiguous as m_grouped_bf16_gemm_nn_contiguous
from jax_deepgemm.ops.m_grouped_bf16_gemm import m_grouped_bf16_gemm_nt_contiguous as m_grouped_bf16_gemm_nt_contiguous
from jax_deepgemm.ops.m_grouped_bf16_gemm import m_grouped_bf16_gemm_nt_masked as m_grouped_bf16_gemm_nt_masked
from jax_deepgemm.ops.m_grouped_fp8_fp4_gemm import (
    m_grouped_fp8_fp4_gemm_nn_contiguous as m_grouped_fp8_fp4_gemm_nn_contiguous,
)
from jax_deepgemm.ops.m_grouped_fp8_fp4_gemm import (
    m_grouped_fp8_fp4_gemm_nt_contiguous as m_grouped_fp8_fp4_gemm_nt_contiguous,
)
from jax_deepgemm.ops.m_grouped_fp8_fp4_gemm import m_grouped_fp8_fp4_gemm_nt_masked as m_grouped_fp8_fp4_gemm_nt_masked
from jax_deepgemm.ops.m_grouped_fp8_gemm import m_grouped_fp8_gemm_nn_contiguous as m_grouped_fp8_gemm_nn_contiguous
from jax_deepgemm.ops.m_grouped_fp8_gemm import m_grouped_fp8_gemm_nt_contiguous as m_grouped_fp8_gemm_nt_contiguous
from jax_deepgemm.ops.m_grouped_fp8_gemm import m_grouped_fp8_gemm_nt_masked as m_grouped_fp8_gemm_nt_masked
from jax_deepgemm.ops.moe_mlp import moe_mlp as moe_mlp
from jax_deepgemm.ops.moe_permute import MoePermutation as MoePermutation
from jax_deepgemm.ops.moe_permute import moe_permute as moe_permute
from jax_deepgemm.ops.moe_permute import moe_unpermute as moe_unpermute
from jax_deepgemm.ops.ragged_dot import ragged_dot as ragged_dot
from jax_deepgemm.target import H100 as H100
from jax_deepgemm.target import Target as Target
from jax_deepgemm.tuning import Tuning as Tuning
from jax_deepgemm.tuning import tune as tune
