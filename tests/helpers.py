"""What the tests of several operations share: operands, the float64 oracle and the bounds of errors."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jax_deepgemm import (
    Quantized,
    fp8_gemm_nn,
    fp8_gemm_nt,
    fp8_gemm_tn,
    fp8_gemm_tt,
)
from jax_deepgemm.heuristics import sm90
from jax_deepgemm.heuristics.gemm_config import GemmConfig, Store

BLOCKS, ROWS = ((1, 128), (128, 128)), ((1, 128), (1, 128))  # the recipes, by what of `b` shares a scale
RECIPES = pytest.mark.parametrize("recipe", [BLOCKS, ROWS], ids=["blocks", "rows"])
GEMMS = {"nt": fp8_gemm_nt, "nn": fp8_gemm_nn, "tn": fp8_gemm_tn, "tt": fp8_gemm_tt}
# Relative error in the Frobenius norm, by output dtype.
BOUNDS = {jnp.dtype(jnp.bfloat16): 2e-3, jnp.dtype(jnp.float32): 5e-4}


@contextlib.contextmanager
def store_warps() -> Iterator[None]:
    """Wherever a warp of its own can store tiles, it does, whether or not it would pay."""

    def can(config: GemmConfig, store: Store, *_: Any, **__: Any) -> bool:
        return config.stores_by_tma and store.buffers > 0

    with mock.patch.object(sm90, "store_warp", can):
        yield


@functools.cache
def operands(
    m: int, n: int, k: int, *, use_ue8m0: bool = False, seed: int = 0, recipe: Any = BLOCKS
) -> tuple[Quantized, Quantized]:
    """Normal values whose magnitude differs from block to block, so that a misplaced scale shows."""
    a, b = (_matrix(s, rows, k) for s, rows in ((2 * seed, m), (2 * seed + 1, n)))
    return quantised(a, recipe[0], use_ue8m0), quantised(b, recipe[1], use_ue8m0)


def quantised(x: np.ndarray, block: tuple[int, int], use_ue8m0: bool = False) -> Quantized:
    """What the casts to FP8 make of finite values, by NumPy: XLA would compile a program for each shape."""
    wide, (rows, columns) = np.asarray(x, np.float32), (-(-size // b) for size, b in zip(x.shape, block, strict=True))
    padded = np.zeros((rows * block[0], columns * block[1]), np.float32)
    padded[: x.shape[0], : x.shape[1]] = np.abs(wide)
    amax = padded.reshape(rows, block[0], columns, block[1]).max((1, 3), initial=0)
    scale = np.maximum(amax, np.float32(1e-4)) * np.float32(1 / 448)
    if use_ue8m0:
        scale = np.exp2(np.ceil(np.log2(scale.astype(np.float64)))).astype(np.float32)
    spread = (1 / scale).repeat(block[0], 0).repeat(block[1], 1)[: x.shape[0], : x.shape[1]]
    data = np.clip(wide * spread, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return Quantized(jnp.asarray(data), jnp.asarray(scale.astype(ml_dtypes.float8_e8m0fnu) if use_ue8m0 else scale))


def laid_out(layout: str, a: Any, b: Any) -> tuple[Any, Any]:
    """Operands that are [M, K] and [N, K], data and scale, as `GEMMS[layout]` takes them."""
    return (
        a if layout[0] == "n" else jax.tree.map(jnp.transpose, a),
        b if layout[1] == "t" else jax.tree.map(jnp.transpose, b),
    )


def _matrix(seed: int, rows: int, columns: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    blocks = 2.0 ** random.integers(-2, 3, (-(-rows // 128), -(-columns // 128)))
    spread = blocks.repeat(128, 0).repeat(128, 1)[:rows, :columns]
    return (random.standard_normal((rows, columns)) * spread).astype(ml_dtypes.bfloat16)


def dequantised(x: Any, block: tuple[int, int]) -> np.ndarray:
    """float64, by NumPy alone."""
    data, scale = (np.asarray(v).astype(np.float64) for v in x)
    spread = scale.repeat(block[0], 0).repeat(block[1], 1)
    return data * spread[: data.shape[0], : data.shape[1]]


def oracle(a: Any, b: Any, c: Any = None, recipe: Any = BLOCKS) -> np.ndarray:
    """float64 `A @ B.T (+ C)` of block-scaled operands."""
    product = dequantised(a, recipe[0]) @ dequantised(b, recipe[1]).T
    return product if c is None else product + np.asarray(c).astype(np.float64)


def relative_error(got: Any, wanted: np.ndarray) -> float:
    got = np.asarray(got).astype(np.float64)
    assert got.shape == wanted.shape
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def assert_close(got: jax.Array, wanted: np.ndarray) -> None:
    error, bound = relative_error(got, wanted), BOUNDS[got.dtype]
    assert error < bound, f"relative error {error:.3g} is not under {bound}"
