"""The casts to FP8, to the bit what their reference computes on a CPU. Results are written over NaN."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import fp8_gemm_nt, per_block_cast_to_fp8, per_channel_cast_to_fp8, per_token_cast_to_fp8
from jax_deepgemm.ops.casting import quantise
from tests.gpu.native import hlo, native
from tests.gpu.problems import same_bits

pytestmark = pytest.mark.gpu

# Ends inside tiles, scale blocks, and memory accesses of every width.
SIZES = ((1, 1), (1, 7168), (3, 7), (5, 128), (33, 136), (77, 1000), (128, 256), (130, 36), (257, 1002), (640, 400))
BLOCKS: tuple[dict[str, Any], ...] = (
    {"straight": (1, 128)},
    {"straight": (128, 128)},
    {"turned": (128, 1)},
    {"straight": (1, 128), "turned": (128, 1)},
    {"straight": (128, 128), "turned": (128, 128)},
)
OTHER: tuple[dict[str, Any], ...] = ({"straight": (1, 32)}, {"straight": (1, 64)}, {"turned": (128, 128)})


def values(shape: tuple[int, int], dtype: Any, seed: int = 0) -> np.ndarray:
    """Normal values whose magnitude differs from row to row and from column to column, zeros of both signs among them,
    up to the ends of the dtype's range; a block of zeros, subnormal values."""
    random = np.random.default_rng(seed)
    limits = {"float16": (-12, 8), "bfloat16": (-60, 60), "float32": (-60, 60)}[jnp.dtype(dtype).name]
    exponents = random.integers(*limits, (shape[0], 1)) + random.integers(-6, 7, (1, shape[1]))
    x = random.standard_normal(shape) * 2.0**exponents
    x = np.where(random.random(shape) < 0.02, np.copysign(0, x), x)
    x[2 % shape[0], 100:300] = 0
    x[1 % shape[0]] *= 1e-30
    x[shape[0] // 2, -1] = jnp.finfo(dtype).max
    return x.astype(dtype)


def spoiled(x: np.ndarray) -> np.ndarray:
    """`x` with values that are not finite, in the first and the last row and column too."""
    random = np.random.default_rng(1)
    x = x.copy()
    places = [(0, 0), (-1, -1), *zip(*(random.integers(0, n, 4) for n in x.shape), strict=True)]
    for place, value in zip(places, (np.inf, np.nan, -np.inf, -np.nan, np.nan, np.inf), strict=True):
        x[place] = value
    return x


def casts(x: jax.Array, blocks: Any) -> Any:
    return [quantise(x, use_ue8m0=u, **b) for b in blocks for u in (False, True)]


def check(x: np.ndarray, blocks: Any = BLOCKS) -> None:
    function = functools.partial(casts, blocks=blocks)
    given = jnp.asarray(x)
    got = native(function, given, calls=2 * len(blocks))(given)
    wanted = jax.jit(function)(jax.device_put(x, jax.devices("cpu")[0]))
    for block, g, w in zip((b for b in blocks for _ in range(2)), got, wanted, strict=True):
        for pair, wanted_pair in zip(g, w, strict=True):
            for what, result, expected in zip(("data", "scale"), pair, wanted_pair, strict=True):
                assert same_apart_from_nan(result, expected), f"{what} of {block}: {differences(result, expected)}"


def same_apart_from_nan(x: Any, y: Any) -> bool:
    """To the bit, but any NaN equals any other."""
    x, y = np.array(x), np.array(y)
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    missing = np.isnan(x.astype(np.float32))
    if not np.array_equal(missing, np.isnan(y.astype(np.float32))):
        return False
    x[missing] = y[missing] = 0
    return same_bits(x, y)


def differences(x: Any, y: Any) -> str:
    x, y = np.asarray(x).astype(np.float32), np.asarray(y).astype(np.float32)
    where = np.argwhere(~((x == y) & (np.signbit(x) == np.signbit(y)) | (np.isnan(x) & np.isnan(y))))
    shown = [(tuple(map(int, p)), float(x[tuple(p)]), float(y[tuple(p)])) for p in where[[0, -1]]] if len(where) else []
    return f"{len(where)} of {x.size} differ, as in {shown} (got, wanted)"


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("shape", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_bits(shape, dtype):
    check(values(shape, dtype))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_bits_of_other_blocks(dtype):
    check(values((257, 1000), dtype), OTHER)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_values_that_are_not_finite(dtype):
    check(spoiled(values((300, 600), dtype)), BLOCKS + OTHER)


def test_quotients_are_rounded_as_by_division():
    """Every mantissa of bfloat16 over every other, down to where FP8 ends; and many of float32."""
    mantissas, powers = 1 + np.arange(128) / 128, 2.0 ** np.arange(0, -18, -1)
    rows = [np.minimum(a, np.append(mantissas[1:] * p, a)) for a in mantissas for p in powers]
    check(np.asarray(rows).astype(jnp.bfloat16), [{"straight": (1, 128)}])
    check(np.random.default_rng(2).standard_normal((4096, 1024)).astype(np.float32), [{"straight": (1, 128)}])


@pytest.mark.parametrize("shape", [(0, 128), (3, 0), (0, 0)])
def test_empty_matrices_launch_nothing(shape):
    x = jnp.zeros(shape, jnp.bfloat16)
    got = native(lambda x: casts(x, BLOCKS), x, calls=0)(x)
    assert got[0][0].data.shape == shape


def test_offsets_beyond_32_bits():
    """The last rows of a matrix of more than 2^32 elements."""
    rows, columns = 2**21 + 8, 2048

    @jax.jit
    def ends():
        x = jnp.zeros((rows, columns), jnp.bfloat16).at[-1].set(3.5).at[-8].set(7)
        data, scale = per_token_cast_to_fp8(x)
        return data[-8:], scale[-8:], jnp.any(data[:-8].view(jnp.uint8)), jnp.max(scale[:-8])

    data, scale, others, largest = ends()
    assert (np.asarray(data).astype(np.float32) == np.array([448, 0, 0, 0, 0, 0, 0, 448])[:, None]).all()
    assert (np.asarray(scale[-1]) == np.float32(3.5) * np.float32(1 / 448)).all()
    assert not others and largest == np.float32(1e-4) * np.float32(1 / 448)


@pytest.mark.parametrize("cast", [per_token_cast_to_fp8, per_block_cast_to_fp8, per_channel_cast_to_fp8])
def test_vmap_is_one_launch(cast):
    x = np.stack([values((256, 384), jnp.bfloat16, seed) for seed in range(3)])
    given = jnp.asarray(x)
    got = native(jax.vmap(cast), given)(given)
    cpu = jax.devices("cpu")[0]
    for i in range(3):
        for g, w in zip(got, cast(jax.device_put(x[i], cpu)), strict=True):
            assert same_bits(g[i], w)


def test_nothing_between_cast_and_gemm():
    x, w = jnp.asarray(values((256, 1024), jnp.bfloat16)), jnp.asarray(values((384, 1024), jnp.bfloat16, 1))

    def function(x, w):
        return fp8_gemm_nt(per_token_cast_to_fp8(x), per_block_cast_to_fp8(w))

    compiled = jax.jit(function).lower(x, w).compile()
    assert " copy(" not in hlo(compiled) and "transpose(" not in hlo(compiled) and "fusion(" not in hlo(compiled)
