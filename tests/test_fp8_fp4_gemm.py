from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import GemmConfig, Quantized, fp8_fp4_gemm_nn, fp8_fp4_gemm_nt, fp8_fp4_gemm_tt, per_token_cast_to_fp4
from tests.fp4 import BY_32, BY_128, GEMMS, KINDS, VALUES, in_bytes, operands, oracle, weights
from tests.helpers import BOUNDS, assert_close, laid_out, relative_error

SIZES = [(1, 136, 16), (3, 24, 16), (3, 128, 144), (77, 576, 128), (129, 64, 1056), (128, 256, 512), (32, 2112, 256)]
LAYOUTS = pytest.mark.parametrize("layout", GEMMS)
OUT_DTYPES = pytest.mark.parametrize("out_dtype", [jnp.bfloat16, jnp.float32])
SCALES = pytest.mark.parametrize("use_ue8m0, recipe", KINDS.values(), ids=KINDS)
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["float4", "uint8"])


@LAYOUTS
@SCALES
@PACKED
@pytest.mark.parametrize("m, n, k", SIZES)
def test_against_float64(m, n, k, packed, use_ue8m0, recipe, layout):
    a, b = operands(m, n, k, use_ue8m0=use_ue8m0, recipe=recipe)
    given = laid_out(layout, a, b)
    given = given[0], in_bytes(given[1]) if packed else given[1]
    # Of so few results, rounded to bfloat16, one alone can exceed the bound.
    out_dtype = jnp.bfloat16 if m * n > 1000 else jnp.float32
    d = GEMMS[layout](*given, recipe=recipe, out_dtype=out_dtype)
    assert d.dtype == out_dtype
    assert_close(d, oracle(a, b, recipe=recipe))


@SCALES
@OUT_DTYPES
def test_c_is_added(out_dtype, use_ue8m0, recipe):
    a, b = operands(40, 128, 272, use_ue8m0=use_ue8m0, recipe=recipe)
    c = (100 * jax.random.normal(jax.random.key(5), (40, 128))).astype(out_dtype)
    d = fp8_fp4_gemm_nt(a, b, c=c, out_dtype=out_dtype, recipe=recipe)
    assert d.dtype == out_dtype
    assert_close(d, oracle(a, b, c, recipe))


def test_every_code_is_decoded_exactly():
    """A picks one value of B at a time."""
    codes = np.arange(16, dtype=np.uint8).reshape(1, 16).repeat(8, 0).repeat(8, 1)  # [8, 128]
    a = Quantized(jnp.eye(128).astype(jnp.float8_e4m3fn), jnp.ones((128, 1)))
    scale = np.array([[0x7F, 0x01, 0xFC, 0x80]] * 8, np.uint8)
    d = fp8_fp4_gemm_nt(a, weights(codes, scale), out_dtype=jnp.float32)
    wanted = VALUES[codes] * np.exp2(scale.astype(np.float64) - 127).repeat(32, 1)
    normal = np.abs(wanted.T) >= 2.0**-126
    np.testing.assert_array_equal(np.asarray(d)[normal], wanted.T[normal])


def test_ue8m0_scales_of_a_and_by_128():
    a, b = operands(40, 136, 384)
    rounded = a.scale.astype(jnp.float8_e8m0fnu)
    assert_close(fp8_fp4_gemm_nt((a.data, rounded), b), oracle((a.data, rounded), b))
    scale = b.scale[:, :3]
    assert_close(fp8_fp4_gemm_nt(a, (b.data, scale), recipe=BY_128), oracle(a, (b.data, scale), recipe=BY_128))


def test_weights_as_they_are_cast():
    x = jax.random.normal(jax.random.key(0), (128, 256))
    a, _ = operands(40, 8, 256)
    for use_ue8m0, recipe in KINDS.values():
        b = per_token_cast_to_fp4(x, use_ue8m0=use_ue8m0, gran_k=recipe[1][1])
        assert_close(fp8_fp4_gemm_nt(a, b, recipe=recipe), oracle(a, b, recipe=recipe))


