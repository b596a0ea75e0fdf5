from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import (
    Quantized,
    fp8_gemm_nn,
    fp8_gemm_nt,
    fp8_gemm_tn,
    fp8_gemm_tt,
    per_channel_cast_to_fp8,
)
from tests.helpers import BOUNDS, GEMMS, RECIPES, ROWS, assert_close, laid_out, operands, oracle, relative_error

SIZES = [(1, 24, 16), (3, 128, 144), (77, 576, 128), (129, 64, 1040), (128, 256, 512), (32, 2112, 256)]


LAYOUTS = pytest.mark.parametrize("layout", GEMMS)
OUT_DTYPES = pytest.mark.parametrize("out_dtype", [jnp.bfloat16, jnp.float32])


@LAYOUTS
@RECIPES
@OUT_DTYPES
@pytest.mark.parametrize("m, n, k", SIZES)
def test_against_float64(m, n, k, out_dtype, recipe, layout):
    a, b = operands(m, n, k, recipe=recipe)
    d = GEMMS[layout](*laid_out(layout, a, b), out_dtype=out_dtype, recipe=recipe)
    assert d.dtype == out_dtype
    assert_close(d, oracle(a, b, recipe=recipe))


@LAYOUTS
@RECIPES
@OUT_DTYPES
def test_c_is_added(out_dtype, recipe, layout):
    a, b = operands(40, 128, 272, recipe=recipe)
    c = (100 * jax.random.normal(jax.random.key(5), (40, 128))).astype(out_dtype)
    d = GEMMS[layout](*laid_out(layout, a, b), c=c, out_dtype=out_dtype, recipe=recipe)
    assert_close(d, oracle(a, b, c, recipe))


@LAYOUTS
@RECIPES
def test_ue8m0_scales(recipe, layout):
    a, b = operands(40, 136, 384, use_ue8m0=True, recipe=recipe)
    assert a.scale.dtype == b.scale.dtype == jnp.float8_e8m0fnu
    assert_close(GEMMS[layout](*laid_out(layout, a, b), recipe=recipe), oracle(a, b, recipe=recipe))


def test_gradient_of_weights_from_the_transposing_cast():
    """Its K is the number of tokens; accumulated in place."""
    tokens = 272
    random = np.random.default_rng(0)
    dy, x = (jnp.asarray(random.standard_normal((tokens, width)), jnp.bfloat16) for width in (40, 24))
    total = jnp.ones((40, 24))
    a, b = per_channel_cast_to_fp8(dy), per_channel_cast_to_fp8(x)
    d = fp8_gemm_nt(a, b, c=total, out_dtype=jnp.float32, recipe=ROWS)
    assert_close(d, oracle(a, b, total, ROWS))
    unquantised = np.asarray(dy, np.float64).T @ np.asarray(x, np.float64) + 1
    assert 1e-2 < relative_error(d, unquantised) < 5e-2


def test_tuples_numpy_and_jit_give_the_same_bits():
    a, b = operands(40, 128, 256)
    wanted = np.asarray(fp8_gemm_nt(a, b))
    for got in (
        fp8_gemm_nt(tuple(a), tuple(b)),
        fp8_gemm_nt(tuple(map(np.asarray, a)), tuple(map(np.asarray, b))),
        fp8_gemm_nt(a, b, recipe=((1, 128), (128, 128))),
        jax.jit(fp8_gemm_nt)(a, b),
    ):
        np.testing.assert_array_equal(np.asarray(got), wanted)


@LAYOUTS
@RECIPES
@pytest.mark.parametrize("m, n, k", [(0, 64, 128), (16, 0, 128), (0, 0, 0)])
def test_empty(m, n, k, recipe, layout):
    a, b = laid_out(layout, *operands(m, n, k, recipe=recipe))
    assert GEMMS[layout](a, b, recipe=recipe).shape == (m, n)


@LAYOUTS
@RECIPES
def test_empty_k_gives_zeros_or_c(recipe, layout):
    a, b = laid_out(layout, *operands(16, 64, 0, recipe=recipe))
    c = jnp.ones((16, 64), jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(GEMMS[layout](a, b, recipe=recipe)), np.zeros((16, 64)))
    np.testing.assert_array_equal(np.asarray(GEMMS[layout](a, b, c=c, recipe=recipe)), np.asarray(c))


