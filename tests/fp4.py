"""Operands with FP4 weights, and their float64 oracle by NumPy alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jax_deepgemm import (
    Quantized,
    fp8_fp4_gemm_nn,
    fp8_fp4_gemm_nt,
    fp8_fp4_gemm_tn,
    fp8_fp4_gemm_tt,
    per_token_cast_to_fp8,
)
from tests import helpers

BY_32, BY_128 = ((1, 128), (1, 32)), ((1, 128), (1, 128))  # the recipes, by what of `b` shares a scale
GEMMS = {"nt": fp8_fp4_gemm_nt, "nn": fp8_fp4_gemm_nn, "tn": fp8_fp4_gemm_tn, "tt": fp8_fp4_gemm_tt}
KINDS = {"ue8m0 by 32": (True, BY_32), "float by 32": (False, BY_32), "float by 128": (False, BY_128)}
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])  # of the codes 0 to 15


def operands(
    m: int, n: int, k: int, *, use_ue8m0: bool = True, recipe: Any = BY_32, seed: int = 0
) -> tuple[Quantized, Quantized]:
    """Activations, and weights of random codes whose scales differ, so that a misplaced one shows."""
    random = np.random.default_rng(seed)
    tokens = jnp.asarray(random.standard_normal((m, k)) * 2.0 ** random.integers(-2, 3, (m, 1)), jnp.bfloat16)
    codes = random.integers(0, 16, (n, k), np.uint8)
    shape = n, -(-k // recipe[1][1])
    scale = (random.integers(118, 124, shape) if use_ue8m0 else random.uniform(0.01, 0.2, shape)).astype(np.float32)
    return per_token_cast_to_fp8(tokens), weights(codes, scale.astype(np.uint8) if use_ue8m0 else scale)


def weights(codes: np.ndarray, scale: np.ndarray) -> Quantized:
    """From codes 0 to 15 and scales, which as uint8 are the exponents of UE8M0."""
    scale = scale.view(ml_dtypes.float8_e8m0fnu) if scale.dtype == np.uint8 else scale
    return Quantized(jax.device_put(codes.view(ml_dtypes.float4_e2m1fn)), jax.device_put(scale))


def in_bytes(x: Any) -> Quantized:
    """The same operand with two values in a uint8, neighbours along the last axis."""
    codes = np.asarray(x[0]).view(np.uint8) & 15
    return Quantized(jax.device_put(codes[..., ::2] | codes[..., 1::2] << 4), x[1])


def dequantised(b: Any) -> np.ndarray:
    """float64 of weights, whose scales are for each 32 or 128 of K."""
    decoded = VALUES[np.asarray(b[0]).view(np.uint8) & 15]
    gran_k = next(g for g in (32, 128) if -(-decoded.shape[1] // g) == b[1].shape[1])
    return decoded * np.asarray(b[1]).astype(np.float64).repeat(gran_k, 1)[:, : decoded.shape[1]]


def oracle(a: Any, b: Any, c: Any = None, recipe: Any = BY_32) -> np.ndarray:
    """float64 `A @ B.T (+ C)`."""
    product = helpers.dequantised(a, recipe[0]) @ dequantised(b).T
    return product if c is None else product + np.asarray(c).astype(np.float64)
