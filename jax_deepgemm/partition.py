"""An operation under jit over several devices: each computes on its own shard, as the factors of the operation allow.

XLA alone would gather every operand of a custom call. `custom_partitioning` carries the rule to Shardy, and calls back
from the compiler, once the shardings are settled, for what one device computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from jax_deepgemm.factors import Factors, assign, spec

Call = Callable[..., Sequence[jax.Array]]
Reduce = Callable[[Call, tuple[str, ...], Sequence[jax.Array]], Sequence[jax.Array]]
ClosedJaxpr = Any  # which JAX 0.12 no longer exports as a type


def partitioned(call: Call, factors: Factors, shapes: Sequence[Sequence[int]], reduce: Reduce | None) -> Call:
    """`call` on operands of `shapes`, shared between the devices that the enclosing jit runs on.

    `reduce(call, axes, operands)` computes the results where a summed factor is sharded over the mesh `axes`.
    """
    if reduce is None and factors.summed:
        raise ValueError(f"factors {factors.summed} are summed, but there is no `reduce`: make them whole")

    def function(*operands: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(call(*operands))

    def partition(mesh: Mesh, operands: Sequence[Any], results: Sequence[Any]) -> tuple[Any, ...]:
        axes = assign(
            factors,
            mesh.shape,
            [(x.shape, _spec(mesh, x)) for x in operands],
            [(x.shape, _spec(mesh, x)) for x in results],
        )
        summed = tuple(axis for factor in factors.summed for axis in axes.get(factor, ()))

        def local(*shards: jax.Array) -> tuple[jax.Array, ...]:
            # A mesh that the caller has set must not shard what is now one device's share.
            with use_abstract_mesh(AbstractMesh((), ())):
                if summed and reduce is not None:
                    return tuple(reduce(call, summed, shards))
                return tuple(call(*shards))

        wanted = [
            tuple(NamedSharding(mesh, spec(d, axes)) for d in dims) for dims in (factors.operands, factors.results)
        ]
        return mesh, local, wanted[1], wanted[0]

    shared = custom_partitioning(function)
    rule, keywords = factors.shardy(shapes)
    # JAX's own decoding raises where Shardy has split a mesh axis, as for two blocks over four devices.
    shared.def_partition(partition, decode_shardings=False, sharding_rule=rule, **keywords)
    return shared


def _spec(mesh: Mesh, x: Any) -> PartitionSpec:
    """How `x` is sharded over the axes of `mesh`: not at all in a dimension that whole axes do not describe."""
    indices = x.sharding.devices_indices_map((mesh.size,) * len(x.shape))  # a size that every sharding divides
    entries = []
    for dim in range(len(x.shape)):
        starts = np.array([indices[device][dim].start or 0 for device in mesh.devices.flat]).reshape(mesh.devices.shape)
        # Where an axis shards the dimension, its second device begins this far from its first.
        steps = {
            axis: int(np.take(starts, 1, position).flat[0])
            for position, axis in enumerate(mesh.axis_names)
            if mesh.shape[axis] > 1
        }
        axes = tuple(sorted((axis for axis in steps if steps[axis]), key=lambda axis: -steps[axis]))
        entries.append(axes if np.array_equal(starts, _starts(mesh, axes)) else None)
    return PartitionSpec(*entries)


def _starts(mesh: Mesh, axes: tuple[str, ...]) -> np.ndarray:
    """Where each device's part of a dimension of `mesh.size` begins, if it is sharded over `axes`, major first."""
    step, starts = mesh.size, np.zeros(mesh.devices.shape, int)
    for axis in axes:
        step //= mesh.shape[axis]
        starts += step * np.indices(mesh.devices.shape)[mesh.axis_names.index(axis)]
    return starts


def applies(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether this lowering is for several devices whose shares XLA decides.

    It is not inside shard_map, where each device already has its share, and not under jax.export, whose artifact must
    run without the callback into this process: there the call is emitted as it is, and XLA gathers its operands.
    """
    module = ctx.module_context
    axes = module.axis_context
    return (
        isinstance(axes, mlir.ShardingContext)
        and axes.num_devices > 1
        and axes.device_assignment is not None
        and axes.abstract_mesh is not None
        and not module.lowering_parameters.for_export
    )


def with_explicit_axes(
    call: Call,
    operands: Sequence[jax.Array],
    specs: Callable[[Mapping[str, int], Sequence[Any]], Sequence[PartitionSpec]],
) -> Sequence[jax.Array]:
    """`call(*operands)`; where the types of the operands carry shardings (`AxisType.Explicit`), so do the results'.

    `specs` gives those of the results, from the sizes of the mesh's axes and the operands' types.
    """
    types = [jax.typeof(x) for x in operands]
    mesh = next((t.sharding.mesh for t in types if AxisType.Explicit in t.sharding.mesh.axis_types), None)
    if mesh is None:
        return call(*operands)
    results = [NamedSharding(mesh, s) for s in specs(mesh.shape, types)]
    explicit = tuple(n for n, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)
    auto: Any = jax.sharding.auto_axes(call, axes=explicit, out_sharding=results)
    return auto(*operands)
