"""Dimensions merged, split, padded and cut.

Where types carry shardings (`AxisType.Explicit`), JAX wants to be told what becomes of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_deepgemm.partition import with_explicit_axes


def merge(x: jax.Array, groups: Sequence[int]) -> jax.Array:
    """`x` with its dimensions, so many in each group, as one a group, sharded over all the axes of the group."""
    ends = list(itertools.accumulate(groups, initial=0))
    slices = [slice(*pair) for pair in itertools.pairwise(ends)]
    entries = spec(x)
    axes = [sum((_axes(e) for e in entries[s]), ()) for s in slices]
    return _reshape(x, [math.prod(x.shape[s]) for s in slices], [a or None for a in axes])


def split(x: jax.Array, axis: int, sizes: Sequence[int], entries: Sequence[Any]) -> jax.Array:
    """`x` with dimension `axis` split into `sizes`, sharded like `entries` if `axis` is sharded over all their axes."""
    mine = spec(x)
    if sum((_axes(e) for e in entries), ()) != _axes(mine[axis]):
        entries = [None] * len(sizes)
    shape = [*x.shape[:axis], *sizes, *x.shape[axis + 1 :]]
    return _reshape(x, shape, [*mine[:axis], *entries, *mine[axis + 1 :]])


def resize(x: jax.Array, shape: Sequence[int], *, repeat: bool = False) -> jax.Array:
    """`x` padded, or cut, to `shape`: with zeros, or what comes last repeated. What changes loses its sharding."""
    if tuple(shape) == x.shape:
        return x
    ends = [new - old for new, old in zip(shape, x.shape, strict=True)]

    def pad(v: jax.Array) -> jax.Array:
        if repeat and 0 not in v.shape:
            return jnp.pad(v, [(0, end) for end in ends], mode="edge")
        return jax.lax.pad(v, jnp.zeros((), v.dtype), [(0, end, 0) for end in ends])

    def specs(mesh_shape: Mapping[str, int], types: Sequence[Any]) -> list[PartitionSpec]:
        kept = zip(types[0].sharding.spec, shape, x.shape, strict=True)
        return [PartitionSpec(*(e if new == old else None for e, new, old in kept))]

    return with_explicit_axes(lambda v: [pad(v)], [x], specs)[0]


def spec(x: jax.Array) -> tuple[Any, ...]:
    """What each dimension of `x` is sharded over, as its type says."""
    entries = tuple(jax.typeof(x).sharding.spec) if _is_explicit(x) else ()
    return entries + (None,) * (x.ndim - len(entries))


def reshard(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """`x` with that sharding in its type, if types carry any."""
    return jax.sharding.reshard(x, sharding) if _is_explicit(x) and jax.typeof(x).sharding != sharding else x


def _is_explicit(x: jax.Array) -> bool:
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def _axes(entry: Any) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _reshape(x: jax.Array, shape: Sequence[int], entries: Iterable[Any]) -> jax.Array:
    if not _is_explicit(x):
        return x.reshape(shape)
    mesh = jax.typeof(x).sharding.mesh
    return jax.lax.reshape(x, shape, out_sharding=NamedSharding(mesh, PartitionSpec(*entries)))
