"""What the tests of fp8_gemm_nt_skip_head_mid share: its float64 result."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.helpers import oracle


def spread(d: np.ndarray, splits: tuple[int, int, int]) -> list[np.ndarray]:
    """The left, middle and right columns [M, heads, part] of a result."""
    left, mid, _ = splits
    heads = d.reshape(d.shape[0], d.shape[1] // sum(splits), sum(splits))
    return np.split(heads, [left, left + mid], axis=2)


def wanted(a: Any, b: Any, splits: tuple[int, int, int], d: Any = None) -> np.ndarray:
    """float64 `A @ B.T` with the columns of `d`, or zeros, in the middle of each head."""
    left, mid, right = splits
    product = oracle(a, b)
    m, heads = product.shape[0], product.shape[1] // (left + right)
    product = product.reshape(m, heads, left + right)
    between = np.zeros((m, heads, mid)) if d is None else spread(np.asarray(d).astype(np.float64), splits)[1]
    return np.concatenate([product[:, :, :left], between, product[:, :, left:]], 2).reshape(m, heads * sum(splits))