def test_tuples_numpy_and_jit_give_the_same_bits():
    a, b = operands(40, 128, 256)
    wanted = np.asarray(fp8_fp4_gemm_nt(a, b))
    for got in (
        fp8_fp4_gemm_nt(tuple(a), tuple(b)),
        fp8_fp4_gemm_nt(tuple(map(np.asarray, a)), tuple(map(np.asarray, b))),
        fp8_fp4_gemm_nt(a, in_bytes(b)),
        fp8_fp4_gemm_nt(a, b, recipe=BY_32),
        jax.jit(fp8_fp4_gemm_nt)(a, b),
    ):
        np.testing.assert_array_equal(np.asarray(got), wanted)


@LAYOUTS
@SCALES
@pytest.mark.parametrize("m, n, k", [(0, 64, 128), (16, 0, 128), (0, 0, 0), (16, 64, 0)])
def test_empty(m, n, k, use_ue8m0, recipe, layout):
    a, b = laid_out(layout, *operands(m, n, k, use_ue8m0=use_ue8m0, recipe=recipe))
    d = GEMMS[layout](a, b, recipe=recipe)
    assert d.shape == (m, n) and not jnp.any(d)
    c = jnp.ones((m, n), jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(GEMMS[layout](a, b, c=c, recipe=recipe)), np.asarray(c))


@SCALES
@OUT_DTYPES
def test_the_bound_catches_wrong_results(out_dtype, use_ue8m0, recipe):
    a, b = operands(128, 256, 512, use_ue8m0=use_ue8m0, recipe=recipe)
    wanted = oracle(a, b, recipe=recipe)
    swapped = np.asarray(b.data).reshape(256, 256, 2)[..., ::-1].reshape(256, 512)
    one_tile_zero = wanted.copy()
    one_tile_zero[-8:, -8:] = 0
    wrong = {
        "zero": np.zeros_like(wanted),
        "shifted": np.roll(wanted, 1, axis=1),
        "unscaled b": oracle(a, (b.data, jnp.ones_like(b.scale)), recipe=recipe),
        "scales of b one block of K off": oracle(a, (b.data, jnp.roll(b.scale, 1, axis=1)), recipe=recipe),
        "scales of b one row off": oracle(a, (b.data, jnp.roll(b.scale, 1, axis=0)), recipe=recipe),
        "high half of a byte first": oracle(a, (swapped, b.scale), recipe=recipe),
        "one tile zero": one_tile_zero,
    }
    errors = {name: relative_error(d, wanted) for name, d in wrong.items()}
    assert min(errors.values()) > BOUNDS[jnp.dtype(out_dtype)], errors


@SCALES
def test_nan_stays_in_its_rows_and_columns(use_ue8m0, recipe):
    a, b = operands(70, 384, 256, use_ue8m0=use_ue8m0, recipe=recipe)
    spoiled = {
        "a": ((a._replace(data=a.data.at[5, 130].set(jnp.nan)), b), np.s_[5, :]),
        "a.scale": ((a._replace(scale=a.scale.at[5, 1].set(jnp.nan)), b), np.s_[5, :]),
        "b.scale": ((a, b._replace(scale=b.scale.at[200, 1].set(jnp.nan))), np.s_[:, 200]),
    }
    for place, (pair, where) in spoiled.items():
        d = np.asarray(fp8_fp4_gemm_nt(*pair, recipe=recipe)).astype(np.float32)
        wanted = np.ones(d.shape, bool)
        wanted[where] = False
        np.testing.assert_array_equal(np.isfinite(d), wanted, err_msg=place)


