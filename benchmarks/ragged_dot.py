"""Suite `ragged_dot`: rows of groups by matrices of the groups, BF16 and FP8 with quantisation inside, beside XLA's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import dense, host
from benchmarks.peers import Peer, Prepared, jax_call
from benchmarks.preparation import shared
from benchmarks.suite import Suite
from tests.cases import RAGGED_DOTS, RaggedDot

# BF16 rounding of the result; and both operands rounded to three bits of mantissa: 3.7e-2.
ERROR_BOUNDS = {False: 5e-3, True: 6e-2}


class Operands(NamedTuple):
    """BF16: lhs [M, K], rhs [G, K, N]; the sizes of the groups."""

    case: RaggedDot
    lhs: Any
    rhs: Any
    sizes: Any


def flops(case: RaggedDot) -> float:
    return 2.0 * case.m * case.n * case.k


def moved_bytes(case: RaggedDot) -> float:
    """In BF16, as operands and result are."""
    return 2.0 * (case.m * case.k + case.groups * case.k * case.n + case.m * case.n)


@shared
def arrays(groups: int, m: int, n: int, k: int) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def make(key):
        of_lhs, of_rhs = jax.random.split(key)
        lhs = jax.random.normal(of_lhs, (m, k), jnp.bfloat16)
        return lhs, jax.random.normal(of_rhs, (groups, k, n), jnp.bfloat16) * k**-0.5

    return make(jax.random.key(groups))


def operands(case: RaggedDot) -> Operands:
    import jax.numpy as jnp

    lhs, rhs = arrays(case.groups, case.m, case.n, case.k)
    return Operands(case, lhs, rhs, jnp.full(case.groups, case.m // case.groups, jnp.int32))


def checker(case: RaggedDot, given: Operands) -> Callable[[Any], str | None]:
    """A few rows in full, of the first, a middle and the last group."""
    height = case.m // case.groups
    groups = sorted({0, case.groups // 2, case.groups - 1})
    rows = {g: np.linspace(g * height, (g + 1) * height - 1, 4).astype(int) for g in groups}
    wanted = [host.float32(given.lhs[at]) @ host.float32(given.rhs[g]) for g, at in rows.items()]
    at = np.concatenate(list(rows.values()))
    expected, bound = np.concatenate(wanted), ERROR_BOUNDS[case.fp8]

    def check(result: Any) -> str | None:
        if result.shape != (case.m, case.n):
            return f"the result is of shape {result.shape}, must be {(case.m, case.n)}"
        error = dense.relative(host.float32(result[at]), expected)
        return None if error < bound else f"error {error:.2e} in {len(at)} rows, must be below {bound:.0e}"

    return check


def ours(given: Operands) -> Prepared:
    import jax_deepgemm
    from jax_deepgemm.ops.fp8_gemm_plan import RECIPE

    case, *arguments = given
    recipe = RECIPE if case.fp8 else None
    return jax_call(lambda *args: jax_deepgemm.ragged_dot(*args, recipe=recipe), *arguments)


def xla(given: Operands) -> Prepared:
    import jax

    return jax_call(jax.lax.ragged_dot, *given[1:])


SUITE = Suite(
    op="ragged_dot",
    cases=RAGGED_DOTS,
    operands=operands,
    flops=flops,
    moved_bytes=moved_bytes,
    checker=checker,
    ours=ours,
    peers=(Peer("xla", xla),),
    peak_operands=dense.SUITE.peak_operands,
    warm=lambda case: None,
    groups=(
        ("BF16", lambda row: row["op"] == "ragged_dot"),
        ("FP8", lambda row: row["op"] != "ragged_dot"),
    ),
    one_kernel=False,
)
