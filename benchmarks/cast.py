"""Suite `cast`: a BF16 matrix quantised to FP8 by token, by channel (transposed) and by block, and to FP4 by token.

Beside it XLA's fusions of the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import dense
from benchmarks.peers import Peer, Prepared, jax_call
from benchmarks.suite import Suite
from tests.cases import CASTS, Cast

# Rounding to three bits of mantissa is 2.65e-2, to one, under a scale for each 32, 1.01e-1; one scale lost out of many
# shows, and so does a place exchanged.
ERROR_BOUNDS = {"fp8": 3e-2, "fp4": 1.05e-1}


def flops(case: Cast) -> float:
    """A cast is measured by the bytes that it moves."""
    return 0.0


def kind(case: Cast) -> str:
    """What of x: "fp8" or "fp4"."""
    return case.op.rsplit("_", 1)[1]


def blocks(case: Cast) -> tuple[int, int]:
    """Rows and columns of x that share a scale."""
    if kind(case) == "fp4":
        return 1, 32
    return {"token": (1, 128), "channel": (128, 1), "block": (128, 128)}[case.op.split("_")[1]]


def moved_bytes(case: Cast) -> float:
    """BF16 read once, FP8 or FP4 and the float32 scales written once."""
    rows, columns = blocks(case)
    element = 2 + {"fp8": 1.0, "fp4": 0.5}[kind(case)]
    return element * case.m * case.k + 4 * -(-case.m // rows) * -(-case.k // columns)


def operands(case: Cast) -> tuple[Cast, Any]:
    import jax
    import jax.numpy as jnp

    return case, jax.jit(lambda key: jax.random.normal(key, (case.m, case.k), jnp.bfloat16))(jax.random.key(case.m))


def checker(case: Cast, given: tuple[Cast, Any]) -> Callable[[np.ndarray], str | None]:
    """Compares what the result stands for with x."""
    x, bound = np.asarray(given[1], np.float32), ERROR_BOUNDS[kind(case)]

    def check(result: np.ndarray) -> str | None:
        error = dense.relative(result, x)
        return None if error < bound else f"error {error:.2e}, must be below {bound:.2e}"

    return check


def prepared(given: tuple[Cast, Any], cast: Callable[[Any], Any]) -> Prepared:
    case, x = given
    rows, columns = blocks(case)
    single = 1 in (rows, columns)  # then scales are [M, blocks of K], of FP8 written with M fastest
    turned = single and kind(case) == "fp8"

    def as_the_gemm_reads_it(x):
        data, scale = cast(x)
        return data, scale.T if turned else scale

    call = jax_call(as_the_gemm_reads_it, x).call

    def result() -> np.ndarray:
        results: Any = call()
        data, scale = (np.asarray(v, np.float32) for v in results)
        scale = scale.T if turned else scale
        scale = scale if single else np.repeat(scale, 128, axis=0)[: data.shape[0]]
        wide = data * np.repeat(scale, max(rows, columns), axis=1)[:, : data.shape[1]]
        return wide.T if columns == 1 else wide

    return Prepared(call, result)


def ours(given: tuple[Cast, Any]) -> Prepared:
    import jax_deepgemm

    return prepared(given, getattr(jax_deepgemm, given[0].op))


def xla(given: tuple[Cast, Any]) -> Prepared:
    """The same in jax.numpy, fused by XLA."""
    from jax_deepgemm.ops import casting, fp4_casting

    block = blocks(given[0])
    if kind(given[0]) == "fp4":
        return prepared(given, lambda x: tuple(fp4_casting.reference(x, block[1], False)))
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
    groups=tuple((op, lambda row, op=op: row["op"] == op) for op in dict.fromkeys(case.op for case in CASTS)),
)
