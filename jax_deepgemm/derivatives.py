"""Derivatives of an operation, by the rules that it has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad

from jax_deepgemm.config import Config
from jax_deepgemm.op import Op, Params
from jax_deepgemm.partition import ClosedJaxpr

Again = Callable[..., tuple[Callable[..., Any], Params]]


def differentiate(primitive: Primitive, op: Op, bind: Callable[..., Any], *, of_batch: bool = False) -> None:
    """Gives `primitive` the derivatives of `op`, or, with `of_batch`, those of a batch of it.

    bind: `(operands, settings, items of params)` -> results of `op`. Under vmap, so that of whatever the derivatives of
        a batch are made, it is batched as best it can.
    """
    again = functools.partial(_again, bind, of_batch)
    ad.primitive_jvps[primitive] = functools.partial(_jvp, op, again)
    if op.transpose:
        ad.primitive_transposes[primitive] = functools.partial(_transpose, op, again)


def _jvp(op: Op, again: Again, primals: Any, tangents: Any, **params: Any) -> Any:
    if op.jvp is None:
        raise NotImplementedError(f"{op.name} cannot be differentiated: {op.gradient}")
    call, static = again(**params)
    return op.jvp(call, primals, tangents, static)


def _transpose(op: Op, again: Again, cotangents: Any, *operands: Any, **params: Any) -> Any:
    assert op.transpose is not None
    if all(type(c) is ad.Zero for c in cotangents):
        return [None] * len(operands)
    call, static = again(**params)
    return op.transpose(call, [ad.instantiate_zeros(c) for c in cotangents], operands, static)


def _again(
    bind: Callable[..., Any], of_batch: bool, *, settings: Config, partitioned: ClosedJaxpr | None, **params: Any
) -> tuple[Callable[..., Any], Params]:
    """The operation with the settings that it was traced with, for other operands and params; and its params."""
    del partitioned  # for the shapes that it was traced with

    def call(*operands: jax.Array, **changed: Any) -> Any:
        def one(*xs: jax.Array) -> Any:
            return bind(xs, settings, tuple(sorted((params | changed).items())))

        return (jax.vmap(one) if of_batch else one)(*operands)

    return call, params
