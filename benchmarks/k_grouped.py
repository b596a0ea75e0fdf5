"""Suite `k_grouped`: k_grouped_{fp8,bf16}_gemm_tn_contiguous added in place to float32, groups of random sizes.

DeepGEMM takes groups of multiples of 128 rows, so all have such here.
"""

# pyright: reportMissingImports=false
# PyTorch and DeepGEMM are optional, and imported only where they are used.

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import dense, host, peers, roofline
from benchmarks.capture import EventSource
from benchmarks.peers import Peer, Prepared
from benchmarks.suite import Suite
from benchmarks.timing import Flush
from benchmarks.wgrad import accumulating
from tests.cases import K_GROUPED, KGrouped


class Operands(NamedTuple):
    """Rows of K, as they come; `sizes` is `ks` on the host. Nobody writes to `c`: each side adds to a copy."""

    kind: str
    x: Any
    y: Any
    ks: Any
    sizes: tuple[int, ...]
    c: Any


def flops(case: KGrouped) -> float:
    return 2.0 * case.m * case.n * case.k


def moved_bytes(case: KGrouped) -> float:
    """Each operand read once, scales included, and the result read and written once."""
    element = 1 + 4 / 128 if case.kind == "fp8" else 2
    return (case.m + case.n) * case.k * element + 8.0 * case.groups * case.m * case.n


