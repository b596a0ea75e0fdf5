"""`jax.lax.ragged_dot`, by grouped GEMMs."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jax_deepgemm import checks
from jax_deepgemm.ops.fp8_gemm_plan import RECIPE
from jax_deepgemm.ops.grouped_matmul import BF16, Recipe, bf16_matmul, checked_recipe, fp8_matmul, groups_of
from jax_deepgemm.ops.varying import varying_alike

_F32 = jnp.dtype(jnp.float32)


def ragged_dot(
    lhs: jax.Array,
    rhs: jax.Array,
    group_sizes: jax.Array,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    group_offset: jax.Array | None = None,
    out_sharding: Any = None,
    *,
    recipe: Recipe | None = None,
) -> jax.Array:
    """`lhs[i] @ rhs[g]` for each row i of group g: a drop-in for `jax.lax.ragged_dot`, with the same errors.

    lhs: [M, K], rows sorted by group.
    rhs: [G, K, N], the matrix of each group.
    group_sizes: integers [G], how many rows each group has, from row 0 on. Rows behind the last group's are zeros in
        the result. Sizes are read on the device and may be anything: a negative one counts as 0, and what lies beyond M
        is cut off.
    precision, group_offset, out_sharding: as for `jax.lax.ragged_dot`, which does it if one of the last two is given.
        BF16 products are exact anyway, and are summed in float32.
    preferred_element_type: of the result; None is that of the operands.
    recipe: None multiplies the operands as they are. ((1, 128), (128, 128)) multiplies in FP8: BF16 or FP32 operands
        are quantised inside, rows of `lhs` with a scale for each 128 of K and `rhs` with one for each 128 x 128, as
        `fp8_linear` does. K and N that are no multiples of 16 are padded, which copies.

    Returns [M, N]. BF16 operands whose K and N are multiples of 8 take grouped GEMMs of ours, and so does FP8; all else
    is `jax.lax.ragged_dot` itself. The gradient of `lhs` is a product with the transposed weights, which lie as they
    are; that of `rhs` sums over the rows of each group. In BF16 there are derivatives of any order in reverse mode; in
    FP8 first ones, where rounding counts as the identity, that of `lhs` is an FP8 product too, and that of `rhs` one in
    BF16.

    Under jit over several devices `rhs` sharded over N stays where it is; use shard_map for tokens and experts, and on
    a mesh of explicit axes, for which JAX infers no sharding of a ragged product.

    Raises what `jax.lax.ragged_dot` raises; ValueError for another `recipe`, and with one TypeError or ValueError,
    naming the argument, for what cannot be quantised; NotImplementedError for second derivatives in FP8.

    >>> lhs, rhs = jnp.ones((6, 256), jnp.bfloat16), jnp.ones((2, 256, 128), jnp.bfloat16)
    >>> ragged_dot(lhs, rhs, jnp.array([3, 2])).shape
    (6, 128)
    """
    checks.out_sharding(out_sharding)
    standard: Any = functools.partial(
        jax.lax.ragged_dot,
        precision=precision,
        preferred_element_type=preferred_element_type,
        group_offset=group_offset,
        out_sharding=out_sharding,
    )
    fp8 = checked_recipe(recipe, RECIPE)
    ours = out_sharding is None and _is_ours(lhs, rhs, group_sizes, precision, preferred_element_type, group_offset)
    if not fp8 and not ours:
        return standard(lhs, rhs, group_sizes)
    if fp8:
        dtypes = (BF16, _F32)
        lhs, rhs = checks.array("lhs", lhs, dtypes, "M, K"), checks.array("rhs", rhs, dtypes, "G, K, N")
        checks.integers("group_sizes", group_sizes, "G", (None,))
        if preferred_element_type is not None:
            wanted = "bfloat16, float32 or None with a recipe"
            checks.dtype("preferred_element_type", preferred_element_type, dtypes, wanted)
        if group_offset is not None:
            checks.fail(ValueError, "group_offset", "None with a recipe", checks.shown(group_offset))
        if out_sharding is not None:
            checks.fail(ValueError, "out_sharding", "None with a recipe", checks.shown(out_sharding))
    out_dtype = jax.eval_shape(standard, lhs, rhs, group_sizes).dtype
    operands = varying_alike(jnp.asarray(lhs), jnp.asarray(rhs), jnp.asarray(group_sizes))
    product: Any = fp8_matmul if fp8 else bf16_matmul
    return product(*operands[:2], groups_of(operands[2], operands[0].shape[0]), "nn", out_dtype)


def _is_ours(lhs: Any, rhs: Any, sizes: Any, precision: Any, wanted: Any, offset: Any) -> bool:
    """Whether the grouped BF16 GEMMs take it, and its derivatives."""
    arrays = all(isinstance(x, (jax.Array, np.ndarray)) for x in (lhs, rhs, sizes))
    if not arrays or offset is not None or (lhs.ndim, rhs.ndim, sizes.ndim) != (2, 3, 1):
        return False
    static = all(isinstance(size, int) for size in (*lhs.shape, *rhs.shape))  # not so in an export of any sizes
    plain = precision is None or isinstance(precision, jax.lax.Precision)
    result = wanted is None or checks.as_dtype(wanted) in (BF16, _F32)
    in_bf16 = lhs.dtype == BF16 and rhs.dtype == BF16
    return static and plain and result and in_bf16 and rhs.shape[1] % 8 == 0 and rhs.shape[2] % 8 == 0
