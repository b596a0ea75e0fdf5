"""Suite `moe_mlp`: a block of experts in FP8 beside its two grouped GEMMs alone, of operands that are ready."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import dense, host
from benchmarks.peers import Peer, Prepared, jax_call
from benchmarks.preparation import shared
from benchmarks.suite import Suite
from tests.cases import MOE_MLPS, MoeMlp

ERROR_BOUND = 8e-2  # of dequantised weights; activations are rounded to three bits of mantissa, twice: 3.7e-2
CHECKED_TOKENS = 2


class Operands(NamedTuple):
    """x [T, H] in BF16, experts and weights [T, k], weights (data, scale) in FP8."""

    x: Any
    topk_idx: Any
    topk_weights: Any
    w13: Any
    w2: Any


def flops(case: MoeMlp) -> float:
    return 2.0 * case.m * case.top_k * 3 * case.n * case.k


def moved_bytes(case: MoeMlp) -> float:
    """All weights in FP8, tokens read and written in BF16."""
    return 3.0 * case.groups * case.n * case.k + 4.0 * case.m * case.k


@shared
def weights(groups: int, rows: int, columns: int) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def make(key):
        data = jax.random.normal(key, (groups, rows, columns), jnp.bfloat16) * 100
        scale = jnp.full((groups, rows // 128, columns // 128), 0.01 * columns**-0.5)
        return data.astype(jnp.float8_e4m3fn), scale

    return make(jax.random.key(rows))


def operands(case: MoeMlp) -> Operands:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def make(key):
        of_x, of_idx, of_weights = jax.random.split(key, 3)
        x = jax.random.normal(of_x, (case.m, case.k), jnp.bfloat16)
        scores = jax.random.uniform(of_idx, (case.m, case.groups))
        share = jax.nn.softmax(jax.random.normal(of_weights, (case.m, case.top_k)))
        return x, jax.lax.top_k(scores, case.top_k)[1], share

    tokens: Any = make(jax.random.key(case.m))
    shapes = ((2 * case.n, case.k), (case.k, case.n))
    return Operands(*tokens, *(weights(case.groups, *shape) for shape in shapes))


def checker(case: MoeMlp, given: Operands) -> Callable[[Any], str | None]:
    """A few tokens in full."""
    tokens = np.linspace(0, case.m - 1, CHECKED_TOKENS).astype(int)
    expected = np.stack([one(case, given, t) for t in tokens])

    def check(result: Any) -> str | None:
        error = dense.relative(host.float32(result[tokens]), expected)
        return None if error < ERROR_BOUND else f"error {error:.2e}, must be below {ERROR_BOUND:.0e}"

    return check


def one(case: MoeMlp, given: Operands, token: int) -> np.ndarray:
    """A token's result, in float32 on the host."""
    x, total = host.float32(given.x[token]), np.zeros(case.k, np.float32)
    for expert, share in zip(
        np.asarray(given.topk_idx[token]), np.asarray(given.topk_weights[token], np.float32), strict=True
    ):
        w13, w2 = (dense.dequantised(data[expert], scale[expert], 128) for data, scale in (given.w13, given.w2))
        gate, up = np.split(w13 @ x, 2)
        total += share * (w2 @ (gate / (1 + np.exp(-gate)) * up))
    return total


def ours(given: Operands) -> Prepared:
    import jax_deepgemm

    return jax_call(jax_deepgemm.moe_mlp, *given)


def grouped_gemms(given: Operands) -> Prepared:
    """The two products alone: activations sorted, quantised and laid out beforehand."""
    import jax
    import jax.numpy as jnp

    import jax_deepgemm
    from jax_deepgemm.ops.moe_permute import sorted_by_expert

    rows, inner = given.topk_idx.size, given.w2[0].shape[2]
    ends = jax.jit(lambda i: sorted_by_expert(i, given.w2[0].shape[0]).group_ends)(given.topk_idx)

    @jax.jit
    def activations(key):
        sizes = (given.x.shape[1], inner)
        casts = [jax_deepgemm.per_token_cast_to_fp8(jax.random.normal(key, (rows, s), jnp.bfloat16)) for s in sizes]
        return [(data, scale.T) for data, scale in casts]

    def products(first, second, w13, w2, ends):
        return [
            jax_deepgemm.m_grouped_fp8_gemm_nt_contiguous((data, scale.T), w, ends, use_psum_layout=True)
            for (data, scale), w in ((first, w13), (second, w2))
        ]

    return jax_call(products, *activations(jax.random.key(0)), given.w13, given.w2, ends)


SUITE = Suite(
    op="moe_mlp",
    cases=MOE_MLPS,
    operands=operands,
    flops=flops,
    moved_bytes=moved_bytes,
    checker=checker,
    ours=ours,
    peers=(Peer("grouped_gemms", grouped_gemms, checked=False),),
    peak_operands=dense.SUITE.peak_operands,
    warm=lambda case: None,
    groups=(("all", lambda row: True),),
    one_kernel=False,
)
