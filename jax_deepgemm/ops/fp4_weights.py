"""FP4 weights of a GEMM, one matrix or a stack of them: what may be given, how a kernel wants them, their values."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_deepgemm import checks
from jax_deepgemm.checks import Quantized
from jax_deepgemm.ops.folding import resize
from jax_deepgemm.ops.fp4_casting import dequantise_fp4, packed, unpacked
from jax_deepgemm.ops.fp8_fp4_gemm_plan import scale_kind, scale_row_bytes

Operand = Quantized | tuple[jax.Array, jax.Array]
Recipe = tuple[tuple[int, int], tuple[int, int]]
RECIPES: tuple[Recipe, ...] = (((1, 128), (1, 32)), ((1, 128), (1, 128)))  # the default first
DTYPES = (jnp.dtype(jnp.float4_e2m1fn), jnp.dtype(jnp.uint8))


class Fp4Weights(NamedTuple):
    data: jax.Array
    scale: jax.Array
    shape: tuple[int, ...]  # in values


def checked_recipe(recipe: Recipe | None) -> Recipe:
    return checks.recipe(recipe, RECIPES)


def checked_weights(name: str, w: Operand, dims: str, recipe: Recipe, *, k_last: bool = True) -> Fp4Weights:
    """Of dimensions that `dims` names; without `k_last` the one before the last is K."""
    data, scale = checks.pair(name, w)
    data = checks.array(name, data, DTYPES, dims)
    sizes = shape_in_values(data)
    rows, columns = recipe[1]
    shape = checks.scale_shape(sizes, (rows, columns) if k_last else (columns, rows))
    scale = checks.array(f"{name}.scale", scale, [jnp.float32, jnp.float8_e8m0fnu], ", ".join(map(str, shape)), shape)
    return Fp4Weights(data, scale, sizes)


def shape_in_values(data: jax.Array) -> tuple[int, ...]:
    return *data.shape[:-1], data.shape[-1] * (2 if data.dtype == jnp.uint8 else 1)


def recipe_of(data: jax.Array, scale: jax.Array) -> Recipe:
    """Which recipe the scales of weights [..., N, K] fit, the default if none. If both do, they mean the same."""
    sizes, found = shape_in_values(data), getattr(scale, "shape", None)
    return next((r for r in RECIPES if len(sizes) > 1 and checks.scale_shape(sizes, r[1]) == found), RECIPES[0])


def for_kernel(weights: Fp4Weights, recipe: Recipe, *, k_last: bool = True) -> tuple[jax.Array, jax.Array]:
    """Data uint8 [..., N, K / 2], and scales with rows as the kernel reads them: UE8M0 as uint8, padded to 16 bytes.

    What is beyond K has the scale of what is before, so that its block of 128 does not need one more.
    """
    data, scale, _ = weights
    if not k_last:
        data, scale = (x.swapaxes(-1, -2) for x in (unpacked(data), scale))
    if recipe[1][1] == 128:
        scale = scale.astype(jnp.float32)
    if scale.dtype == jnp.float8_e8m0fnu:
        scale = jax.lax.bitcast_convert_type(scale, jnp.uint8)
    data = packed(data)
    row = scale_row_bytes(2 * data.shape[-1], scale_kind(scale.dtype, recipe)) // scale.dtype.itemsize
    return data, resize(scale, (*scale.shape[:-1], row), repeat=True)


def values(data: jax.Array, scale: jax.Array, recipe: Recipe) -> jax.Array:
    """float32 [N, K] of one matrix as `for_kernel` gives it."""
    gran_k = recipe[1][1]
    if scale.dtype == jnp.uint8:
        scale = jax.lax.bitcast_convert_type(scale, jnp.float8_e8m0fnu)
    return dequantise_fp4(unpacked(data), scale[:, : -(-2 * data.shape[1] // gran_k)], gran_k=gran_k)
