"""Suite `linear`: a layer forward and back, `fp8_linear` with all its casts beside XLA's in BF16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import dense
from benchmarks.peers import Peer, Prepared, jax_call
from benchmarks.suite import Suite
from tests.cases import LINEAR, Gemm

ERROR_BOUND = 6e-2  # two operands rounded to three bits of mantissa: 3.7e-2


class Operands(NamedTuple):
    """BF16: x [M, K], w [N, K], and the gradient of the result, dy [M, N]."""

    x: Any
    w: Any
    dy: Any


def flops(case: Gemm) -> float:
    """Of the layer, of the gradient of its activations and of that of its weights."""
    return 3 * dense.flops(case)


def moved_bytes(case: Gemm) -> float:
    """In BF16, three operands read and three results written."""
    m, n, k = case.m, case.n, case.k
    return 2.0 * 2 * (m * k + n * k + m * n)


def operands(case: Gemm) -> Operands:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def make(key):
        x, w, dy = jax.random.split(key, 3)
        sizes = (x, case.m, case.k, 1.0), (w, case.n, case.k, case.k**-0.5), (dy, case.m, case.n, 1.0 / case.m)
        return Operands(*(jax.random.normal(k, (r, c), jnp.bfloat16) * scale for k, r, c, scale in sizes))

    return make(jax.random.key(case.n))


def pieces(x: Any, w: Any, dy: Any, matmul: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """The result of the layer and the gradients of its activations and weights."""
    import jax

    y, back = jax.vjp(matmul, x, w)
    return (y, *back(dy))


def prepared(matmul: Callable[..., Any], given: Operands) -> Prepared:
    def layer(x, w, dy):
        return pieces(x, w, dy, matmul)

    one = jax_call(layer, *given)
    return Prepared(one.call, lambda: joined(one.call()))


def joined(results: Any) -> Any:
    import jax.numpy as jnp

    return jnp.concatenate([r.astype(jnp.float32).ravel() for r in results])


def bf16_linear(x, w):
    return x @ w.T


def ours(given: Operands) -> Prepared:
    import jax_deepgemm

    return prepared(jax_deepgemm.fp8_linear, given)


def xla(given: Operands) -> Prepared:
    return prepared(bf16_linear, given)


def checker(case: Gemm, given: Operands) -> Callable[[Any], str | None]:
    import jax
    import jax.numpy as jnp

    with jax.default_matmul_precision("highest"):
        # Nobody times this: XLA need not look for the best kernels.
        reference = jax.jit(
            lambda x, w, dy: pieces(x, w, dy, bf16_linear), compiler_options={"xla_gpu_autotune_level": 0}
        )
        exact = reference(*(v.astype(jnp.float32) for v in given))
    wanted = dict(zip(("y", "dx", "dw"), (v.ravel() for v in exact), strict=True))

    def check(result: Any) -> str | None:
        found = jnp.split(jnp.asarray(result), np.cumsum([v.size for v in wanted.values()])[:-1])
        for (name, value), got in zip(wanted.items(), found, strict=True):
            error = dense.relative(got, value)
            if not error < ERROR_BOUND:
                return f"error {error:.2e} of {name}, must be below {ERROR_BOUND:.0e}"
        return None

    return check


def no_warming(case: Gemm) -> None:
    """The peer is XLA."""


SUITE = Suite(
    op="fp8_linear",
    cases=LINEAR,
    operands=operands,
    flops=flops,
    moved_bytes=moved_bytes,
    checker=checker,
    ours=ours,
    peers=(Peer("xla", xla),),
    peak_operands=dense.SUITE.peak_operands,
    warm=no_warming,
    groups=(("all", lambda row: True),),
    one_kernel=False,
)
