"""What the tests of the k-grouped GEMMs share: operands, sizes of groups, the float64 oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers import dequantised

# Sizes of groups, and rows in all. The first are those that DeepGEMM's kernels were reported to get wrong.
SIZES: dict[str, tuple[tuple[int, ...], int]] = {
    "four": ((256, 128, 128, 256), 768),
    "two": ((128, 256), 384),
    "falling": ((384, 256), 640),
    "neighbours": ((0, 16, 128, 0, 0, 1, 63, 65), 273),
    "odd": ((77, 300, 5), 382),
    "rows of no group": ((100, 20), 300),
    "one": ((211,), 211),
    "all empty": ((0, 0, 0), 200),
    "one has all": ((0, 200, 0), 200),
    "beyond K": ((100, 150, 60), 200),
    "far beyond K": ((100, 2**31 - 1, 2**31 - 1, 2**31 - 1), 200),
    "negative": ((50, -100, 70, -(2**31)), 200),
    "many": ((1,) * 40 + (3,) * 20, 110),
    "no rows": ((0, 5), 0),
    "no groups": ((), 300),
}


def in_few_shapes(cases: dict[str, tuple[tuple[int, ...], int]]) -> dict[str, tuple[tuple[int, ...], int]]:
    """The same sizes with empty groups and rows of no group behind them, so that most cases are of one of two shapes:
    XLA compiles each shape anew. Sizes that K cuts off keep it, and so do an odd K, many groups, and nothing at all."""

    def padded(name: str, ks: tuple[int, ...], k: int) -> tuple[tuple[int, ...], int]:
        if name in ("neighbours", "many", "no rows", "no groups"):
            return ks, k
        cut_off = "beyond" in name or name in ("negative", "one has all")
        groups, extent = (4, 200) if cut_off else (5, 768)
        return ks + (0,) * (groups - len(ks)), extent

    return {name: padded(name, *case) for name, case in cases.items()}


def bounds(ks: Sequence[int], k: int) -> list[tuple[int, int]]:
    """First row and end of each group."""
    found, start = [], 0
    for size in ks:
        end = min(k, start + max(0, size))
        found.append((start, end))
        start = end
    return found


def matrices(m: int, n: int, k: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Normal values, bfloat16 [K, M] and [K, N]."""
    random = np.random.default_rng(seed)
    a, b = (jnp.asarray(random.standard_normal((k, size), np.float32), jnp.bfloat16) for size in (m, n))
    return a, b


def sizes(ks: Sequence[int]) -> jax.Array:
    return jnp.asarray(np.array(ks, np.int32))


def oracle(a: Any, b: Any, ks: Sequence[int], c: Any = None) -> np.ndarray:
    """float64, by NumPy alone."""
    a, b = (np.asarray(x).astype(np.float64) for x in (a, b))
    products = [a[start:end].T @ b[start:end] for start, end in bounds(ks, a.shape[0])]
    product = np.array(products).reshape(len(ks), a.shape[1], b.shape[1])
    return product if c is None else product + np.asarray(c).astype(np.float64)


def quantised_oracle(a: Any, b: Any, ks: Sequence[int], k: int) -> np.ndarray:
    """The same of FP8 operands in which each group begins with a block of 128."""
    a, b = (dequantised(x, (1, 128)) for x in (a, b))
    found, at = [], 0
    for start, end in bounds(ks, k):
        found.append(a[:, at : at + end - start] @ b[:, at : at + end - start].T)
        at += -(-(end - start) // 128) * 128
    return np.array(found).reshape(len(ks), a.shape[0], b.shape[0])
