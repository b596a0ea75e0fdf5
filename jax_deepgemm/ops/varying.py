"""The mesh axes that operands vary over under shard_map."""

from __future__ import annotations

import jax


def varying_alike(*operands: jax.Array) -> list[jax.Array]:
    """Under shard_map, operands that all vary over the same axes: so JAX sums the gradient of one that did not."""
    axes = [jax.typeof(x).manual_axis_type.varying for x in operands]
    everywhere = frozenset().union(*axes)
    return [
        jax.lax.pcast(x, tuple(sorted(everywhere - mine)), to="varying") if everywhere - mine else x
        for x, mine in zip(operands, axes, strict=True)
    ]