def group_sizes(case: KGrouped) -> tuple[int, ...]:
    """From 0.7 to 1.3 of the mean, whole blocks of 128, all rows in all."""
    shares = np.random.default_rng(case.groups).uniform(0.7, 1.3, case.groups)
    ends = np.rint(np.cumsum(shares) / shares.sum() * (case.k // 128)).astype(int)
    return tuple(int(size) * 128 for size in np.diff(ends, prepend=0))


def operands(case: KGrouped) -> Operands:
    """Gradients and activations of k tokens; `c` about as large as the product."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def make(key):
        x, y, c = jax.random.split(key, 3)
        return (
            jax.random.normal(x, (case.k, case.m), jnp.bfloat16),
            jax.random.normal(y, (case.k, case.n), jnp.bfloat16),
            jax.random.normal(c, (case.groups, case.m, case.n)) * (case.k / case.groups) ** 0.5,
        )

    x, y, c = make(jax.random.key(case.groups))
    sizes = group_sizes(case)
    return Operands(case.kind, x, y, jnp.asarray(np.array(sizes, np.int32)), sizes, c)


def checker(case: KGrouped, given: Operands) -> Callable[[Any], str | None]:
    """Of the first and the last group; FP8 by a bound for what quantising costs."""
    parts = {}
    for group in (0, case.groups - 1):
        start = sum(given.sizes[:group])
        rows = slice(start, start + given.sizes[group])
        x, y = (host.float32(v[rows]) for v in (given.x, given.y))
        parts[group] = dense.product_checker(x.T, y.T, np.asarray(given.c[group]))

    def check(result: Any) -> str | None:
        for group, checked in parts.items():
            fault = checked(result[group])
            if fault and not (given.kind == "fp8" and quantised_well(fault)):
                return f"group {group}: {fault}"
        return None

    return check


def quantised_well(fault: str) -> bool:
    """Whether the error that `product_checker` found is one of FP8 operands: 3 to 4 %."""
    return fault.startswith("error ") and float(fault.split()[1]) < 0.05


def ours(given: Operands) -> Prepared:
    """The GEMM alone: casts are timed by suite `cast`."""
    import jax

    import jax_deepgemm

    if given.kind == "bf16":
        return accumulating(jax_deepgemm.k_grouped_bf16_gemm_tn_contiguous, given, given.x, given.y, given.ks)  # type: ignore[arg-type]

    # Scales arrive with rows fastest, as the cast writes them in the same program: `.T` is free.
    @jax.jit
    def cast(x, ks):
        data, scale = jax_deepgemm.k_grouped_cast_to_fp8(x, ks)
        return data, scale.T

    def k_grouped_fp8_gemm(a, a_scale_t, b, b_scale_t, ks, c):
        return jax_deepgemm.k_grouped_fp8_gemm_tn_contiguous((a, a_scale_t.T), (b, b_scale_t.T), ks, c)

    fixed = *cast(given.x, given.ks), *cast(given.y, given.ks), given.ks
    return accumulating(k_grouped_fp8_gemm, given, *fixed)  # type: ignore[arg-type]


def deep_gemm_call(kind: str, x: Any, y: Any, sizes: tuple[int, ...]) -> Callable[[Any], Any]:
    """Its FP8 kernel reads each group [M, K of the group], one behind the other; scales rows fastest."""
    import deep_gemm
    import torch
    from deep_gemm.utils import per_channel_cast_to_fp8

    ks = torch.tensor(sizes, dtype=torch.int32, device="cuda")
    if kind == "bf16":
        return functools.partial(_added, lambda c: deep_gemm.k_grouped_bf16_gemm_tn_contiguous(x, y, c, sizes, ks, c))

    def k_major(rows: Any) -> tuple[Any, Any]:
        data, scale = per_channel_cast_to_fp8(rows, False)
        return torch.cat([part.t().flatten() for part in data.split(sizes)]), scale.t().contiguous()

    a, b = k_major(x), k_major(y)
    return functools.partial(_added, lambda c: deep_gemm.k_grouped_fp8_gemm_nt_contiguous(a, b, c, list(sizes), ks, c))


def _added(launch: Callable[[Any], Any], c: Any) -> Any:
    launch(c)
    return c


def deep_gemm(given: Operands) -> Prepared:
    import torch

    x, y, c = map(peers.to_torch, (given.x, given.y, given.c))
    launch = deep_gemm_call(given.kind, x, y, given.sizes)
    sums = c.clone()

    def call() -> Any:
        launch(sums)
        torch.cuda.synchronize()

    def result() -> Any:
        import jax

        found = launch(c.clone())
        torch.cuda.synchronize()
        return jax.dlpack.from_dlpack(found)

    return Prepared(call, result)


def xla(given: Operands) -> Prepared:
    """What a JAX user writes without us, in BF16: `ragged_dot_general` that sums over ragged rows."""
    import jax
    import jax.numpy as jnp

    dimensions = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )

    def ragged_dot(x, y, ks, c):
        return c + jax.lax.ragged_dot_general(x, y, ks, dimensions, preferred_element_type=jnp.float32)

    return accumulating(ragged_dot, given, given.x, given.y, given.ks)  # type: ignore[arg-type]


def warm_deep_gemm(case: KGrouped) -> None:
    """Makes DeepGEMM compile its kernel of this case: any values do."""
    import torch

    x, y = (torch.zeros((case.k, size), dtype=torch.bfloat16, device="cuda") for size in (case.m, case.n))
    c = torch.zeros((case.groups, case.m, case.n), device="cuda")
    deep_gemm_call(case.kind, x, y, group_sizes(case))(c)
    torch.cuda.synchronize()


def peak(source: EventSource, flush: Flush) -> float | None:
    return roofline.fp8_tflops(dense.SUITE.peak_operands(), source, flush)


SUITE = Suite(
    op="k_grouped_fp8_gemm_tn_contiguous",
    cases=K_GROUPED,
    operands=operands,
    flops=flops,
    moved_bytes=moved_bytes,
    checker=checker,
    ours=ours,
    peers=(
        Peer("deep_gemm", deep_gemm, kernel="gemm", alone=True),
        Peer("xla", xla),
    ),
    peak_operands=dense.SUITE.peak_operands,
    warm=warm_deep_gemm,
    groups=(
        ("FP8", lambda row: "fp8" in row["op"]),
        ("BF16", lambda row: "bf16" in row["op"]),
    ),
    peak=peak,
)
