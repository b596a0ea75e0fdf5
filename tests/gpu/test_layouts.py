"""The GEMM of operands in every layout, by both recipes, against float64. Results are written over NaN."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jax_deepgemm import per_block_cast_to_fp8, per_channel_cast_to_fp8, per_token_cast_to_fp8
from tests.gpu.native import native
from tests.gpu.problems import problem, same_bits
from tests.helpers import GEMMS, ROWS, assert_close, laid_out, operands, oracle

pytestmark = pytest.mark.gpu

F32 = jnp.float32
LAYOUTS = pytest.mark.parametrize("layout", ("nn", "tn", "tt"))
# The first and the last end inside tiles and scale blocks, the second has one row, the third a short K.
SIZES = pytest.mark.parametrize(
    "m, n, k", [(77, 576, 1040), (1, 2112, 144), (129, 24, 16), (16, 264, 7168), (300, 616, 400), (1000, 2112, 1040)]
)


@SIZES
@LAYOUTS
def test_against_float64(layout, m, n, k):
    p = problem(m, n, k)
    a, b = laid_out(layout, p.a, p.b)
    gemm = GEMMS[layout]
    run = native(lambda a, b: (gemm(a, b), gemm(a, b, out_dtype=F32)), a, b, calls=2)
    for d in run(a, b):
        p.check(d)


@LAYOUTS
def test_it_is_the_product_of_operands_transposed_beforehand(layout):
    p = problem(77, 576, 1040)
    wanted = native(GEMMS["nt"], p.a, p.b)(p.a, p.b)
    a, b = laid_out(layout, p.a, p.b)
    assert same_bits(native(GEMMS[layout], a, b)(a, b), wanted)


@LAYOUTS
def test_c_is_added(layout):
    p = problem(77, 576, 1040)
    a, b = laid_out(layout, p.a, p.b)
    c, wide = p.c(jnp.bfloat16), p.c(F32)
    gemm = GEMMS[layout]

    def both(a, b, c, wide):
        return gemm(a, b, c=c), gemm(a, b, c=wide, out_dtype=F32)

    narrow_d, wide_d = native(both, a, b, c, wide, calls=2)(a, b, c, wide)
    p.check(narrow_d, c)
    p.check(wide_d, wide)


@LAYOUTS
def test_ue8m0_scales(layout):
    p = problem(300, 616, 1040, use_ue8m0=True)
    a, b = laid_out(layout, p.a, p.b)
    p.check(native(GEMMS[layout], a, b)(a, b))


@pytest.mark.parametrize("m, n, k", [(77, 576, 1040), (1, 24, 16), (300, 616, 400)])
@pytest.mark.parametrize("layout", GEMMS)
def test_both_operands_scaled_by_rows(layout, m, n, k):
    a, b = operands(m, n, k, recipe=ROWS)
    wanted = oracle(a, b, recipe=ROWS)
    a, b = laid_out(layout, a, b)
    gemm = jax.jit(lambda a, b: (GEMMS[layout](a, b, recipe=ROWS), GEMMS[layout](a, b, recipe=ROWS, out_dtype=F32)))
    for d in gemm(a, b):
        assert_close(d, wanted)


def test_operands_cast_in_the_same_jit():
    """`x.T @ w` of arrays that the jit quantises."""
    x, w = (jax.random.normal(jax.random.key(n), (400, n), jnp.bfloat16) for n in (300, 616))

    def product(x, w):
        a = per_channel_cast_to_fp8(x)  # data [M, K]
        b = per_block_cast_to_fp8(w)  # data [K, N]
        return GEMMS["nn"](a, b)

    run = native(product, x, w, calls=3)  # the casts are kernels too
    a, b = per_token_cast_to_fp8(x.T), jax.tree.map(jnp.transpose, per_block_cast_to_fp8(w))
    assert_close(run(x, w), oracle(a, b))
