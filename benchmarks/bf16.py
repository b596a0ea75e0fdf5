"""Suite `bf16`: bf16_gemm_{nt,nn,tn,tt}, BF16 out."""

# pyright: reportMissingImports=false
# PyTorch and DeepGEMM are optional, and imported only where they are used.

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import host, peers, roofline
from benchmarks.capture import EventSource
from benchmarks.dense import product_checker
from benchmarks.suite import Suite
from benchmarks.timing import Flush
from tests.cases import BF16, Bf16Gemm


class Operands(NamedTuple):
    """`a` and `b` as `layout` has them."""

    a: Any
    b: Any
    layout: str


def flops(case: Bf16Gemm) -> float:
    return 2.0 * case.m * case.n * case.k


def moved_bytes(case: Bf16Gemm) -> float:
    """Each operand read once, the result written once."""
    return 2.0 * (case.m * case.k + case.n * case.k + case.m * case.n)


def operands(case: Bf16Gemm) -> Operands:
    """Activations around 1; weights around 1/sqrt(k), as they are initialised."""
    import jax
    import jax.numpy as jnp

    shape_a = (case.m, case.k) if case.layout[0] == "n" else (case.k, case.m)
    shape_b = (case.n, case.k) if case.layout[1] == "t" else (case.k, case.n)

    @jax.jit
    def make(key):
        of_a, of_b = jax.random.split(key)
        a = jax.random.normal(of_a, shape_a, jnp.bfloat16)
        return a, jax.random.normal(of_b, shape_b, jnp.bfloat16) * case.k**-0.5

    a, b = make(jax.random.key(case.m + case.n * 65536))
    return Operands(a, b, case.layout)


def checker(case: Bf16Gemm, given: Operands) -> Callable[[Any], str | None]:
    """Tells what is wrong with a result, if anything."""
    a, b = (host.float32(x) for x in (given.a, given.b))
    return product_checker(a if given.layout[0] == "n" else a.T, b if given.layout[1] == "t" else b.T)


def ours(given: Operands) -> peers.Prepared:
    import jax_deepgemm

    return peers.jax_call(getattr(jax_deepgemm, f"bf16_gemm_{given.layout}"), given.a, given.b)


def xla(given: Operands) -> peers.Prepared:
    """What a JAX user writes without us."""
    import jax

    contracted = (int(given.layout[0] == "n"),), (int(given.layout[1] == "t"),)
    return peers.jax_call(lambda a, b: jax.lax.dot_general(a, b, (contracted, ((), ()))), given.a, given.b)


def cublaslt(given: Operands) -> peers.Prepared:
    import torch

    a, b = peers.to_torch(given.a), peers.to_torch(given.b)
    a, b = (a if given.layout[0] == "n" else a.t()), (b.t() if given.layout[1] == "t" else b)
    return peers.torch_prepared(functools.partial(torch.mm, a, b))


def deep_gemm_call(a: Any, b: Any, layout: str) -> Callable[[], Any]:
    import deep_gemm
    import torch

    m, n = a.shape[0 if layout[0] == "n" else 1], b.shape[0 if layout[1] == "t" else 1]
    d = torch.empty((m, n), dtype=torch.bfloat16, device="cuda")

    def launch() -> Any:
        getattr(deep_gemm, f"bf16_gemm_{layout}")(a, b, d)
        return d

    return launch


def deep_gemm(given: Operands) -> peers.Prepared:
    return peers.torch_prepared(deep_gemm_call(peers.to_torch(given.a), peers.to_torch(given.b), given.layout))


def warm_deep_gemm(case: Bf16Gemm) -> None:
    """Makes DeepGEMM compile its kernel of this case: any values do."""
    import torch

    shapes = (
        (case.m, case.k) if case.layout[0] == "n" else (case.k, case.m),
        (case.n, case.k) if case.layout[1] == "t" else (case.k, case.n),
    )
    a, b = (torch.zeros(shape, dtype=torch.bfloat16, device="cuda") for shape in shapes)
    deep_gemm_call(a, b, case.layout)()
    torch.cuda.synchronize()


def peak_operands() -> Operands:
    return operands(Bf16Gemm(8192, 8192, 8192))


def peak(source: EventSource, flush: Flush) -> float | None:
    return roofline.tflops(peak_operands(), {"cublaslt": cublaslt, "ours": ours}, source, flush)


SUITE = Suite(
    op="bf16_gemm_nt",
    cases=BF16,
    operands=operands,
    flops=flops,
    moved_bytes=moved_bytes,
    checker=checker,
    ours=ours,
    peers=(
        peers.Peer("deep_gemm", deep_gemm, kernel="bf16_gemm", alone=True),
        peers.Peer("cublaslt", cublaslt, alone=True),
        peers.Peer("xla", xla),
    ),
    peak_operands=peak_operands,
    warm=warm_deep_gemm,
    groups=(
        ("all", lambda row: True),
        ("M<=128", lambda row: row["case"]["m"] <= 128),
        ("M=1024", lambda row: row["case"]["m"] == 1024),
        ("M=4096", lambda row: row["case"]["m"] == 4096),
    ),
    peak=peak,
    peak_of="BF16",
)
