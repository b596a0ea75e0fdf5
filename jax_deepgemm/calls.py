"""The operations of ours in what JAX has traced."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import Primitive

from jax_deepgemm.config import Config
from jax_deepgemm.op import Op
from jax_deepgemm.primitive import OPS


@dataclasses.dataclass(frozen=True)
class Call:
    """An operation, and what it is called with."""

    op: Op
    primitive: Primitive
    operands: tuple[tuple[tuple[int, ...], Any], ...]  # shape and dtype
    params: tuple[tuple[str, Any], ...]
    settings: Config

    def avals(self) -> tuple[list[jax.ShapeDtypeStruct], list[jax.ShapeDtypeStruct]]:
        """Of the operands, and of the results."""
        avals = [jax.ShapeDtypeStruct(*operand) for operand in self.operands]
        return avals, list(self.op.abstract_eval(avals, **dict(self.params)))


def calls(jaxpr: Any) -> Iterator[Call]:
    """The operations in a jaxpr and in those within it."""
    for equation in jaxpr.eqns:
        op, params = OPS.get(equation.primitive), dict(equation.params)
        if op is None:
            for value in params.values():
                for inner in value if isinstance(value, (tuple, list)) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        yield from calls(inner)
            continue
        settings = params.pop("settings")
        del params["partitioned"]
        operands = tuple((v.aval.shape, v.aval.dtype) for v in equation.invars)
        yield Call(op, equation.primitive, operands, tuple(sorted(params.items())), settings)
