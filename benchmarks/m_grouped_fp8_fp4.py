"""Suite `fp8_fp4_masked`: m_grouped_fp8_fp4_gemm_nt_masked with few rows a group, B in FP4 scaled by 1x32 (UE8M0).

Beside it our own FP8 GEMM of the same sizes. The aim is 1.45 times its speed: most of what is read are weights, half as
many bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from benchmarks import dense, host, m_grouped
from benchmarks.peers import Peer, Prepared, jax_call
from benchmarks.suite import Suite
from tests.cases import FP4_FEW_ROWS, MGrouped

_VALUES = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)


class Operands(NamedTuple):
    """Packed weights and their scales; `fp8` are the operands of the FP8 GEMM of the same sizes."""

    b: Any
    b_scale: Any
    fp8: m_grouped.Operands


def moved_bytes(case: MGrouped) -> float:
    """The weights of groups that have rows, all rows read once and written once."""
    used, rows, blocks = sum(size > 0 for size in case.group_sizes), sum(case.group_sizes), -(-case.k // 128)
    return used * case.n * (case.k // 2 + case.k // 32) + rows * (case.k + 4 * blocks + 2 * case.n)


def operands(case: MGrouped) -> Operands:
    """Weights of random codes, around 1/sqrt(k): casts of so many would take more memory than there is."""
    import jax
    import jax.numpy as jnp

    groups, n, k = case.groups, case.n, case.k
    exponent = 127 + round(math.log2(k**-0.5 / 4))

    @jax.jit
    def make(key: Any) -> Any:
        of_codes, of_scales = jax.random.split(key)
        exponents = exponent + jax.random.randint(of_scales, (groups, n, k // 32), 0, 2)
        codes = jax.random.bits(of_codes, (groups, n, k // 2), jnp.uint8)
        return codes, jax.lax.bitcast_convert_type(exponents.astype(jnp.uint8), jnp.float8_e8m0fnu)

    b, b_scale = make(jax.random.key(groups * n + k))
    return Operands(b, b_scale, m_grouped.operands(dataclasses.replace(case, op="m_grouped_fp8_gemm_nt_masked")))


def checker(case: MGrouped, given: Operands) -> Callable[[Any], str | None]:
    """Compares some groups."""
    a, a_scale = given.fp8.a
    checks = []
    for g in np.argsort(case.group_sizes)[::-1][: m_grouped.CHECKED].tolist():
        at = m_grouped.rows_of(case, g)
        rows = dense.dequantised(a[at], np.moveaxis(np.asarray(a_scale), 0, -1)[at], 1)
        codes = np.asarray(given.b[g])
        values = np.stack([_VALUES[codes & 15], _VALUES[codes >> 4]], axis=-1).reshape(case.n, case.k)
        values *= host.float32(given.b_scale[g]).repeat(32, axis=1)
        checks.append((at, dense.product_checker(rows, values)))

    def check(result: Any) -> str | None:
        return next((fault for at, one in checks if (fault := one(result[at]))), None)

    return check


def ours(given: Operands) -> Prepared:
    import jax.numpy as jnp

    import jax_deepgemm

    case = given.fp8.case

    def call(a: Any, b: Any, masked_m: Any) -> Any:
        a = a[0], jnp.moveaxis(a[1], 0, -1)  # free: that is how the kernel reads them
        return jax_deepgemm.m_grouped_fp8_fp4_gemm_nt_masked(a, b, masked_m, case.rows)

    return jax_call(call, given.fp8.a, (given.b, given.b_scale), jnp.asarray(case.group_sizes, jnp.int32))


def fp8(given: Operands) -> Prepared:
    return m_grouped.ours(given.fp8)


SUITE = Suite(
    op="m_grouped_fp8_fp4_gemm_nt_masked",
    cases=FP4_FEW_ROWS,
    operands=operands,
    flops=m_grouped.flops,
    moved_bytes=moved_bytes,
    checker=checker,
    ours=ours,
    peers=(Peer("fp8", fp8, checked=False),),
    peak_operands=dense.SUITE.peak_operands,
    warm=lambda case: None,
    groups=(("all", lambda row: True),),
)