@RECIPES
@OUT_DTYPES
def test_the_bound_catches_wrong_results(out_dtype, recipe):
    a, b = operands(128, 256, 512, recipe=recipe)
    wanted = oracle(a, b, recipe=recipe)
    one_tile_zero = wanted.copy()
    one_tile_zero[-1:, -8:] = 0
    wrong = {
        "zero": np.zeros_like(wanted),
        "shifted": np.roll(wanted, 1, axis=1),
        "unscaled a": oracle((a.data, jnp.ones_like(a.scale)), b, recipe=recipe),
        "unscaled b": oracle(a, (b.data, jnp.ones_like(b.scale)), recipe=recipe),
        "scales of a one block of K off": oracle((a.data, jnp.roll(a.scale, 1, axis=1)), b, recipe=recipe),
        "scales of b one block of K off": oracle(a, (b.data, jnp.roll(b.scale, 1, axis=1)), recipe=recipe),
        "scales of b one row off": oracle(a, (b.data, jnp.roll(b.scale, 1, axis=0)), recipe=recipe),
        "one tile zero": one_tile_zero,
    }
    errors = {name: relative_error(d, wanted) for name, d in wrong.items()}
    assert min(errors.values()) > BOUNDS[jnp.dtype(out_dtype)], errors


@LAYOUTS
@RECIPES
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_stay_in_their_rows_and_columns(bad, recipe, layout):
    a, b = operands(70, 384, 256, recipe=recipe)
    row = 200 // recipe[1][0]  # of b's scales
    shared = slice(row * recipe[1][0], (row + 1) * recipe[1][0])
    spoiled = {
        "a.scale": ((a._replace(scale=a.scale.at[5, 1].set(bad)), b), np.s_[5, :]),
        "b.scale": ((a, b._replace(scale=b.scale.at[row, 1].set(bad))), np.s_[:, shared]),
    }
    if np.isnan(bad):  # float8_e4m3fn has no infinity
        spoiled["a"] = (a._replace(data=a.data.at[5, 130].set(bad)), b), np.s_[5, :]
        spoiled["b"] = (a, b._replace(data=b.data.at[200, 130].set(bad))), np.s_[:, 200]
    for place, (pair, where) in spoiled.items():
        d = np.asarray(GEMMS[layout](*laid_out(layout, *pair), recipe=recipe)).astype(np.float32)
        wanted = np.ones(d.shape, bool)
        wanted[where] = False
        np.testing.assert_array_equal(np.isfinite(d), wanted, err_msg=place)


A, B = (Quantized(jnp.zeros((r, 256), jnp.float8_e4m3fn), jnp.zeros((s, 2))) for r, s in ((40, 40), (136, 2)))


A_T, B_T = laid_out("tn", A, B)


def changed(x: Quantized, **arrays: object) -> Quantized:
    return x._replace(**arrays)


