"""The mesh axes that operands vary over under shard_map, and what gradients make of them."""

from __future__ import annotations

import jax
from jax.core import ShapedArray

from jax_deepgemm.ops.folding import reshard, resize


def varying(x: jax.Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying


def varying_alike(*operands: jax.Array) -> list[jax.Array]:
    """Under shard_map, operands that all vary over the same axes: so JAX sums the gradient of one that did not."""
    axes = [varying(x) for x in operands]
    everywhere = frozenset().union(*axes)
    return [
        jax.lax.pcast(x, tuple(sorted(everywhere - mine)), to="varying") if everywhere - mine else x
        for x, mine in zip(operands, axes, strict=True)
    ]


def gradient_of(value: jax.Array, wanted: ShapedArray) -> jax.Array:
    """`value` as the gradient of an operand of the type `wanted`, cut to its shape.

    Under shard_map, an operand that all devices share has the sum of their gradients.
    """
    value = resize(value, wanted.shape)
    axes = varying(value) - wanted.manual_axis_type.varying
    if axes:
        value = jax.lax.psum(value, tuple(sorted(axes)))
    return reshard(value.astype(wanted.dtype), wanted.sharding)
