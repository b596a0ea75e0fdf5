from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import cast_back_from_fp4, per_token_cast_to_fp4
from tests.fp4 import VALUES, in_bytes, weights

SIZES = [(1, 16), (5, 128), (130, 144), (20, 1000), (3, 33), (0, 128), (3, 0)]
GRANULARITIES = pytest.mark.parametrize("gran_k", [32, 128])


def values(shape: tuple[int, int]) -> jax.Array:
    """Magnitudes from 1e-8 to 1e8."""
    random = np.random.default_rng(1)
    return jnp.asarray(random.standard_normal(shape) * 2.0 ** random.integers(-26, 27, (shape[0], 1)), jnp.float32)


def amax(x: np.ndarray, gran_k: int) -> np.ndarray:
    starts = range(0, x.shape[1], gran_k)
    return np.array([np.abs(x[:, s : s + gran_k]).max(1) for s in starts]).reshape(len(starts), x.shape[0]).T


@GRANULARITIES
@pytest.mark.parametrize("use_ue8m0", [False, True])
@pytest.mark.parametrize("shape", SIZES)
def test_against_float64(shape, use_ue8m0, gran_k):
    x = values(shape)
    data, scale = per_token_cast_to_fp4(x, use_ue8m0=use_ue8m0, gran_k=gran_k)
    wide = np.asarray(x, np.float64)
    wanted = np.maximum(amax(wide, gran_k), 1e-4) / 6
    assert data.shape == shape and data.dtype == jnp.float4_e2m1fn
    assert scale.shape == wanted.shape and scale.dtype == (jnp.float8_e8m0fnu if use_ue8m0 else jnp.float32)
    scale = np.asarray(scale).astype(np.float64)
    if use_ue8m0:
        np.testing.assert_array_equal(scale, np.exp2(np.ceil(np.log2(wanted))))
    else:
        np.testing.assert_allclose(scale, wanted, rtol=2**-22)
    spread = scale.repeat(gran_k, 1)[:, : shape[1]]
    nearest = np.abs(wide / spread - np.asarray(data).astype(np.float64))
    to_each = np.abs((wide / spread)[..., None] - VALUES)
    assert (nearest <= to_each.min(-1) + 1e-6).all()
    np.testing.assert_allclose(
        np.asarray(cast_back_from_fp4((data, jnp.asarray(scale, jnp.float32)), gran_k=gran_k)),
        np.asarray(data).astype(np.float64) * spread,
        rtol=2**-22,
    )


def test_ties_are_rounded_to_even_and_large_values_kept():
    x = np.array([[6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -5, 0.26, -0.0, 4.9, 5.1, -6]], np.float32)
    data, scale = per_token_cast_to_fp4(jnp.asarray(x))
    assert scale[0, 0] == 1
    wanted = [6, 0, 1, 1, 2, 2, 4, 4, 0, -1, -4, 0.5, 0, 4, 6, -6]
    np.testing.assert_array_equal(np.asarray(data).astype(np.float32)[0], wanted)


@GRANULARITIES
def test_every_code_comes_back_exactly(gran_k):
    # From 0.5 x 2^-125 to 6 x 2^125: all normal numbers of float32, of which XLA flushes others on CPUs.
    codes = np.resize(np.arange(16, dtype=np.uint8), (3, 256))
    scale = np.array([[2, 127, 252, 3, 100, 120, 130, 2]] * 3, np.uint8)[:, : 256 // gran_k]
    x = weights(codes, scale)
    wanted = VALUES[codes] * np.exp2(scale.astype(np.float64) - 127).repeat(gran_k, 1)
    got = np.asarray(cast_back_from_fp4(x, gran_k=gran_k)).astype(np.float64)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(got, np.asarray(cast_back_from_fp4(in_bytes(x), gran_k=gran_k)))


@GRANULARITIES
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("use_ue8m0", [False, True])
def test_nan_and_inf_make_their_block_nan(use_ue8m0, bad, gran_k):
    x = jnp.ones((20, 384)).at[13, 200].set(bad)
    back = np.asarray(cast_back_from_fp4(per_token_cast_to_fp4(x, use_ue8m0=use_ue8m0, gran_k=gran_k)))
    data, _ = per_token_cast_to_fp4(x, use_ue8m0=use_ue8m0, gran_k=gran_k)
    wanted = np.zeros((20, 384), bool)
    wanted[13, 200 // gran_k * gran_k : 200 // gran_k * gran_k + gran_k] = True
    np.testing.assert_array_equal(np.isnan(back), wanted)
    np.testing.assert_array_equal(np.asarray(data).view(np.uint8) == 0, wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_input_dtypes_jit_and_vmap(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 64, 256)).astype(dtype)
    batched = jax.jit(jax.vmap(per_token_cast_to_fp4))(x)
    for i in range(2):
        alone = per_token_cast_to_fp4(x[i])
        for got, wanted in zip(batched, alone, strict=True):
            np.testing.assert_array_equal(np.asarray(got[i]), np.asarray(wanted))
        back = cast_back_from_fp4(alone, dtype=dtype)
        assert back.dtype == dtype
        np.testing.assert_allclose(np.asarray(back, np.float32), np.asarray(x[i], np.float32), rtol=0.34, atol=0.2)


def test_a_gradient_needs_more_bits():
    with pytest.raises(NotImplementedError, match=r"per_token_cast_to_fp4 cannot be differentiated: .*stop_gradient"):
        jax.grad(lambda x: cast_back_from_fp4(per_token_cast_to_fp4(x)).sum())(jnp.ones((4, 64)))


ZEROS = jnp.zeros((4, 256), jnp.float4_e2m1fn)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: per_token_cast_to_fp4(jnp.zeros((4, 8), jnp.int32)),
            TypeError,
            "`x` must be bfloat16 or float16 or float32 of shape (M, K), got int32[4,8]",
        ),
        (
            lambda: per_token_cast_to_fp4(jnp.zeros((4, 8)), gran_k=64),
            ValueError,
            "`gran_k` must be 32 or 128, got 64",
        ),
        (
            lambda: cast_back_from_fp4((jnp.zeros((4, 256)), jnp.zeros((4, 8)))),
            TypeError,
            "`x` must be float4_e2m1fn or uint8 of shape (M, K), got float32[4,256]",
        ),
        (
            lambda: cast_back_from_fp4((ZEROS, jnp.zeros((4, 3)))),
            ValueError,
            "`x.scale` must be float32 or float8_e8m0fnu of shape (4, 8), got float32[4,3]",
        ),
        (
            lambda: cast_back_from_fp4((ZEROS, jnp.zeros((4, 2), jnp.bfloat16))),
            TypeError,
            "`x.scale` must be float32 or float8_e8m0fnu of shape (4, 2), got bfloat16[4,2]",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
