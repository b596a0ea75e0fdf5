"""References compiled as users compile them: for the other tests XLA leaves out what LLVM optimises (conftest.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_deepgemm as dg
from tests import bf16, fp4, k_grouped, m_grouped, moe
from tests.deviceless import OPTIMISED
from tests.helpers import BLOCKS, ROWS, assert_close, operands, oracle, quantised, relative_error

M, N, K = 77, 136, 272


def optimised(function: Any, *args: Any) -> Any:
    return jax.jit(function, compiler_options=OPTIMISED)(*args)


@pytest.mark.parametrize("use_ue8m0", [False, True])
def test_casts_give_the_same_bits(use_ue8m0: bool) -> None:
    """As NumPy, and so as in any other program, and as the kernels."""
    x = np.asarray(moe.normal(0, M, K), np.float32)
    names = ("per_token", "per_block", "per_channel")

    def casts(x: jax.Array) -> list[Any]:
        to_fp8 = [getattr(dg, f"{name}_cast_to_fp8")(x, use_ue8m0=use_ue8m0) for name in names]
        return to_fp8 + [dg.per_token_cast_to_fp4(x, use_ue8m0=use_ue8m0, gran_k=gran_k) for gran_k in (32, 128)]

    to_fp8 = [quantised(v, block, use_ue8m0) for v, block in ((x, (1, 128)), (x, (128, 128)), (x.T, (1, 128)))]
    wanted = [*to_fp8, *(fp4.cast(x, gran_k, use_ue8m0) for gran_k in (32, 128))]
    for got, right in zip(jax.tree.leaves(optimised(casts, x)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.asarray(got).view(np.uint8), np.asarray(right).view(np.uint8))


def dense() -> Iterator[tuple[Any, Any, np.ndarray]]:
    """Functions, arguments, and results in float64."""
    for recipe in (BLOCKS, ROWS):
        a, b = operands(M, N, K, recipe=recipe)
        yield lambda a, b, recipe=recipe: dg.fp8_gemm_nt(a, b, recipe=recipe), (a, b), oracle(a, b, recipe=recipe)
    a, b = fp4.operands(M, N, K)
    yield dg.fp8_fp4_gemm_nt, (a, b), fp4.oracle(a, b)
    a, b = bf16.matrices("nt", M, N, K)
    yield dg.bf16_gemm_nt, (a, b), bf16.oracle("nt", a, b)


def grouped() -> Iterator[tuple[Any, Any, np.ndarray]]:
    index = m_grouped.index_of((20, 0, 50), 7)
    a, b = m_grouped.operands(M, N, K, 3)
    wanted = m_grouped.oracle(*m_grouped.dequantised(a, b), index)
    yield dg.m_grouped_fp8_gemm_nt_contiguous, (a, b, jnp.asarray(index)), wanted
    a, b = k_grouped.matrices(24, 40, 300)
    ks = (100, 0, 60, 90)
    yield dg.k_grouped_bf16_gemm_tn_contiguous, (a, b, k_grouped.sizes(ks)), k_grouped.oracle(a, b, ks)


@pytest.mark.parametrize("products", [dense, grouped])
def test_products_against_float64(products: Any) -> None:
    for function, args, wanted in products():
        assert_close(optimised(function, *args), wanted)


@pytest.mark.parametrize("recipe", [None, moe.FP8])
def test_experts_and_their_gradients(recipe: Any) -> None:
    idx, weights = moe.routed(0, 40, 2, 3)
    shapes = ((40, 48), (3, 64, 48), (3, 48, 32))
    x, w13, w2 = (jnp.asarray(moe.normal(i, *s) / 16, jnp.bfloat16) for i, s in enumerate(shapes))

    def step(block: Any) -> Any:
        return lambda *args: moe.step_of(lambda x, w13, w2: block(x, idx, weights, w13, w2), *args)

    got = optimised(step(lambda *args: dg.moe_mlp(*args, recipe=recipe)), x, w13, w2, x)
    wanted = jax.jit(step(moe.moe_mlp))(*(v.astype(jnp.float32) for v in (x, w13, w2, x)))
    for g, w in zip(got, wanted, strict=True):
        assert relative_error(g, np.asarray(w).astype(np.float64)) < (1e-2 if recipe is None else 0.1)
