from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jax_deepgemm import (
    Quantized,
    cast_back_from_fp8,
    per_block_cast_to_fp8,
    per_channel_cast_to_fp8,
    per_token_cast_to_fp8,
)
from jax_deepgemm.ops.casting import SMALLEST_AMAX, quantise
from tests.helpers import dequantised

SIZES = [(1, 16), (5, 128), (130, 144), (128, 256), (200, 1000), (0, 128), (3, 0)]


def cast_transposed(x: jax.Array, **options: bool) -> Quantized:
    """The transposing cast of a transpose, which is in the order of `x` again."""
    return per_channel_cast_to_fp8(x.T, **options)


CASTS = [(per_token_cast_to_fp8, (1, 128)), (per_block_cast_to_fp8, (128, 128)), (cast_transposed, (1, 128))]


def values(shape: tuple[int, int]) -> jax.Array:
    """Magnitudes from 1e-8 to 1e8, so that every binade of FP8 and the clamp of the amax occur."""
    random = np.random.default_rng(1)
    magnitude = 2.0 ** random.integers(-26, 27, (shape[0], 1))
    return jnp.asarray(random.standard_normal(shape) * magnitude, jnp.float32)


def block_amax(x: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    rows, columns = (range(0, size, step) for size, step in zip(x.shape, block, strict=True))
    return np.array([[np.abs(x[r : r + block[0], c : c + block[1]]).max() for c in columns] for r in rows]).reshape(
        len(rows), len(columns)
    )


@pytest.mark.parametrize("use_ue8m0", [False, True])
@pytest.mark.parametrize("cast, block", CASTS)
@pytest.mark.parametrize("shape", SIZES)
def test_against_float64(cast, block, shape, use_ue8m0):
    x = values(shape)
    data, scale = cast(x, use_ue8m0=use_ue8m0)
    wide = np.asarray(x, np.float64)
    wanted = np.maximum(block_amax(wide, block), 1e-4) / 448
    assert data.shape == shape and data.dtype == jnp.float8_e4m3fn
    assert scale.shape == wanted.shape and scale.dtype == (jnp.float8_e8m0fnu if use_ue8m0 else jnp.float32)
    scale = np.asarray(scale).astype(np.float64)
    if use_ue8m0:
        np.testing.assert_array_equal(scale, np.exp2(np.ceil(np.log2(wanted))))
    else:
        np.testing.assert_allclose(scale, wanted, rtol=2**-23)
    # Three bits of mantissa down to 2**-6, from there on steps of 2**-9; float32 rounding of the quotient on top.
    spread = scale.repeat(block[0], 0).repeat(block[1], 1)[: shape[0], : shape[1]]
    error = np.abs(dequantised((data, scale), block) - wide)
    assert (error <= np.maximum(np.abs(wide) * 2.0**-4, spread * 2.0**-10) * 1.0001).all()


@pytest.mark.parametrize("cast, block", CASTS)
def test_data_is_rounded_to_nearest(cast, block):
    x = values((130, 300))
    data, scale = cast(x)
    spread = np.asarray(scale).repeat(block[0], 0).repeat(block[1], 1)[:130, :300]
    wanted = np.clip(np.asarray(x) * (1 / spread), -448, 448).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(np.asarray(data).view(np.uint8), wanted.view(np.uint8))


@pytest.mark.parametrize("use_ue8m0", [False, True])
@pytest.mark.parametrize("shape", SIZES)
def test_per_channel_is_per_token_of_the_transpose_to_the_bit(shape, use_ue8m0):
    x = values(shape)
    wanted = per_token_cast_to_fp8(x.T, use_ue8m0=use_ue8m0)
    for g, w in zip(per_channel_cast_to_fp8(x, use_ue8m0=use_ue8m0), wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(g).view(np.uint8), np.asarray(w).view(np.uint8))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_input_dtypes(dtype):
    x = jax.random.normal(jax.random.key(0), (64, 256)).astype(dtype)
    back = cast_back_from_fp8(per_token_cast_to_fp8(x), dtype=dtype)
    assert back.dtype == dtype
    np.testing.assert_allclose(np.asarray(back, np.float32), np.asarray(x, np.float32), rtol=0.07, atol=0.02)


@pytest.mark.parametrize("cast, block", CASTS)
@pytest.mark.parametrize("use_ue8m0", [False, True])
def test_zeros_stay_zeros(cast, block, use_ue8m0):
    back = cast_back_from_fp8(cast(jnp.zeros((3, 130)), use_ue8m0=use_ue8m0))
    np.testing.assert_array_equal(back, np.zeros((3, 130)))


def test_largest_magnitude_becomes_448_and_never_nan():
    x = jnp.linspace(1, 2, 4096)[:, None] * jnp.ones((1, 128))  # scales that round up and down
    data, _ = per_token_cast_to_fp8(x)
    np.testing.assert_array_equal(np.asarray(data).astype(np.float32), np.full((4096, 128), 448))


@pytest.mark.parametrize(
    "amax, exponent", [(448.0, 0), (np.nextafter(np.float32(448), np.float32(449)), 1), (1.75, -8)]
)
def test_ue8m0_is_the_exact_power_of_two_ceiling(amax, exponent):
    _, scale = per_token_cast_to_fp8(jnp.full((1, 128), amax, jnp.float32), use_ue8m0=True)
    assert np.asarray(scale).astype(np.float32)[0, 0] == 2.0**exponent


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("use_ue8m0", [False, True])
@pytest.mark.parametrize(
    "cast, first, last",
    [(per_token_cast_to_fp8, 130, 130), (per_block_cast_to_fp8, 128, 199), (cast_transposed, 130, 130)],
)
def test_nan_and_inf_make_their_block_nan(cast, first, last, use_ue8m0, bad):
    x = jnp.ones((200, 384)).at[130, 200].set(bad)
    back = np.asarray(cast_back_from_fp8(cast(x, use_ue8m0=use_ue8m0)))
    wanted = np.zeros((200, 384), bool)
    wanted[first : last + 1, 128:256] = True
    np.testing.assert_array_equal(np.isnan(back), wanted)
    assert np.isfinite(back[~wanted]).all()


def test_ue8m0_promotes_no_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        assert per_token_cast_to_fp8(jnp.ones((3, 128)), use_ue8m0=True).scale.dtype == jnp.float8_e8m0fnu


def test_other_granularities():
    x = values((20, 100))
    per_32 = per_token_cast_to_fp8(x, gran_k=32)
    assert per_32.scale.shape == (20, 4)
    np.testing.assert_allclose(cast_back_from_fp8(per_32), dequantised(per_32, (1, 32)), rtol=2**-23)
    tiles = per_block_cast_to_fp8(x, block=(16, 64))
    assert tiles.scale.shape == (2, 2)
    np.testing.assert_allclose(cast_back_from_fp8(tiles, block=(16, 64)), dequantised(tiles, (16, 64)), rtol=2**-23)


@pytest.mark.parametrize("cast, block", CASTS)
def test_under_jit_and_vmap(cast, block):
    x = jnp.stack([values((40, 130)), 3 * values((40, 130))])
    batched = jax.jit(jax.vmap(cast))(x)
    for i in range(2):
        for got, wanted in zip(batched, cast(x[i]), strict=True):
            np.testing.assert_array_equal(np.asarray(got[i]), np.asarray(wanted))


@pytest.mark.parametrize("cast, block", CASTS)
@pytest.mark.parametrize("transformed", [lambda f: f, jax.jit, jax.checkpoint])
def test_a_gradient_needs_more_bits(cast, block, transformed):
    """Refused, not silently zero; where rounding is to count as the identity, as the error says."""

    def rounded(x):
        return cast_back_from_fp8(cast(x), block=block)

    def straight_through(x):
        s = jax.lax.stop_gradient(x)
        return x + (rounded(s) - s)

    x = 0.01 * jax.random.normal(jax.random.key(0), (40, 130))
    with pytest.raises(NotImplementedError, match=r"cast_to_fp8 cannot be differentiated: .*stop_gradient"):
        jax.grad(transformed(lambda x: rounded(x).sum()))(x)
    np.testing.assert_array_equal(jax.grad(transformed(lambda x: straight_through(x).sum()))(x), jnp.ones_like(x))
    np.testing.assert_allclose(straight_through(x), rounded(x), rtol=1e-5)


def test_a_smaller_amax_is_a_larger_range():
    """What a gradient needs: the same bits as of a larger multiple, down to what `smallest_amax` says."""
    x, shrink = values((130, 300)), 2.0**-32
    for block in ({"straight": (1, 128)}, {"turned": (128, 1)}):
        ((data, scale),) = quantise(x, **block)
        ((small_data, small_scale),) = quantise(x * shrink, **block, smallest_amax=SMALLEST_AMAX * shrink)
        np.testing.assert_array_equal(np.asarray(small_data), np.asarray(data))
        np.testing.assert_array_equal(np.asarray(small_scale), np.asarray(scale) * np.float32(shrink))


@pytest.mark.parametrize("blocks", [((1, 128), (128, 1)), ((128, 128), (128, 128))])
@pytest.mark.parametrize("transformed", [lambda f: f, jax.jit, jax.vmap])
def test_both_from_one_read_are_what_each_is_alone(blocks, transformed):
    straight, turned = blocks
    x = jnp.stack([values((256, 300)), values((256, 300)) * 2])
    x = x if transformed is jax.vmap else x[1]
    both = transformed(functools.partial(quantise, straight=straight, turned=turned))(x)
    alone = [
        transformed(functools.partial(quantise, **{side: block}))(x)[0]
        for side, block in (("straight", straight), ("turned", turned))
    ]
    for got, wanted in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))


