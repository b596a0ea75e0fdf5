"""Suite `dense`: fp8_gemm_nt, A scaled by 1x128 and B by 128x128, BF16 out."""

# pyright: reportMissingImports=false
# PyTorch and DeepGEMM are optional, and imported only where they are used.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.preparation import shared
from benchmarks.suite import Suite
from tests.cases import DENSE, Gemm

# This guards the timings against wrong kernels; the tests hold the tighter bounds. BF16 rounding of the result is
# 1.5e-3, of both operands too (XLA) 2.6e-3; a scale block lost out of 128 is 9e-2.
ERROR_BOUND = 5e-3
PROJECTION_BOUND = 2e-2  # one random projection of each row: noisier
FULL_ROWS = 16
SHARED_ROWS = 4096
UNTUNED = {"xla_gpu_autotune_level": 0}  # of programs that nobody times


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

    def wide(a: Any, a_scale: Any, b: Any, b_scale: Any) -> tuple[Any, ...]:
        return dequantised(a, a_scale, 1), dequantised(b, b_scale, 128)

    return product_checker(wide, *given)


def dequantised(data: Any, scale: Any, rows: int) -> Any:
    """float32, of a matrix with a scale for each block of `rows` x 128."""
    import jax.numpy as jnp

    wide = jnp.repeat(jnp.repeat(jnp.asarray(scale), rows, axis=0)[: data.shape[0]], 128, axis=1)[:, : data.shape[1]]
    return jnp.asarray(data).astype(jnp.float32) * wide


def product_checker(wide: Callable[..., tuple[Any, ...]], *given: Any) -> Callable[[Any], str | None]:
    """Compares with `a @ b.T (+ c)`, where `wide(*given)` are a [M, K], b [N, K] and maybe c in float32.

    A few rows in full, all by a random projection. By JAX where the operands are: a result of 4096 x 32768 takes
    seconds to fetch and to look through.
    """
    import jax
    import jax.numpy as jnp

    def expectation(*given: Any) -> tuple[Any, ...]:
        a, b, *c = wide(*given)
        rows = rows_in_full(a.shape[0])
        signs = jnp.where(jax.random.bernoulli(jax.random.key(0), shape=(b.shape[0],)), 1.0, -1.0)
        # Sums of products rather than products of matrices: nothing for XLA to tune.
        full, projection = a[rows] @ b.T, jnp.sum(a * jnp.sum(b * signs[:, None], axis=0), axis=1)
        for summand in c:
            full, projection = full + summand[rows], projection + jnp.sum(summand * signs, axis=1)
        return full, projection, signs

    def comparison(result: Any, full: Any, projection: Any, signs: Any) -> tuple[Any, ...]:
        result = result.astype(jnp.float32)
        faulty = jnp.sum(~jnp.isfinite(result))
        found = jnp.sum(result * signs, axis=1)
        return faulty, relative_norm(result[rows_in_full(result.shape[0])], full), relative_norm(found, projection)

    with jax.default_matmul_precision("highest"):
        expected = jax.jit(expectation, compiler_options=UNTUNED)(*given)

    def check(result: Any) -> str | None:
        shape = (expected[1].size, expected[2].size)
        if result.shape != shape:
            return f"the result is of shape {result.shape}, must be {shape}"
        faulty, in_rows, over_all = map(float, jax.jit(comparison)(jnp.asarray(result), *expected))
        if faulty:
            return f"{faulty:.0f} of {result.size} elements are not finite"
        if not in_rows < ERROR_BOUND:
            return f"error {in_rows:.2e} in {expected[0].shape[0]} rows, must be below {ERROR_BOUND:.0e}"
        if expected[0].shape[0] < shape[0] and not over_all < PROJECTION_BOUND:
            return f"error {over_all:.2e} over all rows, must be below {PROJECTION_BOUND:.0e}"
        return None

    return check


def rows_in_full(m: int) -> np.ndarray:
    return np.unique(np.linspace(0, m - 1, FULL_ROWS).astype(int))


def relative_norm(found: Any, expected: Any) -> Any:
    import jax.numpy as jnp

    return jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)


def relative(found: Any, expected: Any) -> float:
    return float(relative_norm(found, expected))


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
