"""Suite `dense`: fp8_gemm_nt, A scaled by 1x128 and B by 128x128, BF16 out."""

# pyright: reportMissingImports=false
# PyTorch and DeepGEMM are optional, and imported only where they are used.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import host, peers
from benchmarks.preparation import shared
from benchmarks.suite import Suite
from tests.cases import DENSE, Gemm

# This guards the timings against wrong kernels; the tests hold the tighter bounds. BF16 rounding of the result is
# 1.5e-3, of both operands too (XLA) 2.6e-3; a scale block lost out of 128 is 9e-2.
ERROR_BOUND = 5e-3
PROJECTION_BOUND = 2e-2  # one random projection of each row: noisier
FULL_ROWS = 16
SHARED_ROWS = 4096


def flops(case: Gemm) -> float:
    return 2.0 * case.m * case.n * case.k


def moved_bytes(case: Gemm) -> float:
    """Each operand read once, scales included, and the result written once."""
    m, n, k = case.m, case.n, case.k
    k_blocks = -(-k // 128)
    return m * k + n * k + 4 * k_blocks * (m + -(-n // 128)) + 2 * m * n


@shared
def weights(n: int, k: int) -> Any:
    """Around 1/sqrt(k), as they are initialised."""
    import jax
    import jax.numpy as jnp

    import jax_deepgemm

    @jax.jit
    def make(key):
        return jax_deepgemm.per_block_cast_to_fp8(jax.random.normal(key, (n, k), jnp.bfloat16) * k**-0.5)

    return make(jax.random.key(n * 65536 + k))


@shared
def activations(m: int, k: int) -> Any:
    """Around 1 with a few channels 20 times larger, as real ones have."""
    import jax
    import jax.numpy as jnp

    import jax_deepgemm

    @jax.jit
    def make(key):
        key, outliers = jax.random.split(key)
        channels = jnp.where(jax.random.bernoulli(outliers, 0.01, (k,)), 20.0, 1.0).astype(jnp.bfloat16)
        return jax_deepgemm.per_token_cast_to_fp8(jax.random.normal(key, (m, k), jnp.bfloat16) * channels)

    return make(jax.random.key(k))


def operands(case: Gemm) -> peers.Operands:
    """The first rows of activations that many cases share, and the weights."""
    a, a_scale = (x[: case.m] for x in activations(-(-case.m // SHARED_ROWS) * SHARED_ROWS, case.k))
    return peers.Operands(a, a_scale, *weights(case.n, case.k))


def checker(case: Gemm, given: peers.Operands) -> Callable[[Any], str | None]:
    """Tells what is wrong with a result, if anything."""
    return product_checker(dequantised(given.a, given.a_scale, 1), wide_weights(case.n, case.k))


@shared
def wide_weights(n: int, k: int) -> np.ndarray:
    data, scale = weights(n, k)
    return dequantised(data, scale, 128)


def dequantised(data: Any, scale: Any, rows: int) -> np.ndarray:
    """float32, of a matrix with a scale for each block of `rows` x 128."""
    wide = host.float32(data)
    scale = np.asarray(scale).repeat(rows, axis=0)[: wide.shape[0]]
    for block in range(scale.shape[1]):
        wide[:, block * 128 : (block + 1) * 128] *= scale[:, block, None]
    return wide


def product_checker(a: np.ndarray, b: np.ndarray, c: np.ndarray | None = None) -> Callable[[Any], str | None]:
    """Compares with `a @ b.T (+ c)`, of float32 [M, K] and [N, K]: a few rows in full, all by a random projection.

    On the host: for each shape XLA would compile longer than NumPy works.
    """
    m, n = a.shape[0], b.shape[0]
    rows = np.unique(np.linspace(0, m - 1, FULL_ROWS).astype(int))
    signs = np.random.default_rng(n).choice(np.asarray([-1, 1], np.float32), n)
    expected, projection = a[rows] @ b.T, a @ (signs @ b)
    if c is not None:
        expected, projection = expected + c[rows], projection + c @ signs

    def check(result: Any) -> str | None:
        result = host.float32(result)
        if result.shape != (m, n):
            return f"the result is of shape {result.shape}, must be {(m, n)}"
        found = result @ signs
        if not np.isfinite(found).all():
            return f"{np.count_nonzero(~np.isfinite(result))} of {result.size} elements are not finite"
        error = relative(result[rows], expected)
        if not error < ERROR_BOUND:
            return f"error {error:.2e} in {len(rows)} rows, must be below {ERROR_BOUND:.0e}"
        error = relative(found, projection)
        if len(rows) < m and not error < PROJECTION_BOUND:
            return f"error {error:.2e} over all rows, must be below {PROJECTION_BOUND:.0e}"
        return None

    return check


def relative(found: Any, expected: Any) -> float:
    import jax.numpy as jnp

    norm = np.linalg.norm if isinstance(found, np.ndarray) else jnp.linalg.norm
    return float(norm(found - expected) / norm(expected))


def warm_deep_gemm(case: Gemm) -> None:
    """Makes DeepGEMM compile its kernel of this case: any values do."""
    import torch

    k_blocks = -(-case.k // 128)
    a = torch.zeros((case.m, case.k), dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
    b = torch.zeros((case.n, case.k), dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
    a_scale = peers.m_fastest(torch.ones((case.m, k_blocks), dtype=torch.float32, device="cuda"))
    b_scale = torch.ones((-(-case.n // 128), k_blocks), dtype=torch.float32, device="cuda")
    peers.deep_gemm_call(a, a_scale, b, b_scale)()
    torch.cuda.synchronize()


SUITE = Suite(
    op="fp8_gemm_nt",
    cases=DENSE,
    operands=operands,
    flops=flops,
    moved_bytes=moved_bytes,
    checker=checker,
    ours=peers.ours,
    peers=peers.PEERS,
    peak_operands=lambda: operands(Gemm(8192, 8192, 8192)),
    warm=warm_deep_gemm,
    groups=(
        ("all", lambda row: True),
        ("M<=128", lambda row: row["case"]["m"] <= 128),
        ("M=4096", lambda row: row["case"]["m"] == 4096),
    ),
)
