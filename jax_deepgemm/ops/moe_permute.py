"""Tokens sorted by expert, and summed back: what stands around the grouped GEMMs of a mixture of experts."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_deepgemm import checks
from jax_deepgemm.ops.moe_rows import permute_rows, sort_by_expert, unpermute_rows
from jax_deepgemm.ops.varying import varying_alike

_FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32)


class MoePermutation(NamedTuple):
    """Where the copies of tokens are, sorted by expert.

    rows: int32 [T, k], the row of each copy; for a copy of no expert the complement (`~row`, negative) of a row behind
        those of all experts. Together all of 0 to T k - 1, each once.
    group_sizes: int32 [G], how many rows each expert has.
    group_ends: int32 [G], where these end: the `grouped_layout` of grouped GEMMs with `use_psum_layout`.
    """

    rows: jax.Array
    group_sizes: jax.Array
    group_ends: jax.Array


jax.export.register_namedtuple_serialization(MoePermutation, serialized_name="jax_deepgemm.MoePermutation")


def moe_permute(x: jax.Array, topk_idx: jax.Array, num_experts: int) -> tuple[jax.Array, MoePermutation]:
    """Copies each token to its experts: rows sorted by expert, and within an expert as the tokens are.

    x: bfloat16, float16 or float32 [T, D].
    topk_idx: an integer [T, k], the experts of each token. Others than 0 to `num_experts` - 1 are no expert: on a
        device that has a part of the experts, subtract the number of its first.

    Returns the rows [T k, D], those of no expert at the end and zero, and the `MoePermutation` for `moe_unpermute` and
    for grouped GEMMs. The rows are differentiable with respect to `x`, to any order; the gradient sums over the copies
    of a token in float32, always in the same order.

    Under jit over several devices D may be sharded; tokens are gathered. Use shard_map for them.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes.

    >>> x, topk_idx = jnp.ones((4, 256)), jnp.array([[0, 2], [2, 1], [0, -1], [1, 2]])
    >>> y, permutation = moe_permute(x, topk_idx, 3)
    >>> y.shape, permutation.group_sizes
    ((8, 256), Array([2, 2, 3], dtype=int32))
    """
    x = checks.array("x", x, _FLOATS, "T, D")
    topk_idx = checked_experts("topk_idx", topk_idx, x.shape[0])
    permutation = sorted_by_expert(topk_idx, num_experts)
    return permute_rows(*varying_alike(x, permutation.rows)), permutation


def moe_unpermute(y: jax.Array, permutation: MoePermutation, topk_weights: jax.Array | None = None) -> jax.Array:
    """Sums the rows of each token's copies, times their weights: what undoes `moe_permute`.

    y: bfloat16, float16 or float32 [T k, D], rows as `moe_permute` sorted them.
    topk_weights: floats [T, k]; None counts each copy once.

    Returns [T, D] in the dtype of `y`: `sum over j of topk_weights[t, j] * y[rows[t, j]]`, in float32, in this
    order, and rounded once. Copies of no expert count nothing. Differentiable in `y` and `topk_weights`, to any order.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes.

    >>> x, topk_idx = jnp.ones((4, 256)), jnp.array([[0, 2], [2, 1], [0, -1], [1, 2]])
    >>> y, permutation = moe_permute(x, topk_idx, 3)
    >>> moe_unpermute(y, permutation, jnp.full((4, 2), 0.5))[:, 0]
    Array([1. , 1. , 0.5, 1. ], dtype=float32)
    """
    y = checks.array("y", y, _FLOATS, "T*k, D")
    if not isinstance(permutation, tuple) or len(permutation) != 3:
        checks.fail(TypeError, "permutation", "a MoePermutation", permutation)
    rows = checks.array("permutation.rows", permutation[0], [jnp.int32], "T, k")
    if rows.size != y.shape[0]:
        checks.fail(ValueError, "y", f"of shape ({rows.size}, D), a row for each copy", y)
    if topk_weights is None:
        return unpermute_rows(*varying_alike(y, rows))
    weights = checked_weights("topk_weights", topk_weights, rows.shape)
    return unpermute_rows(*varying_alike(y, rows, weights))


def checked_experts(name: str, x: jax.Array, tokens: int) -> jax.Array:
    """`x` as int32 [tokens, k]."""
    checks.integers(name, x, f"{tokens}, k", (tokens, None))
    most = np.iinfo(np.int32).max  # so that no other number becomes an expert's
    wide = jnp.iinfo(x.dtype).max > most
    return (jnp.where((x < 0) | (x > most), -1, x) if wide else jnp.asarray(x)).astype(jnp.int32)


def checked_weights(name: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`x` as float32."""
    return checks.array(name, x, _FLOATS, ", ".join(map(str, shape)), shape).astype(jnp.float32)


def sorted_by_expert(topk_idx: jax.Array, num_experts: int) -> MoePermutation:
    """Of experts that have been checked."""
    num_experts = checks.integer("num_experts", num_experts, "a number of experts", 0)
    return MoePermutation(*sort_by_expert(topk_idx, num_experts))
