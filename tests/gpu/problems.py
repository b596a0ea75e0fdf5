"""Operands and float64 oracles of many sizes, cut from one pair of matrices that is quantised once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jax_deepgemm import Quantized
from tests import helpers

LARGEST = (1024, 2112, 7168)  # M, N, K
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)


@dataclasses.dataclass(frozen=True)
class Problem:
    """`product` is the float64 oracle of `A @ B.T`; `norms`, as large, the length of A's row times that of B's."""

    a: Quantized
    b: Quantized
    product: np.ndarray
    norms: np.ndarray

    @property
    def k(self) -> int:
        return self.a.data.shape[1]

    def c(self, dtype: Any, seed: int = 0) -> jax.Array:
        """A `c` of about the size of the product."""
        random = np.random.default_rng(seed).standard_normal(self.product.shape, np.float32)
        return jax.device_put((random * np.sqrt(np.mean(self.product**2))).astype(dtype))

    def check(self, d: jax.Array, c: jax.Array | np.ndarray | None = None, copies: int = 1) -> None:
        """Against `copies * A @ B.T + C`: as a whole, and each element, since a few hardly show in the whole."""
        wanted = copies * self.product
        if c is not None:
            wanted = wanted + np.asarray(c).astype(np.float64)
        helpers.assert_close(d, wanted)
        got = np.asarray(d).astype(np.float64)
        # A result is about norms / sqrt(K); the tensor cores' error is a small part of that.
        allowed = copies * 0.02 * self.norms / np.sqrt(self.k) + np.abs(wanted) * (
            2**-8 if d.dtype == jnp.bfloat16 else 0
        )
        wrong = np.argwhere(~(np.abs(got - wanted) <= allowed))
        assert not len(wrong), f"{len(wrong)} of {got.size} elements are wrong, the first and last at {wrong[[0, -1]]}"


def problem(m: int, n: int, k: int, *, use_ue8m0: bool = False, recipe: Any = helpers.BLOCKS) -> Problem:
    """Cut from the top left; K beyond 2048 has no UE8M0 scales."""
    a, b, a_wide, b_wide = _matrices(use_ue8m0, recipe)
    blocks = -(-k // 128)
    a_wide, b_wide = a_wide[:m, :k], b_wide[:n, :k]
    norms = np.linalg.norm(a_wide, axis=1)[:, None] * np.linalg.norm(b_wide, axis=1)
    return Problem(
        Quantized(jax.device_put(a.data[:m, :k]), jax.device_put(a.scale[:m, :blocks])),
        Quantized(jax.device_put(b.data[:n, :k]), jax.device_put(b.scale[: -(-n // recipe[1][0]), :blocks])),
        a_wide @ b_wide.T,
        norms,
    )


@functools.cache
def _matrices(use_ue8m0: bool, recipe: Any) -> tuple[Quantized, Quantized, np.ndarray, np.ndarray]:
    m, n, k = LARGEST
    a, b = helpers.operands(m, n, 2048 if use_ue8m0 else k, use_ue8m0=use_ue8m0, seed=7, recipe=recipe)
    a, b = (Quantized(np.asarray(v.data), np.asarray(v.scale)) for v in (a, b))  # type: ignore[arg-type]
    return a, b, helpers.dequantised(a, recipe[0]), helpers.dequantised(b, recipe[1])


def same_bits(x: Any, y: Any) -> bool:
    """NaN equals the same NaN."""
    x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def all_same(results: Sequence[jax.Array]) -> bool:
    """Bitwise."""
    first = np.asarray(results[0])
    return all(same_bits(first, d) for d in results[1:])
