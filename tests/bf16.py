"""What the tests of the BF16 GEMMs share: operands and the float64 oracle."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_deepgemm import bf16_gemm_nn, bf16_gemm_nt, bf16_gemm_tn, bf16_gemm_tt

GEMMS = {"nt": bf16_gemm_nt, "nn": bf16_gemm_nn, "tn": bf16_gemm_tn, "tt": bf16_gemm_tt}


def as_jax(x: Any) -> jax.Array:
    return jnp.asarray(x, jnp.bfloat16)


def turned(layout: str, a: Any, b: Any) -> tuple[Any, Any]:
    """Operands [M, K] and [N, K] as `GEMMS[layout]` takes them, and back."""
    return (a if layout[0] == "n" else a.T), (b if layout[1] == "t" else b.T)


def matrices(layout: str, m: int, n: int, k: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Normal values."""
    random = np.random.default_rng(seed)
    a, b = (random.standard_normal((rows, k), np.float32) for rows in (m, n))
    a, b = turned(layout, a, b)
    return as_jax(a), as_jax(b)


def oracle(layout: str, a: Any, b: Any, c: Any = None) -> np.ndarray:
    """float64, by NumPy alone."""
    a, b = turned(layout, *(np.asarray(x).astype(np.float64) for x in (a, b)))
    product = a @ b.T
    return product if c is None else product + np.asarray(c).astype(np.float64)
