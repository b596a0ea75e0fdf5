"""What tests of programs for several devices share: meshes, placement, one compilation for all that is asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

BOTH = [AxisType.Auto, AxisType.Explicit]
GATHER, SUM = {"all-gather"}, {"all-reduce"}


def stack(trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def turned(spec: P) -> P:
    """Of the transposed matrix."""
    return P(*reversed([*spec, None][:2]))


def mesh_of(kind: AxisType, *sizes: int) -> Any:
    return jax.make_mesh(sizes, ("x", "y")[: len(sizes)], axis_types=(kind,) * len(sizes))


def put(tree: Any, mesh: Any, *specs: P) -> Any:
    """The leaves of `tree`, sharded. One spec serves all of them."""
    leaves, structure = jax.tree.flatten(tree)
    specs = specs * len(leaves) if len(specs) == 1 else specs
    hosted = map(np.asarray, leaves)  # or XLA would compile a program that moves each
    return structure.unflatten(jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(hosted, specs, strict=True))


def run(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, set[str]]:
    """The result of the jitted function, and the collectives of its program. `options`: jit's."""
    jitted = jax.jit(function, **options)
    text = jitted.lower(*args).compile().as_text()
    return jitted(*args), set(re.findall("all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", text))


def collectives(function: Callable[..., Any], *args: Any) -> set[str]:
    """Those of the jitted function's program."""
    return run(function, *args)[1]


def mapped(function: Callable[..., Any], in_specs: Any, out_specs: Any, **options: Any) -> Callable[..., Any]:
    """`function` under shard_map over 4 x 2 devices, and jit. `options`: shard_map's."""
    mesh = mesh_of(AxisType.Auto, 4, 2)
    shared = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **options)
    return lambda *args: run(shared, *args)[0]
