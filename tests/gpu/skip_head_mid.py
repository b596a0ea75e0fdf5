"""What tests of fp8_gemm_nt_skip_head_mid on a GPU share: problems, a run of all its ways, the check."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_deepgemm import fp8_gemm_nt_skip_head_mid
from jax_deepgemm.heuristics.gemm_config import GemmConfig
from tests.gpu.native import native
from tests.gpu.problems import same_bits
from tests.helpers import assert_close, operands
from tests.skip_head_mid import spread, wanted

BF16, F32 = jnp.bfloat16, jnp.float32
HEADS, M, K = 7, 157, 400
SPLITS = ((128, 64, 128), (64, 8, 32), (16, 16, 48), (8, 24, 40), (192, 64, 64))


@functools.cache
def problem(splits, m=M, heads=HEADS, k=K):
    """Operands, what is in the middle, and the result with that or with zeros there."""
    a, b = operands(m, heads * (splits[0] + splits[2]), k, seed=3)
    d = jax.random.normal(jax.random.key(0), (m, heads * sum(splits))).astype(BF16)
    return a, b, d, wanted(a, b, splits, d), wanted(a, b, splits)


def check(got, d, result, splits):
    assert_close(got, result)
    middle = spread(np.asarray(got), splits)[1]
    kept = np.zeros_like(middle) if d is None else spread(np.asarray(d.astype(got.dtype)), splits)[1]
    assert same_bits(middle, kept)


def both(a, b, d, splits, config=None):
    """The four of BF16 and FP32, zeros and what was there."""
    gemm = functools.partial(fp8_gemm_nt_skip_head_mid, a, b, splits, config=config)
    wide = functools.partial(gemm, out_dtype=F32)
    return gemm(), gemm(d=d), wide(), wide(d=d.astype(F32))


def run_and_check(splits: Any, config: GemmConfig | None = None, m: int = M, heads: int = HEADS, k: int = K) -> None:
    a, b, d, with_d, with_zeros = problem(splits, m, heads, k)
    run = native(functools.partial(both, splits=splits, config=config), a, b, d, calls=4)
    for i, got in enumerate(run(a, b, d)):
        check(got, d if i % 2 else None, with_d if i % 2 else with_zeros, splits)
