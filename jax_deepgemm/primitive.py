"""One factory for the primitive of every operation: abstract evaluation, lowering, batching, sharding."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType, ManualAxisType, NamedSharding, PartitionSpec

from jax_deepgemm import _native, compile, config, partition
from jax_deepgemm.batching import batch
from jax_deepgemm.factors import Factors, assign, spec
from jax_deepgemm.launch import Launch
from jax_deepgemm.target import Target, lowering_target
from jax_deepgemm.warn import warn_once

Avals = Sequence[jax.ShapeDtypeStruct | jax.core.ShapedArray]
Params = Mapping[str, Any]
Layouts = Sequence[tuple[int, ...] | None]
_Items = tuple[tuple[str, Any], ...]  # params, hashable


@dataclasses.dataclass(frozen=True)
class Op:
    """What an operation is. `params` are static and hashable; the functions of them are pure.

    name: as in the public API.
    abstract_eval: `(avals, **params)` -> shapes and dtypes of the results.
    reference: `(*arrays, **params)` -> results, in plain JAX, on any platform.
    plan: `(avals, out_avals, params, target, config)` -> the launch, or None where no kernel fits the problem.
    operand_layouts, result_layouts: `(avals, params)` -> for each, minor-to-major order or None for row-major; `avals`
        are the operands' in both. Asked of XLA where the kernel runs.
    aliases: `(avals, params)` -> {operand: result} that share a buffer.
    factors: `(avals, params)` -> how dimensions belong together, for sharding and batching. None: not described.
    reduce: `(call, axes, operands, params)` -> results, where a summed factor is sharded over the mesh `axes`;
        `call(*operands, **params)` is the operation on this device's shards.
    gradient: what to say to those who differentiate it.
    """

    name: str
    abstract_eval: Callable[..., Sequence[jax.ShapeDtypeStruct]]
    reference: Callable[..., Sequence[jax.Array]]
    plan: Callable[[Avals, Avals, Params, Target, config.Config], Launch | None]
    operand_layouts: Callable[[Avals, Params], Layouts] | None = None
    result_layouts: Callable[[Avals, Params], Layouts] | None = None
    aliases: Callable[[Avals, Params], Mapping[int, int]] | None = None
    factors: Callable[[Avals, Params], Factors] | None = None
    reduce: Callable[..., Sequence[jax.Array]] | None = None
    gradient: str = "it has no derivative rule"


def make(op: Op) -> Callable[..., Sequence[jax.Array]]:
    """The function `(*operands, **params) -> results` that binds the primitive `jax_deepgemm_<name>` of `op`."""
    primitive = Primitive(f"jax_deepgemm_{op.name}")
    primitive.multiple_results = True
    primitive.def_abstract_eval(functools.partial(_abstract_eval, op))
    primitive.def_impl(functools.partial(_run, primitive))
    mlir.register_lowering(primitive, functools.partial(_lower_reference, op))
    mlir.register_lowering(primitive, functools.partial(_lower_cuda, op), platform="cuda")
    batching.primitive_batchers[primitive] = functools.partial(_batch, op, primitive)
    ad.primitive_jvps[primitive] = functools.partial(_jvp, op)

    def call(*operands: jax.Array, **params: Any) -> Sequence[jax.Array]:
        return _bind(op, primitive, operands, config.current(), tuple(sorted(params.items())))

    return call


# The settings are a parameter, and so fixed at tracing: partitioned code is lowered while XLA compiles, which may be
# long after the user has left `with set_num_sms(...)`.
def _bind(op: Op, primitive: Primitive, operands: Sequence[jax.Array], settings: config.Config, params: _Items) -> Any:
    if op.factors is None:
        return primitive.bind(*operands, settings=settings, partitioned=None, **dict(params))
    types = [jax.typeof(x) for x in operands]
    factors = op.factors(types, dict(params))
    shapes = tuple((t.shape, t.dtype) for t in types)

    def call(*xs: jax.Array) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        shared = None
        if AxisType.Manual not in mesh.axis_types and all(t.size for t in types):
            shared = _partitioned(op, primitive, shapes, settings, params, mesh)
        return primitive.bind(*xs, settings=settings, partitioned=shared, **dict(params))

    def result_specs(mesh_shape: Mapping[str, int], avals: Avals) -> list[PartitionSpec]:
        axes = assign(factors, mesh_shape, [(a.shape, a.sharding.spec) for a in avals])
        return [spec(dims, axes) for dims in factors.results]

    return partition.with_explicit_axes(call, operands, result_specs)


@functools.lru_cache(maxsize=4096)
def _partitioned(
    op: Op, primitive: Primitive, shapes: tuple, settings: config.Config, params: _Items, mesh: Any
) -> ClosedJaxpr:
    """The operation for several devices, as a jaxpr.

    It is a parameter of the primitive because JAX shows the devices to a lowering rule only if it finds, here, a
    primitive that needs them.
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

    shared = partition.partitioned(local, op.factors(avals, static), reduce if op.reduce else None)

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