GOOD = Quantized(jnp.zeros((4, 256), jnp.float8_e4m3fn), jnp.zeros((4, 2)))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: per_token_cast_to_fp8(jnp.zeros((4, 8), jnp.int32)),
            TypeError,
            "`x` must be bfloat16 or float16 or float32 of shape (M, K), got int32[4,8]",
        ),
        (
            lambda: per_channel_cast_to_fp8(jnp.zeros((4,))),
            ValueError,
            "`x` must be bfloat16 or float16 or float32 of shape (K, M), got float32[4]",
        ),
        (
            lambda: per_block_cast_to_fp8(jnp.zeros((4,))),
            ValueError,
            "`x` must be bfloat16 or float16 or float32 of shape (N, K), got float32[4]",
        ),
        (
            lambda: per_token_cast_to_fp8([[1.0]]),
            TypeError,
            "`x` must be bfloat16 or float16 or float32 of shape (M, K), got list",
        ),
        (
            lambda: per_token_cast_to_fp8(jnp.zeros((4, 8)), gran_k=0),
            ValueError,
            "`gran_k` must be a positive number of columns, got 0",
        ),
        (
            lambda: per_block_cast_to_fp8(jnp.zeros((4, 8)), block=(128,)),
            ValueError,
            "`block` must be a tuple (rows, columns) of positive numbers, got (128,)",
        ),
        (
            lambda: cast_back_from_fp8(GOOD.data),
            TypeError,
            "`x` must be a (data, scale) pair of arrays, got float8_e4m3fn[4,256]",
        ),
        (
            lambda: cast_back_from_fp8((GOOD.data, GOOD.scale[:, :1])),
            ValueError,
            "`x.scale` must be float32 or float8_e8m0fnu of shape (4, 2), got float32[4,1]",
        ),
        (
            lambda: cast_back_from_fp8(GOOD, block=(1, 64)),
            ValueError,
            "`x.scale` must be float32 or float8_e8m0fnu of shape (4, 4), got float32[4,2]",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