BAD = {
    "dtype of a": (
        lambda: fp8_gemm_nt(changed(A, data=jnp.zeros((4096, 7168), jnp.bfloat16)), B),
        TypeError,
        "`a` must be float8_e4m3fn of shape (M, K), got bfloat16[4096,7168]",
    ),
    "e5m2": (
        lambda: fp8_gemm_nt(A, changed(B, data=B.data.astype(jnp.float8_e5m2))),
        TypeError,
        "`b` must be float8_e4m3fn of shape (N, K), got float8_e5m2[136,256]",
    ),
    "no pair": (
        lambda: fp8_gemm_nt(A.data, B),
        TypeError,
        "`a` must be a (data, scale) pair of arrays, got float8_e4m3fn[40,256]",
    ),
    "list": (lambda: fp8_gemm_nt(A, list(B)), TypeError, "`b` must be a (data, scale) pair of arrays, got list"),
    "triple": (
        lambda: fp8_gemm_nt((*A, None), B),
        TypeError,
        "`a` must be a (data, scale) pair of arrays, got a tuple of 3",
    ),
    "list for data": (
        lambda: fp8_gemm_nt(([1.0], A.scale), B),
        TypeError,
        "`a` must be float8_e4m3fn of shape (M, K), got list",
    ),
    "number for scale": (
        lambda: fp8_gemm_nt((A.data, 1.0), B),
        TypeError,
        "`a.scale` must be float32 or float8_e8m0fnu of shape (40, 2), got float",
    ),
    "rank": (
        lambda: fp8_gemm_nt(changed(A, data=A.data[0]), B),
        ValueError,
        "`a` must be float8_e4m3fn of shape (M, K), got float8_e4m3fn[256]",
    ),
    "K mismatch": (
        lambda: fp8_gemm_nt(A, (B.data[:, :128], B.scale[:, :1])),
        ValueError,
        "`b` must be of shape (N, 256) with the K of `a`, got float8_e4m3fn[136,128]",
    ),
    "scale columns off by one": (
        lambda: fp8_gemm_nt(changed(A, scale=A.scale[:, :1]), B),
        ValueError,
        "`a.scale` must be float32 or float8_e8m0fnu of shape (40, 2), got float32[40,1]",
    ),
    "scale rows off by one": (
        lambda: fp8_gemm_nt(A, changed(B, scale=jnp.zeros((3, 2)))),
        ValueError,
        "`b.scale` must be float32 or float8_e8m0fnu of shape (2, 2), got float32[3,2]",
    ),
    "scale transposed": (
        lambda: fp8_gemm_nt(changed(A, scale=A.scale.T), B),
        ValueError,
        "`a.scale` must be float32 or float8_e8m0fnu of shape (40, 2), got float32[2,40]",
    ),
    "dtype of scale": (
        lambda: fp8_gemm_nt(changed(A, scale=A.scale.astype(jnp.int32)), B),
        TypeError,
        "`a.scale` must be float32 or float8_e8m0fnu of shape (40, 2), got int32[40,2]",
    ),
    "recipe": (
        lambda: fp8_gemm_nt(A, B, recipe=((1, 32), (1, 32))),
        ValueError,
        "`recipe` must be ((1, 128), (128, 128)) or ((1, 128), (1, 128)) or None, got ((1, 32), (1, 32))",
    ),
    "recipe as DeepGEMM writes it": (
        lambda: fp8_gemm_tn(A_T, B_T, recipe=(1, 1, 128)),
        ValueError,
        "`recipe` must be ((1, 128), (128, 128)) or ((1, 128), (1, 128)) or None, got (1, 1, 128)",
    ),
    "scale for blocks where it is for rows": (
        lambda: fp8_gemm_nt(A, B, recipe=ROWS),
        ValueError,
        "`b.scale` must be float32 or float8_e8m0fnu of shape (136, 2), got float32[2,2]",
    ),
    "scale for rows where it is for blocks": (
        lambda: fp8_gemm_nt(A, changed(B, scale=jnp.zeros((136, 2)))),
        ValueError,
        "`b.scale` must be float32 or float8_e8m0fnu of shape (2, 2), got float32[136,2]",
    ),
    "nn, dtype of b": (
        lambda: fp8_gemm_nn(A, changed(B_T, data=jnp.zeros((256, 136)))),
        TypeError,
        "`b` must be float8_e4m3fn of shape (K, N), got float32[256,136]",
    ),
    "nn, b as for nt": (
        lambda: fp8_gemm_nn(A, B),
        ValueError,
        "`b` must be of shape (256, N) with the K of `a`, got float8_e4m3fn[136,256]",
    ),
    "nn, scale of b for rows": (
        lambda: fp8_gemm_nn(A, B_T, recipe=ROWS),
        ValueError,
        "`b.scale` must be float32 or float8_e8m0fnu of shape (2, 136), got float32[2,2]",
    ),
    "nn, N not of 16 bytes": (
        lambda: fp8_gemm_nn(A, (B_T.data[:, :132], B_T.scale)),
        ValueError,
        "`b` must be of shape (K, N) with N a multiple of 8 for bfloat16 out, got float8_e4m3fn[256,132]",
    ),
    "tn, rank of a": (
        lambda: fp8_gemm_tn(changed(A_T, data=A_T.data[0]), B_T),
        ValueError,
        "`a` must be float8_e4m3fn of shape (K, M), got float8_e4m3fn[40]",
    ),
    "tn, scale of a not transposed": (
        lambda: fp8_gemm_tn(changed(A_T, scale=A.scale), B_T),
        ValueError,
        "`a.scale` must be float32 or float8_e8m0fnu of shape (2, 40), got float32[40,2]",
    ),
    "tn, K not of 16 bytes": (
        lambda: fp8_gemm_tn((A_T.data[:24], A_T.scale[:1]), (B_T.data[:24], B_T.scale[:1])),
        ValueError,
        "`a` must be of shape (K, M) with K a multiple of 16, got float8_e4m3fn[24,40]",
    ),
    "tt, a as for nt": (
        lambda: fp8_gemm_tt((A.data, jnp.zeros((1, 256))), B),
        ValueError,
        "`b` must be of shape (N, 40) with the K of `a`, got float8_e4m3fn[136,256]",
    ),
    "tt, shape of c": (
        lambda: fp8_gemm_tt(A_T, B, c=jnp.zeros((136, 40), jnp.bfloat16)),
        ValueError,
        "`c` must be bfloat16 of shape (40, 136), got bfloat16[136,40]",
    ),
    "shape of c": (
        lambda: fp8_gemm_nt(A, B, c=jnp.zeros((40, 128), jnp.bfloat16)),
        ValueError,
        "`c` must be bfloat16 of shape (40, 136), got bfloat16[40,128]",
    ),
    "dtype of c": (
        lambda: fp8_gemm_nt(A, B, c=jnp.zeros((40, 136))),
        TypeError,
        "`c` must be bfloat16 of shape (40, 136), got float32[40,136]",
    ),
    "out_dtype": (
        lambda: fp8_gemm_nt(A, B, out_dtype=jnp.float16),
        TypeError,
        "`out_dtype` must be bfloat16 or float32, got float16",
    ),
    "no out_dtype": (
        lambda: fp8_gemm_nt(A, B, out_dtype="wide"),
        TypeError,
        "`out_dtype` must be bfloat16 or float32, got 'wide'",
    ),
    "K not of 16 bytes": (
        lambda: fp8_gemm_nt((A.data[:, :24], A.scale[:, :1]), (B.data[:, :24], B.scale[:, :1])),
        ValueError,
        "`a` must be of shape (M, K) with K a multiple of 16, got float8_e4m3fn[40,24]",
    ),
    "N not of 16 bytes": (
        lambda: fp8_gemm_nt(A, (B.data[:132], B.scale)),
        ValueError,
        "`b` must be of shape (N, K) with N a multiple of 8 for bfloat16 out, got float8_e4m3fn[132,256]",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("traced", [False, True])
def test_bad_input(name, traced):
    call, error, message = BAD[name]
    with pytest.raises(error) as caught:
        jax.eval_shape(call) if traced else call()
    assert str(caught.value) == message


def test_n_of_four_is_enough_for_float32():
    assert fp8_gemm_nt(A, (B.data[:132], B.scale), out_dtype=jnp.float32).shape == (40, 132)


def test_tracer_of_the_wrong_type():
    with pytest.raises(TypeError, match=r"`a` must be float8_e4m3fn of shape \(M, K\), got float32\[40,256\]"):
        jax.jit(lambda x: fp8_gemm_nt((x, A.scale), B))(jnp.zeros((40, 256)))


@LAYOUTS
@RECIPES
def test_gradients_are_refused_clearly(recipe, layout):
    a, b = laid_out(layout, *operands(16, 128, 128, recipe=recipe))
    with pytest.raises(NotImplementedError, match=r"fp8_gemm_nt cannot be differentiated: .*custom_vjp"):
        jax.grad(lambda s: GEMMS[layout]((a.data, s), b, recipe=recipe).astype(jnp.float32).sum())(a.scale)