def _abstract_eval(op: Op, *avals: Any, settings: config.Config, partitioned: ClosedJaxpr | None, **params: Any) -> Any:
    del settings, partitioned
    kinds = [a.manual_axis_type for a in avals]
    if any(k.unreduced or k.reduced for k in kinds):
        raise NotImplementedError(f"{op.name} of operands that are unreduced or reduced over mesh axes")
    # Under shard_map a result varies over every axis that an operand varies over. Types without this would let a
    # wrong `out_specs` pass.
    varying = ManualAxisType(varying=frozenset().union(*(k.varying for k in kinds)))
    meshes = [a.sharding.mesh for a in avals if not a.sharding.mesh.empty]

    def result(shape: tuple[int, ...], dtype: Any) -> jax.core.ShapedArray:
        if not meshes:
            return jax.core.ShapedArray(shape, dtype)
        sharding = NamedSharding(meshes[0], PartitionSpec(*(None,) * len(shape)))
        return jax.core.ShapedArray(shape, dtype, sharding=sharding, manual_axis_type=varying)

    return [result(r.shape, r.dtype) for r in op.abstract_eval(avals, **params)]


def _lower_reference(
    op: Op,
    ctx: mlir.LoweringRuleContext,
    *operands: Any,
    settings: config.Config,
    partitioned: ClosedJaxpr | None,
    **params: Any,
) -> Any:
    del settings
    run = functools.partial(op.reference, **params)
    if partitioned is not None and partition.applies(ctx):
        run = jaxpr_as_fun(partitioned)
    return mlir.lower_fun(run, multiple_results=True)(ctx, *operands)


def _lower_cuda(
    op: Op,
    ctx: mlir.LoweringRuleContext,
    *operands: Any,
    settings: config.Config,
    partitioned: ClosedJaxpr | None,
    **params: Any,
) -> Any:
    reference = functools.partial(
        _lower_reference, op, ctx, *operands, settings=settings, partitioned=partitioned, **params
    )
    if partitioned is not None and partition.applies(ctx):
        return reference()
    target = settings.target or lowering_target(ctx)
    static = all(isinstance(size, int) for a in ctx.avals_in for size in a.shape)  # not so under shape polymorphism
    launch = op.plan(ctx.avals_in, ctx.avals_out, params, target, settings) if target and static else None
    if not launch or not target:
        return reference()
    try:
        binary = compile.compile_kernel(launch.kernel, target.arch)
    except compile.NvrtcUnavailable as error:
        warn_once(f"jax_deepgemm runs its operations by reference, slowly: {error}")
        return reference()
    _native.ensure_registered()
    lower = jax.ffi.ffi_lowering(
        "jax_deepgemm.launch",
        operand_layouts=op.operand_layouts and op.operand_layouts(ctx.avals_in, params),
        result_layouts=op.result_layouts and op.result_layouts(ctx.avals_in, params),
        operand_output_aliases=dict(op.aliases(ctx.avals_in, params)) if op.aliases else None,
    )
    return lower(ctx, *operands, **launch.attributes(binary))


def _batch(
    op: Op,
    primitive: Primitive,
    operands: Sequence[jax.Array],
    axes: Sequence[int | None],
    *,
    settings: config.Config,
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


def _jvp(op: Op, primals: Any, tangents: Any, **params: Any) -> Any:
    raise NotImplementedError(f"{op.name} cannot be differentiated: {op.gradient}")
