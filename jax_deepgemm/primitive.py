"""One factory for the primitive of every operation: evaluation, abstract evaluation, sharding, batching."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import AxisType, ManualAxisType, NamedSharding, PartitionSpec

from jax_deepgemm import lowering, partition
from jax_deepgemm.batching import batch
from jax_deepgemm.config import Config, current
from jax_deepgemm.derivatives import differentiate
from jax_deepgemm.factors import assign, spec
from jax_deepgemm.op import Avals, Op, Params
from jax_deepgemm.partition import ClosedJaxpr
from jax_deepgemm.stacked import stacked
from jax_deepgemm.target import H100

OPS: dict[Primitive, Op] = {}
_Items = tuple[tuple[str, Any], ...]  # params, hashable


def make(op: Op) -> Callable[..., Sequence[jax.Array]]:
    """The function `(*operands, **params) -> results` that binds the primitive `jax_deepgemm_<name>` of `op`."""
    primitive = _registered(op)
    bind = functools.partial(_bind, op, primitive)
    differentiate(primitive, op, bind)
    stack = None
    if op.batched:
        stack = _registered(stacked(op, op.batched))
        differentiate(stack, op, bind, of_batch=True)
        batching.primitive_batchers[stack] = functools.partial(_batch, OPS[stack], stack, None)
    batching.primitive_batchers[primitive] = functools.partial(_batch, op, primitive, stack)

    def call(*operands: jax.Array, **params: Any) -> Sequence[jax.Array]:
        return bind(operands, current(), tuple(sorted(params.items())))

    return call


def _registered(op: Op) -> Primitive:
    primitive = Primitive(f"jax_deepgemm_{op.name}")
    OPS[primitive] = op
    primitive.multiple_results = True
    primitive.def_abstract_eval(functools.partial(_abstract_eval, op))
    primitive.def_impl(functools.partial(_run, primitive))
    mlir.register_lowering(primitive, functools.partial(lowering.lower_reference, op))
    mlir.register_lowering(primitive, functools.partial(lowering.lower_cuda, op), platform="cuda")
    return primitive


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
        if AxisType.Manual not in mesh.axis_types and _is_static(operands) and all(t.size for t in types):
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
    with jax.disable_jit(False):  # without jit it would come back here
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
    stack: Primitive | None,
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

    def bind(*xs: jax.Array) -> Any:
        return _bind(op, primitive, xs, settings, static)

    # A configuration is of the kernel for one problem.
    if op.batched is None or stack is None or params.get("config") is not None or not _is_static(operands):
        return batch(bind, factors, operands, axes)
    at_once = functools.partial(_at_once, op.batched.rule, _Stack(stack, settings, params))
    return batch(bind, factors, operands, axes, at_once, before_folding=op.batched.before_folding)


def _unbatched(x: jax.Array, axis: int | None) -> tuple[tuple[int, ...], Any]:
    return tuple(size for i, size in enumerate(x.shape) if i != axis), x.dtype


def _at_once(rule: Callable[..., Any], stack: _Stack, *operands: jax.Array) -> Sequence[jax.Array] | None:
    return rule(stack, operands, stack.params)


@dataclasses.dataclass(frozen=True)
class _Stack:
    """A `Stack`: the operation on a batch, with the settings and params that one problem was traced with."""

    primitive: Primitive
    settings: Config
    params: Params

    def takes(self, *operands: jax.Array, **changed: Any) -> bool:
        op, params = OPS[self.primitive], {**self.params, **changed}
        avals = [jax.typeof(x) for x in operands]
        target = self.settings.target or H100  # any that there are kernels for
        return op.plan(avals, op.abstract_eval(avals, **params), params, target, self.settings) is not None

    def __call__(self, *operands: jax.Array, **changed: Any) -> Sequence[jax.Array]:
        params = {**self.params, **changed}
        return _bind(OPS[self.primitive], self.primitive, operands, self.settings, tuple(sorted(params.items())))


def _is_static(operands: Sequence[jax.Array]) -> bool:
    """Not so in an export of any sizes."""
    return all(isinstance(size, int) for x in operands for size in x.shape)
