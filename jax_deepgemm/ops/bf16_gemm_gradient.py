"""Derivatives of the BF16 GEMM: it is linear in each operand, and its transposes are GEMMs of other layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad

from jax_deepgemm.op import Params

Call = Callable[..., Sequence[jax.Array]]

# By the layout of D's GEMM, those of the operands' cotangents: (layout, first, second), where "d" is D's cotangent.
# With nt, D = A B^T, so that of A is D B and that of B is D^T A.
_OF_A = {"nt": ("nn", "d", "b"), "nn": ("nt", "d", "b"), "tn": ("nt", "b", "d"), "tt": ("tt", "b", "d")}
_OF_B = {"nt": ("tn", "d", "a"), "nn": ("tn", "a", "d"), "tn": ("nn", "a", "d"), "tt": ("tt", "d", "a")}


def jvp(
    call: Call, primals: Sequence[jax.Array], tangents: Sequence[Any], params: Params
) -> tuple[Sequence[jax.Array], Sequence[Any]]:
    """D and its tangent `dA B + A dB + dC`, a GEMM for each term that adds to what is there."""
    a, b = primals[:2]
    of_a, of_b, *of_c = tangents
    total = [t for t in of_c if type(t) is not ad.Zero]
    if type(of_a) is not ad.Zero:
        total = [call(of_a, b, *total)[0]]
    if type(of_b) is not ad.Zero:
        total = [call(a, of_b, *total)[0]]
    return call(*primals), total


def transpose(
    call: Call, cotangents: Sequence[jax.Array], operands: Sequence[Any], params: Params
) -> list[jax.Array | None]:
    """The cotangents of those operands that are linear: of `a` or `b`, and of `c`."""
    a, b = operands[:2]
    (d,) = cotangents
    linear = [ad.is_undefined_primal(x) for x in operands]
    found: list[jax.Array | None] = [None] * len(operands)
    known = {"a": a, "b": b, "d": d.astype(jnp.bfloat16)}
    for i, table in enumerate((_OF_A, _OF_B)):
        if linear[i]:
            layout, first, second = table[params["layout"]]
            changed = {"layout": layout, "out_dtype": jnp.dtype(jnp.bfloat16), "config": None}
            (found[i],) = call(known[first], known[second], **changed)
    if len(operands) == 3 and linear[2]:
        found[2] = d
    return found
