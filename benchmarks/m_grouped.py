"""Suites `contiguous` and `masked`, and `bf16_contiguous` and `bf16_masked`: m-grouped GEMMs, BF16 out.

Our groups of random sizes lie one behind the other; DeepGEMM's are padded to the rows that it wants. Contiguous layouts
are told by their ends, to DeepGEMM by each row's group, since that is what it takes.
"""

# pyright: reportMissingImports=false
# PyTorch and DeepGEMM are optional, and imported only where they are used.

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import bf16, dense, host, peers
from benchmarks.suite import Suite
from tests.cases import BF16_CONTIGUOUS, BF16_MASKED, CONTIGUOUS, MASKED, Gemm, MGrouped

ALIGNMENT = 128  # of DeepGEMM's groups
CHECKED = 4  # groups


class Operands(NamedTuple):
    """`a` and `b` are (data, scale), with the scale as the kernel wants it, or one BF16 array."""

    a: Any
    b: Any
    case: MGrouped


def quantised(case: MGrouped) -> bool:
    return "fp8" in case.op


def flops(case: MGrouped) -> float:
    return 2.0 * sum(case.group_sizes) * case.n * case.k


def moved_bytes(case: MGrouped) -> float:
    """The weights of groups that have rows, all rows read once and written once."""
    used, rows = sum(size > 0 for size in case.group_sizes), sum(case.group_sizes)
    if quantised(case):
        blocks = -(-case.k // 128)
        weights = case.n * case.k + 4 * -(-case.n // 128) * blocks
        return used * weights + rows * (case.k + 4 * blocks + 2 * case.n)
    return 2.0 * (used * case.n * case.k + rows * (case.k + case.n))


def operands(case: MGrouped) -> Operands:
    import jax
    import jax.numpy as jnp

    groups, n, k = case.groups, case.n, case.k
    lead = (groups, case.most) if case.masked else (sum(case.group_sizes),)

    @jax.jit
    def make(key: Any) -> Any:
        of_a, of_b, of_scales = jax.random.split(key, 3)
        if not quantised(case):
            a = jax.random.normal(of_a, (*lead, k), jnp.bfloat16)
            return a, jax.random.normal(of_b, (groups, n, k), jnp.bfloat16) * k**-0.5
        # Casts of all this in one go would take more memory than there is.
        blocks = -(-k // 128)
        a, b = (
            jax.random.normal(key, shape, jnp.bfloat16).astype(jnp.float8_e4m3fn)
            for key, shape in ((of_a, (*lead, k)), (of_b, (groups, n, k)))
        )
        scales = jax.random.uniform(of_scales, (blocks, *lead), minval=0.5, maxval=2)  # rows fastest
        return (a, scales), (b, jnp.full((groups, -(-n // 128), blocks), k**-0.5))

    a, b = make(jax.random.key(groups * n + k))
    return Operands(a, b, case)


def starts(case: MGrouped, alignment: int = 1) -> np.ndarray:
    """The row at which each group begins, and where the last ends."""
    sizes = [-(-size // alignment) * alignment for size in case.group_sizes]
    return np.concatenate([[0], np.cumsum(sizes)])


def checker(case: MGrouped, given: Operands) -> Callable[[Any], str | None]:
    """Compares some groups."""
    chosen = [g for g in np.argsort(case.group_sizes)[::-1][:CHECKED].tolist() if case.group_sizes[g] > 0]
    checks = []
    for g in chosen:
        at = rows_of(case, g)
        if quantised(case):
            (a, a_scale), (b, b_scale) = given.a, given.b
            rows = dense.dequantised(a[at], np.moveaxis(np.asarray(a_scale), 0, -1)[at], 1)
            weights = dense.dequantised(b[g], b_scale[g], 128)
        else:
            rows, weights = host.float32(given.a[at]), host.float32(given.b[g])
        checks.append((at, dense.product_checker(rows, weights)))

    def check(result: Any) -> str | None:
        return next((fault for at, one in checks if (fault := one(result[at]))), None)

    return check


def rows_of(case: MGrouped, g: int) -> Any:
    first = starts(case)
    return (g, slice(0, case.group_sizes[g])) if case.masked else slice(int(first[g]), int(first[g + 1]))


def ours(given: Operands) -> peers.Prepared:
    import jax.numpy as jnp

    import jax_deepgemm

    case = given.case
    function: Any = getattr(jax_deepgemm, case.op)
    layout = jnp.asarray(case.group_sizes if case.masked else starts(case)[1:], jnp.int32)

    def call(a: Any, b: Any, layout: Any) -> Any:
        if quantised(case):
            a = a[0], jnp.moveaxis(a[1], 0, -1)  # free: that is how the kernel reads them
        return function(a, b, layout, case.rows) if case.masked else function(a, b, layout, use_psum_layout=True)

    return peers.jax_call(call, given.a, given.b, layout)


def deep_gemm(given: Operands) -> peers.Prepared:
    """Its result, without what pads it, is that of ours."""
    import jax
    import torch

    case = given.case
    a, b = torch_operands(given)
    rows = None  # of its result
    if case.masked:
        layout = torch.tensor(case.group_sizes, dtype=torch.int32, device="cuda")
    else:
        first = starts(case, ALIGNMENT)
        at = np.concatenate([np.arange(s) + f for s, f in zip(case.group_sizes, first[:-1], strict=True)])
        group = np.full(int(first[-1]), -1, np.int32)
        group[at] = np.repeat(np.arange(case.groups), case.group_sizes)
        layout, rows = torch.tensor(group, device="cuda"), torch.tensor(at, device="cuda")
        if len(at) < len(group):
            a = (
                (spread(a[0], rows, len(group)), spread(a[1], rows, len(group)))
                if quantised(case)
                else spread(a, rows, len(group))
            )
    lead = (case.groups, case.most) if case.masked else tuple(layout.shape)
    launch = deep_gemm_call(case, a, b, layout, (*lead, case.n))
    prepared = peers.torch_prepared(launch)

    def result() -> Any:
        d: Any = prepared.call()
        return jax.dlpack.from_dlpack((d if rows is None else d[rows]).float())

    return peers.Prepared(prepared.call, result)


def torch_operands(given: Operands) -> tuple[Any, Any]:
    if not quantised(given.case):
        return peers.to_torch(given.a), peers.to_torch(given.b)
    (a, scales), (b, b_scale) = ([peers.to_torch(x) for x in pair] for pair in (given.a, given.b))
    # Of masked rows, each group's by itself, as DeepGEMM wants them; contiguous ones as they are.
    a_scale = scales.permute(1, 0, 2).contiguous().transpose(1, 2) if given.case.masked else scales.t()
    return (a, a_scale), (b, b_scale)


def spread(x: Any, rows: Any, height: int) -> Any:
    """The rows of `x` at `rows` of a matrix of zeros, with the order of its dimensions in memory."""
    import torch

    if x.dtype == torch.float8_e4m3fn:
        return spread(x.view(torch.uint8), rows, height).view(x.dtype)
    if x.stride(0) == 1:
        wide = torch.zeros((x.shape[1], height), dtype=x.dtype, device="cuda").t()
    else:
        wide = torch.zeros((height, x.shape[1]), dtype=x.dtype, device="cuda")
    wide[rows] = x
    return wide


# By the package's own names, where they differ from DeepGEMM's.
RENAMED = {f"m_grouped_{kind}_gemm_nt_masked": f"{kind}_m_grouped_gemm_nt_masked" for kind in ("fp8", "bf16")}


def deep_gemm_call(case: MGrouped, a: Any, b: Any, layout: Any, shape: Sequence[int]) -> Callable[[], Any]:
    import deep_gemm
    import torch

    d = torch.empty(tuple(shape), dtype=torch.bfloat16, device="cuda")
    function = getattr(deep_gemm, RENAMED.get(case.op, case.op))

    def launch() -> Any:
        if case.masked:
            function(a, b, d, layout, case.rows)
        else:
            function(a, b, d, layout)
        return d

    return launch


def warm(case: MGrouped) -> None:
    """Makes DeepGEMM compile its kernel of this case: any values do."""
    import torch

    lead = (case.groups, case.most) if case.masked else (int(starts(case, ALIGNMENT)[-1]),)
    blocks = -(-case.k // 128)

    def zeros(*shape: int) -> Any:
        if quantised(case):
            return torch.zeros(shape, dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
        return torch.zeros(shape, dtype=torch.bfloat16, device="cuda")

    a: Any = zeros(*lead, case.k)
    b: Any = zeros(case.groups, case.n, case.k)
    if quantised(case):
        scales = torch.ones((*lead[:-1], blocks, lead[-1]), dtype=torch.float32, device="cuda").transpose(-1, -2)
        a, b = (a, scales), (b, torch.ones((case.groups, -(-case.n // 128), blocks), device="cuda"))
    size = (case.groups,) if case.masked else lead
    deep_gemm_call(case, a, b, torch.zeros(size, dtype=torch.int32, device="cuda"), (*lead, case.n))()
    torch.cuda.synchronize()


def suite(cases: Sequence[MGrouped], **peak: Any) -> Suite:
    return Suite(
        op=cases[0].op,
        cases=cases,
        operands=operands,
        flops=flops,
        moved_bytes=moved_bytes,
        checker=checker,
        ours=ours,
        peers=(peers.Peer("deep_gemm", deep_gemm, kernel="gemm", alone=True),),
        peak_operands=lambda: dense.operands(Gemm(8192, 8192, 8192)),
        warm=warm,
        groups=(
            ("equal groups", lambda row: not row["case"]["drawn"]),
            ("random sizes", lambda row: bool(row["case"]["drawn"])),
            ("20 rows and fewer", lambda row: row["case"]["rows"] <= 20),
            ("60 to 192 rows", lambda row: 20 < row["case"]["rows"] <= 192),
            ("more rows", lambda row: row["case"]["rows"] > 192),
            ("all", lambda row: True),
        ),
        **peak,
    )


_BF16 = functools.partial(suite, peak=bf16.SUITE.peak, peak_of=bf16.SUITE.peak_of)
SUITES = {
    "contiguous": suite(CONTIGUOUS),
    "masked": suite(MASKED),
    "bf16_contiguous": _BF16(BF16_CONTIGUOUS),
    "bf16_masked": _BF16(BF16_MASKED),
}
