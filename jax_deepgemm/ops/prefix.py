"""Running sums and maxima for references.

JAX 0.12 lowers `jnp.cumsum` and its like to XLA's scan, on which XLA's CPU compiler aborts the process where a program
has been exported for several platforms. These are made of slices and additions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def running_sum(x: jax.Array) -> jax.Array:
    """As `jnp.cumsum`, of one dimension."""
    return jax.lax.associative_scan(jnp.add, x)


def running_max(x: jax.Array) -> jax.Array:
    """As `jax.lax.cummax`, of one dimension."""
    return jax.lax.associative_scan(jnp.maximum, x)