A = Quantized(jnp.zeros((40, 256), jnp.float8_e4m3fn), jnp.zeros((40, 2)))
B = Quantized(jnp.zeros((136, 256), jnp.float4_e2m1fn), jnp.zeros((136, 8)))
BAD = {
    "dtype of a": (
        lambda: fp8_fp4_gemm_nt((A.data.astype(jnp.bfloat16), A.scale), B),
        TypeError,
        "`a` must be float8_e4m3fn of shape (M, K), got bfloat16[40,256]",
    ),
    "dtype of b": (
        lambda: fp8_fp4_gemm_nt(A, (B.data.astype(jnp.float8_e4m3fn), B.scale)),
        TypeError,
        "`b` must be float4_e2m1fn or uint8 of shape (N, K), got float8_e4m3fn[136,256]",
    ),
    "no pair": (
        lambda: fp8_fp4_gemm_nt(A, B.data),
        TypeError,
        "`b` must be a (data, scale) pair of arrays, got float4_e2m1fn[136,256]",
    ),
    "scale by 128": (
        lambda: fp8_fp4_gemm_nt(A, (B.data, B.scale[:, :2])),
        ValueError,
        "`b.scale` must be float32 or float8_e8m0fnu of shape (136, 8), got float32[136,2]",
    ),
    "scale by 32 where it is by 128": (
        lambda: fp8_fp4_gemm_nt(A, B, recipe=BY_128),
        ValueError,
        "`b.scale` must be float32 or float8_e8m0fnu of shape (136, 2), got float32[136,8]",
    ),
    "scale of bytes": (
        lambda: fp8_fp4_gemm_nt(A, (jnp.zeros((136, 256), jnp.uint8), B.scale)),
        ValueError,
        "`b.scale` must be float32 or float8_e8m0fnu of shape (136, 16), got float32[136,8]",
    ),
    "dtype of scale": (
        lambda: fp8_fp4_gemm_nt(A, (B.data, B.scale.astype(jnp.uint8))),
        TypeError,
        "`b.scale` must be float32 or float8_e8m0fnu of shape (136, 8), got uint8[136,8]",
    ),
    "K mismatch": (
        lambda: fp8_fp4_gemm_nt(A, (B.data[:, :128], B.scale[:, :4])),
        ValueError,
        "`b` must be of 136, 256 values with the K of `a`, got float4_e2m1fn[136,128]",
    ),
    "nn, K mismatch": (
        lambda: fp8_fp4_gemm_nn(A, (B.data, jnp.zeros((5, 256)))),
        ValueError,
        "`b` must be of 256, 256 values with the K of `a`, got float4_e2m1fn[136,256]",
    ),
    "K not of 16 values": (
        lambda: fp8_fp4_gemm_nt((A.data[:, :24], A.scale[:, :1]), (B.data[:, :24], B.scale[:, :1])),
        ValueError,
        "`a` must be of shape (M, K) with K a multiple of 16, got float8_e4m3fn[40,24]",
    ),
    "N not of 16 bytes": (
        lambda: fp8_fp4_gemm_nt(A, (B.data[:132], B.scale[:132])),
        ValueError,
        "`b` must be of (N, K) values with N a multiple of 8 for bfloat16 out, got float4_e2m1fn[132,256]",
    ),
    "recipe": (
        lambda: fp8_fp4_gemm_nt(A, B, recipe=((1, 128), (128, 128))),
        ValueError,
        "`recipe` must be ((1, 128), (1, 32)) or ((1, 128), (1, 128)) or None, got ((1, 128), (128, 128))",
    ),
    "tt, shape of c": (
        lambda: fp8_fp4_gemm_tt((A.data.T, A.scale.T), B, c=jnp.zeros((136, 40), jnp.bfloat16)),
        ValueError,
        "`c` must be bfloat16 of shape (40, 136), got bfloat16[136,40]",
    ),
    "config of another kernel": (
        lambda: fp8_fp4_gemm_nt(A, B, config=GemmConfig(128, 128)),
        TypeError,
        "`config` must be a Fp4GemmConfig or Fp4SwappedConfig or None, got GemmConfig",
    ),
    "out_dtype": (
        lambda: fp8_fp4_gemm_nt(A, B, out_dtype=jnp.float16),
        TypeError,
        "`out_dtype` must be bfloat16 or float32, got float16",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("traced", [False, True])
def test_bad_input(name, traced):
    call, error, message = BAD[name]
    with pytest.raises(error) as caught:
        jax.eval_shape(call) if traced else call()
    assert str(caught.value) == message


def test_gradients_are_refused_clearly():
    a, b = operands(16, 128, 128)
    with pytest.raises(NotImplementedError, match=r"fp8_fp4_gemm_nt cannot be differentiated: .*custom_vjp"):
        jax.grad(lambda s: fp8_fp4_gemm_nt((a.data, s), b).astype(jnp.float32).sum())(a.scale)
