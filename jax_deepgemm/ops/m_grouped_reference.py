"""GEMMs of groups of rows, each with weights of its own, in plain JAX: the reference of all m-grouped operations."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jax_deepgemm.ops.prefix import running_max, running_sum
from jax_deepgemm.ops.varying import varying_alike

Product = Callable[[jax.Array, jax.Array], jax.Array]
MOST_ROWS = 128  # multiplied at once


def groups_of_rows(layout: jax.Array, m: int, groups: int, *, use_psum_layout: bool) -> jax.Array:
    """int32 [M], the group of each row; `groups` where it belongs to none."""
    if use_psum_layout:
        ends = running_max(jnp.clip(layout, 0, m))
        return _ended(ends, jnp.arange(m, dtype=layout.dtype)[:, None])
    return jnp.where((layout >= 0) & (layout < groups), layout, groups)


def _ended(ends: jax.Array, at: jax.Array) -> jax.Array:
    """int32, how many of `ends` [G] are not beyond `at` [..., 1].

    `jnp.searchsorted` fails where shard_map has made only some axes of the mesh manual.
    """
    return (ends <= at).sum(-1, dtype=jnp.int32)


def by_groups(product: Product, group: jax.Array, groups: int, n: int) -> jax.Array:
    """float32 [M, N]: each row times the weights of its group; zeros where `group` is `groups`.

    product: `(rows, g)` -> float32 [len(rows), N]: those rows, by their numbers, times the weights of group `g`.
    group: int32 [M], in any order.

    The rows of each group are gathered in blocks, the last of which is filled up, so that no row is multiplied by all
    weights.
    """
    m = group.shape[0]
    if 0 in (m, groups, n):
        return jnp.zeros((m, n), jnp.float32)
    height, filled = MOST_ROWS, groups  # of a symbolic number of rows, in an export
    if isinstance(m, int):
        height, filled = min(max(8, 1 << (m // groups).bit_length()), MOST_ROWS), min(groups, m)
    order = jnp.argsort(group, stable=True)
    sizes = jnp.bincount(group, length=groups + 1)[:groups]
    starts = running_sum(sizes) - sizes
    blocks = -(-sizes // height)
    ends = running_sum(blocks)

    def one(out: jax.Array, block: jax.Array) -> tuple[jax.Array, None]:
        g = jnp.minimum(_ended(ends, block), groups - 1)
        within = (block - (ends[g] - blocks[g])) * height + jnp.arange(height)
        valid = (within < sizes[g]) & (block < ends[-1])
        rows = order[jnp.where(valid, starts[g] + within, 0)]
        return out.at[jnp.where(valid, rows, m)].set(product(rows, g), mode="drop"), None

    most = -(-m // height) + filled
    # Under shard_map the carry of a loop varies over the same axes before it as after it.
    start, _ = varying_alike(jnp.zeros((m, n), jnp.float32), product(order[:1], jnp.zeros((), jnp.int32)))
    return jax.lax.scan(one, start, jnp.arange(most))[0]


def zero_beyond(product: jax.Array, masked_m: jax.Array) -> jax.Array:
    """[G, Mmax, N] with zeros in the rows of a group from its `masked_m` on."""
    inside = jnp.arange(product.shape[1])[None] < masked_m[:, None]
    return jnp.where(inside[:, :, None], product, 0)
