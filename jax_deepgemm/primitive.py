"""One factory for the primitive of every operation: evaluation, abstract evaluation, sharding, batching."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType, ManualAxisType, NamedSharding, PartitionSpec

from jax_deepgemm import lowering, partition
from jax_deepgemm.batching import batch
from jax_deepgemm.config import Config, current
from jax_deepgemm.factors import assign, spec
from jax_deepgemm.op import Avals, Op, Params
from jax_deepgemm.partition import ClosedJaxpr

OPS: dict[Primitive, Op] = {}
_Items = tuple[tuple[str, Any], ...]  # params, hashable


def make(op: Op) -> Callable[..., Sequence[jax.Array]]:
    """The function `(*operands, **params) -> results` that binds the primitive `jax_deepgemm_<name>` of `op`."""
    primitive = Primitive(f"jax_deepgemm_{op.name}")
    OPS[primitive] = op
    primitive.multiple_results = True
    primitive.def_abstract_eval(functools.partial(_abstract_eval, op))
    primitive.def_impl(functools.partial(_run, primitive))
    mlir.register_lowering(primitive, functools.partial(lowering.lower_reference, op))
    mlir.register_lowering(primitive, functools.partial(lowering.lower_cuda, op), platform="cuda")
    batching.primitive_batchers[primitive] = functools.partial(_batch, op, primitive)
    ad.primitive_jvps[primitive] = functools.partial(_jvp, op, primitive)
    if op.transpose:
        ad.primitive_transposes[primitive] = functools.partial(_transpose, op, primitive)

    def call(*operands: jax.Array, **params: Any) -> Sequence[jax.Array]:
        return _bind(op, primitive, operands, current(), tuple(sorted(params.items())))

    return call


# The settings are a parameter, and so fixed at tracing: partitioned code is lowered while XLA compiles, which may be
# long after the user has left `with set_num_sms(...)`.
def _bind(op: Op, primitive: Primitive, operands: Sequence[jax.Array], settings: Config, params: _Items) -> Any:
    if op.factors is None:
        return primitive.bind(*operands, settings=settings, partitioned=None, **dict(params))
    types = [jax.typeof(x) for x in operands]
    factors = op.factors(types, dict(params))
    shapes = tuple((t.shape, t.dtype) for t in types)

    def call(*xs: jax.Array) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        shared = None
        static = all(isinstance(size, int) for t in types for size in t.shape)  # not so in an export of any sizes
        if AxisType.Manual not in mesh.axis_types and static and all(t.size for t in types):
            shared = _partitioned(op, primitive, shapes, settings, params, mesh)
        return primitive.bind(*xs, settings=settings, partitioned=shared, **dict(params))

    def result_specs(mesh_shape: Mapping[str, int], avals: Avals) -> list[PartitionSpec]:
        axes = assign(factors, mesh_shape, [(a.shape, a.sharding.spec) for a in avals])
        return [spec(dims, axes) for dims in factors.results]

    return partition.with_explicit_axes(call, operands, result_specs)


@functools.lru_cache(maxsize=4096)
def _partitioned(
    op: Op, primitive: Primitive, shapes: tuple, settings: Config, params: _Items, mesh: Any
) -> ClosedJaxpr:
    """The operation for several devices, as a jaxpr.

    It is a parameter of the primitive because JAX shows the devices to a lowering rule only if it finds, here, a
    primitive that needs them. So jit needs real devices, not an AbstractMesh, and one mesh in the whole program.
    """
    del mesh  # types in the jaxpr refer to it, so it is part of the key
    assert op.factors is not None
    static = dict(params)
    avals = [jax.ShapeDtypeStruct(*s) for s in shapes]

    def local(*shards: jax.Array, **changed: Any) -> Any:
        return primitive.bind(*shards, settings=settings, partitioned=None, **(static | changed))

    def reduce(call: partition.Call, axes: tuple[str, ...], shards: Sequence[jax.Array]) -> Any:
        assert op.reduce is not None
        return op.reduce(call, axes, shards, static)

    shared = partition.partitioned(
        local, op.factors(avals, static), [a.shape for a in avals], reduce if op.reduce else None
    )

    def named(*xs: jax.Array) -> Any:
        return shared(*xs)

    # What the callback depends on is nowhere in the HLO: the name keeps such programs apart in JAX's compilation cache.
    named.__name__ = f"{op.name}_{zlib.crc32(repr((settings, params)).encode()):08x}"
    return jax.make_jaxpr(jax.jit(named))(*avals)


def _run(primitive: Primitive, *operands: jax.Array, **params: Any) -> Any:
    return _jitted(primitive, tuple(sorted(params.items())))(*operands)


@functools.lru_cache(maxsize=4096)
def _jitted(primitive: Primitive, params: _Items) -> Callable[..., Any]:
    return jax.jit(functools.partial(primitive.bind, **dict(params)))


def _abstract_eval(op: Op, *avals: Any, settings: Config, partitioned: ClosedJaxpr | None, **params: Any) -> Any:
    del settings, partitioned
    kinds = [a.manual_axis_type for a in avals]
    if any(k.unreduced or k.reduced for k in kinds):
        raise NotImplementedError(f"{op.name} of operands that are unreduced or reduced over mesh axes")
    # Under shard_map a result varies over every axis that an operand varies over. Types without this would let a
    # wrong `out_specs` pass.
    varying = ManualAxisType(varying=frozenset().union(*(k.varying for k in kinds)))
    meshes = [a.sharding.mesh for a in avals if not a.sharding.mesh.empty]

    def result(shape: tuple[int, ...], dtype: Any) -> ShapedArray:
        if not meshes:
            return ShapedArray(shape, dtype)
        sharding = NamedSharding(meshes[0], PartitionSpec(*(None,) * len(shape)))
        return ShapedArray(shape, dtype, sharding=sharding, manual_axis_type=varying)

    return [result(r.shape, r.dtype) for r in op.abstract_eval(avals, **params)]


def _batch(
    op: Op,
    primitive: Primitive,
    operands: Sequence[jax.Array],
    axes: Sequence[int | None],
    *,
    settings: Config,
    partitioned: ClosedJaxpr | None,
    **params: Any,
) -> Any:
    del partitioned  # for the unbatched shapes
    static = tuple(sorted(params.items()))
    shapes = [jax.ShapeDtypeStruct(*_unbatched(x, d)) for x, d in zip(operands, axes, strict=True)]
    factors = op.factors(shapes, params) if op.factors else None
    return batch(lambda *xs: _bind(op, primitive, xs, settings, static), factors, operands, axes)


def _unbatched(x: jax.Array, axis: int | None) -> tuple[tuple[int, ...], Any]:
    return tuple(size for i, size in enumerate(x.shape) if i != axis), x.dtype


def _jvp(op: Op, primitive: Primitive, primals: Any, tangents: Any, **params: Any) -> Any:
    if op.jvp is None:
        raise NotImplementedError(f"{op.name} cannot be differentiated: {op.gradient}")
    call, static = _again(op, primitive, **params)
    return op.jvp(call, primals, tangents, static)


def _transpose(op: Op, primitive: Primitive, cotangents: Any, *operands: Any, **params: Any) -> Any:
    assert op.transpose is not None
    if all(type(c) is ad.Zero for c in cotangents):
        return [None] * len(operands)
    call, static = _again(op, primitive, **params)
    return op.transpose(call, [ad.instantiate_zeros(c) for c in cotangents], operands, static)


def _again(
    op: Op, primitive: Primitive, *, settings: Config, partitioned: ClosedJaxpr | None, **params: Any
) -> tuple[Callable[..., Any], Params]:
    """The operation with the settings that it was traced with, for other operands and params; and its params."""
    del partitioned  # for the shapes that it was traced with

    def call(*operands: jax.Array, **changed: Any) -> Any:
        return _bind(op, primitive, operands, settings, tuple(sorted((params | changed).items())))

    return call, params
