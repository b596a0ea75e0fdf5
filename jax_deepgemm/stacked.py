"""An operation on a batch of problems as an operation of its own: what `Batched` says, and the rest from `Op`."""

from __future__ import annotations

from typing import Any

import jax

from jax_deepgemm.factors import Factors
from jax_deepgemm.op import Avals, Batched, Op, Params


def stacked(op: Op, how: Batched) -> Op:
    """Where no kernel takes it, it runs by reference, one problem after the other."""

    def abstract_eval(avals: Avals, **params: Any) -> list[jax.ShapeDtypeStruct]:
        size = avals[0].shape[0]
        return [jax.ShapeDtypeStruct((size, *r.shape), r.dtype) for r in op.abstract_eval(_of_one(avals), **params)]

    def reference(*operands: jax.Array, **params: Any) -> list[jax.Array]:
        return list(jax.lax.map(lambda xs: tuple(op.reference(*xs, **params)), operands))

    def factors(avals: Avals, params: Params) -> Factors:
        assert op.factors is not None
        return op.factors(_of_one(avals), params).stacked()

    return Op(
        name=f"batched_{op.name}",
        abstract_eval=abstract_eval,
        reference=reference,
        plan=how.plan,
        configs=how.configs,
        ranked=how.ranked,
        operand_layouts=how.operand_layouts,
        aliases=how.aliases,
        inserted=how.inserted,
        factors=factors if op.factors else None,
        reduce=op.reduce,
        jvp=op.jvp,
        transpose=op.transpose,
        gradient=op.gradient,
    )


def _of_one(avals: Avals) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in avals]
