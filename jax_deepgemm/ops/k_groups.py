"""Groups that lie one behind the other along K, their sizes on the device.

Sizes are bounded, so that whatever they are nothing outside the operands is read: a negative one counts as 0, and what
lies beyond K is cut off.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jax_deepgemm import checks

BLOCK = 128  # elements of K under one scale


def checked_sizes(ks: jax.Array) -> jax.Array:
    return checks.numbers("ks", ks, "G", (None,))


def bounds(ks: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Where each group begins and ends, in 0..k: uint32 [G] each."""
    limit = jnp.uint32(k)
    sizes = jnp.minimum(jnp.maximum(ks, 0).astype(jnp.uint32), limit)
    ends = jax.lax.associative_scan(lambda a, b: jnp.minimum(a + b, limit), sizes)  # which never overflows
    starts = jnp.concatenate([jnp.zeros((1,), jnp.uint32), ends])[: ends.shape[0]]
    return starts, ends


def padded_extent(k: int, groups: int) -> int:
    """The most of K that `groups` groups take which together have k, each padded to whole blocks."""
    return (k + (BLOCK - 1) * min(groups, k)) // BLOCK * BLOCK if groups else 0


def padded_bounds(ks: jax.Array, extent: int) -> tuple[jax.Array, jax.Array]:
    """As `bounds`, of groups that are padded to whole blocks: in 0..extent, a multiple of a block."""
    blocks = jnp.maximum(ks, 0).astype(jnp.uint32)
    blocks = (blocks + jnp.uint32(BLOCK - 1)) // BLOCK
    starts, ends = bounds(blocks.astype(jnp.int32), extent // BLOCK)
    return starts * BLOCK, ends * BLOCK


def rows_of_groups(starts: jax.Array, ends: jax.Array, k: int) -> jax.Array:
    """Whether each of k rows belongs to each group: bool [G, k]."""
    rows = jnp.arange(k, dtype=jnp.uint32)[None]
    return (starts[:, None] <= rows) & (rows < ends[:, None])


def evenly(k: int, groups: int, step: int = 1) -> np.ndarray:
    """int32 [G]: sizes of groups that share out k as evenly as multiples of `step` can."""
    return np.diff(np.arange(groups + 1) * (k // step) // groups * step).astype(np.int32)
