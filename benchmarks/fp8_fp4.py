"""Suite `fp8_fp4`: fp8_fp4_gemm_nt, B in FP4 scaled by 1x32 (UE8M0), beside our own FP8 GEMM of the same sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import dense, host, peers
from benchmarks.peers import Peer, Prepared, jax_call
from benchmarks.preparation import shared
from benchmarks.suite import Suite
from tests.cases import FP8_FP4, Gemm


class Operands(NamedTuple):
    """`fp8` are the operands of the FP8 GEMM of the same sizes."""

    a: Any
    a_scale: Any
    b: Any
    b_scale: Any
    fp8: peers.Operands


def moved_bytes(case: Gemm) -> float:
    """Each operand read once, scales included, and the result written once."""
    m, n, k = case.m, case.n, case.k
    return m * (k + 4 * -(-k // 128)) + n * (k // 2 + -(-k // 32)) + 2 * m * n


@shared
def weights(n: int, k: int) -> tuple[Any, Any]:
    """Around 1/sqrt(k), as they are initialised."""
    import jax
    import jax.numpy as jnp

    import jax_deepgemm

    @jax.jit
    def make(key):
        w = jax.random.normal(key, (n, k), jnp.bfloat16) * k**-0.5
        return jax_deepgemm.per_token_cast_to_fp4(w, use_ue8m0=True)

    return make(jax.random.key(n * 65536 + k))


def operands(case: Gemm) -> Operands:
    fp8 = dense.operands(case)
    return Operands(fp8.a, fp8.a_scale, *weights(case.n, case.k), fp8)


def checker(case: Gemm, given: Operands) -> Callable[[Any], str | None]:
    return dense.product_checker(dense.dequantised(given.a, given.a_scale, 1), wide_weights(case.n, case.k))


@shared
def wide_weights(n: int, k: int) -> np.ndarray:
    data, scale = (host.float32(x) for x in weights(n, k))
    return data * scale.repeat(32, axis=1)[:, :k]


def ours(given: Operands) -> Prepared:
    """The A scales arrive with M fastest, as a producer in the same program writes them: `.T` is then free."""
    import jax_deepgemm

    def fp8_fp4_gemm_nt(a, a_scale_t, b, b_scale):
        return jax_deepgemm.fp8_fp4_gemm_nt((a, a_scale_t.T), (b, b_scale))

    return jax_call(fp8_fp4_gemm_nt, given.a, peers.transposed(given.a_scale), given.b, given.b_scale)


def fp8(given: Operands) -> Prepared:
    return peers.ours(given.fp8)


SUITE = Suite(
    op="fp8_fp4_gemm_nt",
    cases=FP8_FP4,
    operands=operands,
    flops=dense.flops,
    moved_bytes=moved_bytes,
    checker=checker,
    ours=ours,
    peers=(Peer("fp8", fp8, checked=False),),
    peak_operands=dense.SUITE.peak_operands,
    warm=lambda case: None,
    groups=(
        ("M<=64", lambda row: row["case"]["m"] <= 64),
        ("M=4096", lambda row: row["case"]["m"] == 4096),
    ),
)
