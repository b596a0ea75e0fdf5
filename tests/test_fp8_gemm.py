from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import Quantized, fp8_gemm_nt
from tests.helpers import BOUNDS, assert_close, operands, oracle, relative_error

SIZES = [(1, 24, 16), (3, 128, 144), (77, 576, 128), (129, 64, 1040), (128, 256, 512), (32, 2112, 256)]


@pytest.mark.parametrize("out_dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("m, n, k", SIZES)
def test_against_float64(m, n, k, out_dtype):
    a, b = operands(m, n, k)
    d = fp8_gemm_nt(a, b, out_dtype=out_dtype)
    assert d.dtype == out_dtype
    assert_close(d, oracle(a, b))


@pytest.mark.parametrize("out_dtype", [jnp.bfloat16, jnp.float32])
def test_c_is_added(out_dtype):
    a, b = operands(40, 128, 256)
    c = (100 * jax.random.normal(jax.random.key(5), (40, 128))).astype(out_dtype)
    assert_close(fp8_gemm_nt(a, b, c=c, out_dtype=out_dtype), oracle(a, b, c))


def test_ue8m0_scales():
    a, b = operands(40, 136, 384, use_ue8m0=True)
    assert a.scale.dtype == b.scale.dtype == jnp.float8_e8m0fnu
    assert_close(fp8_gemm_nt(a, b), oracle(a, b))


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


@pytest.mark.parametrize("m, n, k", [(0, 64, 128), (16, 0, 128), (0, 0, 0)])
def test_empty(m, n, k):
    assert fp8_gemm_nt(*operands(m, n, k)).shape == (m, n)


def test_empty_k_gives_zeros_or_c():
    a, b = operands(16, 64, 0)
    c = jnp.ones((16, 64), jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(fp8_gemm_nt(a, b)), np.zeros((16, 64)))
    np.testing.assert_array_equal(np.asarray(fp8_gemm_nt(a, b, c=c)), np.asarray(c))


@pytest.mark.parametrize("out_dtype", [jnp.bfloat16, jnp.float32])
def test_the_bound_catches_wrong_results(out_dtype):
    a, b = operands(128, 256, 512)
    wanted = oracle(a, b)
    unscaled = oracle((a.data, jnp.ones_like(a.scale)), b)
    one_block_off = oracle((a.data, jnp.roll(a.scale, 1, axis=1)), b)
    one_tile_zero = wanted.copy()
    one_tile_zero[-1:, -8:] = 0
    for wrong in (np.zeros_like(wanted), np.roll(wanted, 1, axis=1), unscaled, one_block_off, one_tile_zero):
        assert relative_error(wrong, wanted) > BOUNDS[jnp.dtype(out_dtype)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_stay_in_their_rows_and_columns(bad):
    a, b = operands(70, 384, 256)
    for place, rows, columns in (
        ("a", slice(5, 6), slice(None)),
        ("b", slice(None), slice(200, 201)),
        ("a.scale", slice(5, 6), slice(None)),
        ("b.scale", slice(None), slice(128, 256)),
    ):
        changed = {"a": a, "b": b}
        old = changed[place[0]]
        if place.endswith("scale"):
            row = 5 if place[0] == "a" else 1
            changed[place[0]] = old._replace(scale=old.scale.at[row, 1].set(bad))
        else:
            if np.isinf(bad):
                continue  # float8_e4m3fn has no infinity
            row = 5 if place[0] == "a" else 200
            changed[place[0]] = old._replace(data=old.data.at[row, 130].set(bad))
        d = np.asarray(fp8_gemm_nt(**changed)).astype(np.float32)
        wanted = np.ones(d.shape, bool)
        wanted[rows, columns] = False
        np.testing.assert_array_equal(np.isfinite(d), wanted, err_msg=place)


A, B = (Quantized(jnp.zeros((r, 256), jnp.float8_e4m3fn), jnp.zeros((s, 2))) for r, s in ((40, 40), (136, 2)))


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


def test_gradients_are_refused_clearly():
    with pytest.raises(NotImplementedError, match=r"fp8_gemm_nt cannot be differentiated: .*custom_vjp"):
        jax.grad(lambda s: fp8_gemm_nt((A.data, s), B).astype(jnp.float32).sum())(A.scale)


def test_example_in_the_docstring():
    import doctest

    import jax_deepgemm

    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(fp8_gemm_nt, "fp8_gemm_nt", globs=vars(jax_deepgemm) | {"jnp": jnp}):
        runner.run(test)
    assert runner.summarize(verbose=False).attempted and not runner.failures
