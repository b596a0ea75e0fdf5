"""What the tests of the m-grouped GEMMs share: layouts, operands and the float64 oracle."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_deepgemm import Quantized
from tests import fp4, helpers

# Rows of each group, and how many after the last belong to none.
SIZES = {
    "odd": ((5, 0, 77, 1, 129), 3),
    "one has all": ((0, 0, 200, 0), 0),
    "all empty": ((0, 0, 0), 40),
    "of one row": ((1,) * 40, 0),
    "tiles": ((128, 256, 64), 0),
}

MOST_DISTINCT = 37  # weights: more groups share them


def stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def operands(m: int, n: int, k: int, groups: int, kind: str = "fp8", **of_fp4: Any) -> tuple[Quantized, Quantized]:
    """FP8 [M, K] and [G, N, K], or FP4 with `kind` "fp8_fp4" and what `fp4.operands` takes."""
    one = functools.partial(fp4.operands, **of_fp4) if kind == "fp8_fp4" else helpers.operands
    a, _ = helpers.operands(m, 16, k, seed=99)
    distinct = [one(8, n, k, seed=g)[1] for g in range(min(groups, MOST_DISTINCT))]
    return a, stack([distinct[g % MOST_DISTINCT] for g in range(groups)])


def index_of(sizes: Any, rest: Any) -> np.ndarray:
    """The index form of a layout."""
    return np.concatenate([np.repeat(np.arange(len(sizes)), sizes), np.full(rest, -1)]).astype(np.int32)


def psum_of(sizes: Any) -> np.ndarray:
    return np.cumsum(sizes, dtype=np.int32)


def dequantised(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """float64 of quantised operands."""
    rows = (
        helpers.dequantised(a, (1, 128))
        if np.ndim(a[0]) == 2
        else np.stack([helpers.dequantised((a[0][g], a[1][g]), (1, 128)) for g in range(len(a[0]))])
    )
    one = (
        functools.partial(helpers.dequantised, block=(128, 128)) if b[0].dtype == jnp.float8_e4m3fn else fp4.dequantised
    )
    return rows, np.stack([one((b[0][g], b[1][g])) for g in range(len(b[0]))])


def oracle(a: np.ndarray, b: np.ndarray, index: Any) -> np.ndarray:
    """float64 [M, N] of A [M, K] and B [G, N, K]; zeros for rows of no group."""
    result = np.zeros((len(a), b.shape[1]))
    for g in range(len(b)):
        rows = np.asarray(index) == g
        result[rows] = a[rows] @ b[g].T
    return result


def masked_oracle(a: np.ndarray, b: np.ndarray, masked_m: Any) -> np.ndarray:
    """float64 [G, Mmax, N], zeros where it is undefined."""
    inside = np.arange(a.shape[1]) < np.asarray(masked_m)[:, None]
    return np.where(inside[:, :, None], np.einsum("gmk,gnk->gmn", a, b), 0)
