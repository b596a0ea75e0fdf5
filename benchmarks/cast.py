"""Suite `cast`: a BF16 matrix quantised to FP8 by token, by channel (transposed) and by block, beside XLA's fusions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import dense
from benchmarks.peers import Peer, Prepared, jax_call
from benchmarks.suite import Suite
from tests.cases import CASTS, Cast

# Rounding to three bits of mantissa is 2.65e-2; one scale lost out of many shows, and so does a place exchanged.
ERROR_BOUND = 3e-2


def flops(case: Cast) -> float:
    """A cast is measured by the bytes that it moves."""
    return 0.0


def blocks(case: Cast) -> tuple[int, int]:
    """Rows and columns of x that share a scale."""
    return {"token": (1, 128), "channel": (128, 1), "block": (128, 128)}[case.op.split("_")[1]]


def moved_bytes(case: Cast) -> float:
    """BF16 read once, FP8 and the float32 scales written once."""
    rows, columns = blocks(case)
    return 3.0 * case.m * case.k + 4 * -(-case.m // rows) * -(-case.k // columns)


def operands(case: Cast) -> tuple[Cast, Any]:
    import jax
    import jax.numpy as jnp

    return case, jax.jit(lambda key: jax.random.normal(key, (case.m, case.k), jnp.bfloat16))(jax.random.key(case.m))


def checker(case: Cast, given: tuple[Cast, Any]) -> Callable[[np.ndarray], str | None]:
    """Compares what the result stands for with x."""
    x = np.asarray(given[1], np.float32)

    def check(result: np.ndarray) -> str | None:
        error = dense.relative(result, x)
        return None if error < ERROR_BOUND else f"error {error:.2e}, must be below {ERROR_BOUND:.0e}"

    return check


def prepared(given: tuple[Cast, Any], cast: Callable[[Any], Any]) -> Prepared:
    case, x = given
    rows, columns = blocks(case)
    single = 1 in (rows, columns)  # then scales are [M, blocks of K], written with M fastest

    def as_the_gemm_reads_it(x):
        data, scale = cast(x)
        return data, scale.T if single else scale

    call = jax_call(as_the_gemm_reads_it, x).call

    def result() -> np.ndarray:
        results: Any = call()
        data, scale = (np.asarray(v, np.float32) for v in results)
        scale = scale.T if single else np.repeat(scale, 128, axis=0)[: data.shape[0]]
        wide = data * np.repeat(scale, 128, axis=1)[:, : data.shape[1]]
        return wide.T if columns == 1 else wide

    return Prepared(call, result)


def ours(given: tuple[Cast, Any]) -> Prepared:
    import jax_deepgemm

    return prepared(given, getattr(jax_deepgemm, given[0].op))


def xla(given: tuple[Cast, Any]) -> Prepared:
    """The same in jax.numpy, fused by XLA."""
    from jax_deepgemm.ops import casting

    block = blocks(given[0])
    sides: dict[str, Any] = {"turned" if block[1] == 1 else "straight": block}
    return prepared(given, lambda x: tuple(casting.reference(x, **sides)))


SUITE = Suite(
    op="cast",
    cases=CASTS,
    operands=operands,
    flops=flops,
    moved_bytes=moved_bytes,
    checker=checker,
    ours=ours,
    peers=(Peer("xla", xla),),
    peak_operands=dense.SUITE.peak_operands,
    warm=lambda case: None,
    groups=tuple(
        (unit, lambda row, unit=unit: row["op"].split("_")[1] == unit) for unit in ("token", "channel", "block")
    ),
)
