"""Lowering of an operation: to one launch of a kernel on a GPU that has one, else to its reference in plain JAX."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import jaxpr_as_fun
from jax.interpreters import mlir

from jax_deepgemm import _native, checks, compile, env, partition, tuned
from jax_deepgemm.config import Config
from jax_deepgemm.launch import Launch
from jax_deepgemm.op import Avals, Layouts, Op, Params
from jax_deepgemm.partition import ClosedJaxpr
from jax_deepgemm.target import Target, lowering_target
from jax_deepgemm.warn import warn_once


def lower_reference(
    op: Op,
    ctx: mlir.LoweringRuleContext,
    *operands: Any,
    settings: Config,
    partitioned: ClosedJaxpr | None,
    **params: Any,
) -> Any:
    del settings
    run = functools.partial(op.reference, **params)
    if partitioned is not None and partition.applies(ctx):
        run = jaxpr_as_fun(partitioned)
    return mlir.lower_fun(run, multiple_results=True)(ctx, *operands)


def launch_of(
    op: Op, avals: Avals, out_avals: Avals, params: Params, target: Target | None, settings: Config
) -> tuple[Launch | None, str]:
    """The launch of an operation and who chose its configuration; no launch where the reference is taken instead."""
    static = all(isinstance(size, int) for a in avals for size in a.shape)  # not so under shape polymorphism
    if target is None or not static:
        return None, ""
    return tuned.plan(op, avals, out_avals, params, target, settings)


def lower_cuda(
    op: Op,
    ctx: mlir.LoweringRuleContext,
    *operands: Any,
    settings: Config,
    partitioned: ClosedJaxpr | None,
    **params: Any,
) -> Any:
    reference = functools.partial(
        lower_reference, op, ctx, *operands, settings=settings, partitioned=partitioned, **params
    )
    if partitioned is not None and partition.applies(ctx):
        return reference()
    target = settings.target or lowering_target(ctx)
    avals: Any = ctx.avals_in
    launch, chosen_by = launch_of(op, avals, ctx.avals_out, params, target, settings)
    if target is None or launch is None:
        return reference()
    if env.PRINT_CONFIGS.flag():
        text = f"{checks.call(op.name, avals, ctx.avals_out)}: {_describe(launch, target.arch)}"
        print(f"{text}, chosen by {chosen_by}" if chosen_by else text, file=sys.stderr)
    try:
        binary = compile.compile_kernel(launch.kernel, target.arch)
    except compile.NvrtcUnavailable as error:
        warn_once(f"jax_deepgemm runs its operations by reference, slowly: {error}")
        return reference()
    _native.ensure_registered()
    values, types, layouts, aliases = kernel_operands(op, operands, avals, params, mlir.ir_constant)
    lower = jax.ffi.ffi_lowering(
        _native.TARGET,
        operand_layouts=layouts,
        result_layouts=op.result_layouts and op.result_layouts(avals, params),
        operand_output_aliases=aliases or None,
    )
    return lower(ctx.replace(avals_in=types), *values, **launch.attributes(binary))


def kernel_operands(
    op: Op, operands: Sequence[Any], avals: Avals, params: Params, constant: Callable[[np.ndarray], Any]
) -> tuple[list[Any], list[Any], Layouts, dict[int, int]]:
    """The operands of the kernel: those of the operation, and `constant(array)` for each array that it inserts.

    With them their types, their layouts, and which of them share a buffer with which result.
    """
    values, types = list(operands), list(avals)
    layouts = list(op.operand_layouts(avals, params)) if op.operand_layouts else [None] * len(avals)
    aliases = dict(op.aliases(avals, params)) if op.aliases else {}
    for position, value in sorted(op.inserted(avals, params).items()) if op.inserted else ():
        values.insert(position, constant(value))
        types.insert(position, ShapedArray(value.shape, value.dtype))
        layouts.insert(position, None)
        aliases = {operand + (operand >= position): result for operand, result in aliases.items()}
    return values, types, layouts, aliases


def _describe(launch: Launch, arch: str) -> str:
    grid, block, cluster = ("x".join(map(str, sizes)) for sizes in (launch.grid, launch.block, launch.cluster))
    text = f"{compile.describe(launch.kernel, arch)}, grid {grid}, block {block}, cluster {cluster}"
    pdl = ", programmatic dependent launch" if launch.pdl else ""
    return f"{text}, {launch.shared_memory} bytes of shared memory{pdl}"
