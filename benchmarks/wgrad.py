"""Suite `wgrad`: fp8_gemm_nt, both operands scaled by 1x128, added in place to float32 gradients of weights."""

# pyright: reportMissingImports=false
# PyTorch and DeepGEMM are optional, and imported only where they are used.

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import dense, peers
from benchmarks.peers import Peer, Prepared
from benchmarks.suite import Suite
from tests.cases import WGRAD, Gemm

RECIPE = ((1, 128), (1, 128))


class Operands(NamedTuple):
    """Scales are [rows, K / 128]. Nobody writes to `c`: each side adds to a copy."""

    a: Any
    a_scale: Any
    b: Any
    b_scale: Any
    c: Any


def moved_bytes(case: Gemm) -> float:
    """Each operand read once, scales included, and the result read and written once."""
    m, n, k = case.m, case.n, case.k
    return (m + n) * (k + 4 * -(-k // 128)) + 8 * m * n


def operands(case: Gemm) -> Operands:
    """Gradients and activations of k tokens, the tokens contiguous; `c` about as large as the product."""
    import jax

    import jax_deepgemm

    @jax.jit
    def make(key):
        a, b, c = jax.random.split(key, 3)
        left = jax_deepgemm.per_token_cast_to_fp8(jax.random.normal(a, (case.m, case.k)))
        right = jax_deepgemm.per_token_cast_to_fp8(jax.random.normal(b, (case.n, case.k)))
        return Operands(*left, *right, jax.random.normal(c, (case.m, case.n)) * case.k**0.5)

    return make(jax.random.key(case.m))


def checker(case: Gemm, given: Operands) -> Callable[[Any], str | None]:
    a, b = dense.dequantised(given.a, given.a_scale, 1), dense.dequantised(given.b, given.b_scale, 1)
    return dense.product_checker(a, b, np.asarray(given.c))


def accumulating(function: Callable[..., Any], given: Operands, *fixed: Any) -> Prepared:
    """`function(*fixed, c)`, compiled to overwrite `c`: each call adds once more."""
    import jax
    import jax.numpy as jnp

    compiled = jax.jit(function, donate_argnums=len(fixed)).lower(*fixed, given.c).compile()
    sums = [jnp.copy(given.c)]

    def call() -> Any:
        sums[0] = jax.block_until_ready(compiled(*fixed, sums[0]))

    return Prepared(call, lambda: compiled(*fixed, jnp.copy(given.c)))


def ours(given: Operands) -> Prepared:
    """Scales arrive with rows fastest, as `per_channel_cast_to_fp8` writes them in the same program: `.T` is free."""
    import jax.numpy as jnp

    import jax_deepgemm

    def fp8_gemm_nt(a, a_scale_t, b, b_scale_t, c):
        return jax_deepgemm.fp8_gemm_nt((a, a_scale_t.T), (b, b_scale_t.T), c=c, out_dtype=jnp.float32, recipe=RECIPE)

    a, a_scale, b, b_scale, _ = given
    return accumulating(fp8_gemm_nt, given, a, peers.transposed(a_scale), b, peers.transposed(b_scale))


def xla(given: Operands) -> Prepared:
    """What a JAX user writes without us: both dequantised to BF16, a dot, a sum."""
    import jax
    import jax.numpy as jnp

    def dequantised(data, scale):
        wide = jnp.repeat(scale, 128, axis=1)[:, : data.shape[1]]
        return (data.astype(jnp.float32) * wide).astype(jnp.bfloat16)

    def dequantise_and_dot(a, a_scale, b, b_scale, c):
        dimensions = (((1,), (1,)), ((), ()))
        left, right = dequantised(a, a_scale), dequantised(b, b_scale)
        return c + jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)

    return accumulating(dequantise_and_dot, given, *given[:4])


def deep_gemm_call(a: Any, a_scale: Any, b: Any, b_scale: Any) -> Callable[[Any], Any]:
    """Scales as DeepGEMM's kernel reads them, rows fastest."""
    import deep_gemm

    def launch(c: Any) -> Any:
        deep_gemm.fp8_gemm_nt((a, a_scale), (b, b_scale), c, c=c, recipe=(1, 1, 128))
        return c

    return launch


def deep_gemm(given: Operands) -> Prepared:
    import torch

    a, a_scale, b, b_scale, c = map(peers.to_torch, given)
    launch = deep_gemm_call(a, peers.m_fastest(a_scale), b, peers.m_fastest(b_scale))
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


def cublaslt(given: Operands) -> Prepared:
    """Neither block scales nor a sum: one scale of 1 for each operand, and the result overwritten."""
    import torch

    a, b = peers.to_torch(given.a), peers.to_torch(given.b)
    one = torch.ones((), dtype=torch.float32, device="cuda")
    return peers.torch_prepared(
        functools.partial(
            torch._scaled_mm, a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.float32, use_fast_accum=True
        )
    )


def warm_deep_gemm(case: Gemm) -> None:
    """Makes DeepGEMM compile its kernel of this case: any values do."""
    import torch

    def operand(rows):
        data = torch.zeros((rows, case.k), dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
        return data, peers.m_fastest(torch.ones((rows, -(-case.k // 128)), dtype=torch.float32, device="cuda"))

    deep_gemm_call(*operand(case.m), *operand(case.n))(torch.zeros((case.m, case.n), device="cuda"))
    torch.cuda.synchronize()


SUITE = Suite(
    op="fp8_gemm_nt, 1D1D",
    cases=WGRAD,
    operands=operands,
    flops=dense.flops,
    moved_bytes=moved_bytes,
    checker=checker,
    ours=ours,
    peers=(
        Peer("deep_gemm", deep_gemm, kernel="fp8_gemm", alone=True),
        Peer("cublaslt", cublaslt, checked=False, alone=True),
        Peer("xla", xla),
    ),
    peak_operands=dense.SUITE.peak_operands,
    warm=warm_deep_gemm,
    groups=(("all", lambda row: True),),
)
