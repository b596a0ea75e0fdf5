"""Quantising to FP8 and FP4 by kernels and by the reference on a CPU, compared to the bit."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_deepgemm import per_token_cast_to_fp4
from jax_deepgemm.ops.casting import quantise
from tests.gpu.native import native
from tests.gpu.problems import same_bits

BLOCKS: tuple[dict[str, Any], ...] = (
    {"straight": (1, 128)},
    {"straight": (128, 128)},
    {"turned": (128, 1)},
    {"straight": (1, 128), "turned": (128, 1)},
    {"straight": (128, 128), "turned": (128, 128)},
)


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


def casts_to_fp4(x: jax.Array) -> Any:
    return [per_token_cast_to_fp4(x, gran_k=g, use_ue8m0=u) for g in (32, 128) for u in (False, True)]


def check_fp4(x: np.ndarray) -> None:
    """Of columns that are even."""
    given = jnp.asarray(x)
    got = native(casts_to_fp4, given, calls=4)(given)
    wanted = jax.jit(casts_to_fp4)(jax.device_put(x, jax.devices("cpu")[0]))
    for index, (result, expected) in enumerate(zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)):
        assert same_apart_from_nan(result, expected), f"result {index}: {differences(result, expected)}"


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
