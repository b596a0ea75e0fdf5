"""Operands with FP4 weights, and their float64 oracle by NumPy alone."""

from __future__ import annotations

import functools
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jax_deepgemm import (
    Quantized,
    fp8_fp4_gemm_nn,
    fp8_fp4_gemm_nt,
    fp8_fp4_gemm_tn,
    fp8_fp4_gemm_tt,
)
from tests import helpers
from tests.helpers import quantised

BY_32, BY_128 = ((1, 128), (1, 32)), ((1, 128), (1, 128))  # the recipes, by what of `b` shares a scale
GEMMS = {"nt": fp8_fp4_gemm_nt, "nn": fp8_fp4_gemm_nn, "tn": fp8_fp4_gemm_tn, "tt": fp8_fp4_gemm_tt}
KINDS = {"ue8m0 by 32": (True, BY_32), "float by 32": (False, BY_32), "float by 128": (False, BY_128)}
# Half way between values of FP4, and their neighbours, where 6 makes the scale 1.
TIES = (6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -1.25, -5, 0.251, 0.749, 2.49, 2.51, 4.98, 5.02, -0.0, -6)
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])  # of the codes 0 to 15


@functools.cache
def operands(
    m: int, n: int, k: int, *, use_ue8m0: bool = True, recipe: Any = BY_32, seed: int = 0
) -> tuple[Quantized, Quantized]:
    """Activations, and weights of random codes whose scales differ, so that a misplaced one shows."""
    random = np.random.default_rng(seed)
    tokens = (random.standard_normal((m, k)) * 2.0 ** random.integers(-2, 3, (m, 1))).astype(ml_dtypes.bfloat16)
    codes = random.integers(0, 16, (n, k), np.uint8)
    shape = n, -(-k // recipe[1][1])
    scale = (random.integers(118, 124, shape) if use_ue8m0 else random.uniform(0.01, 0.2, shape)).astype(np.float32)
    return quantised(tokens, (1, 128)), weights(codes, scale.astype(np.uint8) if use_ue8m0 else scale)


def weights(codes: np.ndarray, scale: np.ndarray) -> Quantized:
    """From codes 0 to 15 and scales, which as uint8 are the exponents of UE8M0."""
    scale = scale.view(ml_dtypes.float8_e8m0fnu) if scale.dtype == np.uint8 else scale
    return Quantized(jax.device_put(codes.view(ml_dtypes.float4_e2m1fn)), jax.device_put(scale))


def cast(x: np.ndarray, gran_k: int, use_ue8m0: bool) -> tuple[np.ndarray, np.ndarray]:
    """What the cast to FP4 makes of finite values, by NumPy: data float4_e2m1fn and scale."""
    wide = np.asarray(x, np.float32)
    padded = np.pad(np.abs(wide), ((0, 0), (0, -wide.shape[1] % gran_k)))
    amax = padded.reshape(wide.shape[0], -1, gran_k).max(2)
    scale = np.maximum(amax, np.float32(1e-4)) * np.float32(1 / 6)
    if use_ue8m0:
        scale = np.exp2(np.ceil(np.log2(scale.astype(np.float64)))).astype(np.float32)
    by = (1 / scale).repeat(gran_k, 1)[:, : wide.shape[1]]
    data = np.clip(wide * by, -6, 6).astype(ml_dtypes.float4_e2m1fn)
    return data, scale.astype(ml_dtypes.float8_e8m0fnu) if use_ue8m0 else scale


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
