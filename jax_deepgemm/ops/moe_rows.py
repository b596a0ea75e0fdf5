"""The primitives beneath `moe_permute` and `moe_unpermute`, and their derivatives.

`rows` [T, k] says for each copy of a token which row of the sorted array it is; a copy of no expert has the complement
of its row, a negative number. Together these are all rows, each once. So to copy rows there, to sum them back, and the
products of rows with which one or the other is weighted, are each other's transposes: all three are differentiable, to
any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad

from jax_deepgemm import checks
from jax_deepgemm.factors import Factors
from jax_deepgemm.op import Avals, Layouts, Op, Params
from jax_deepgemm.ops import casting
from jax_deepgemm.ops.moe_plan import permute_fp8_plan, permute_plan, row_dots_plan, sort_plan, unpermute_plan
from jax_deepgemm.ops.prefix import running_sum
from jax_deepgemm.primitive import make

Call = Callable[..., Sequence[jax.Array]]


# --- sorting -----------------------------------------------------------------------------------------------------


def _sorted_avals(avals: Avals, *, num_experts: int) -> list[jax.ShapeDtypeStruct]:
    shapes = avals[0].shape, (num_experts,), (num_experts,)
    return [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes]


def _sort_reference(experts: jax.Array, *, num_experts: int) -> list[jax.Array]:
    flat = experts.reshape(-1)
    known = (flat >= 0) & (flat < num_experts)
    bucket = jnp.where(known, flat, num_experts)
    order = jnp.argsort(bucket, stable=True)
    row = jnp.zeros(flat.shape, jnp.int32).at[order].set(jnp.arange(flat.size, dtype=jnp.int32), unique_indices=True)
    sizes = jnp.zeros(num_experts + 1, jnp.int32).at[bucket].add(1)[:num_experts]
    return [jnp.where(known, row, ~row).reshape(experts.shape), sizes, running_sum(sizes)]


_sort: Any = make(
    Op(
        name="moe_sort",
        abstract_eval=_sorted_avals,
        reference=_sort_reference,
        plan=sort_plan,
        factors=lambda avals, params: Factors("t k -> t k, g, g", whole=("t", "k", "g")),
    )
)


def sort_by_expert(experts: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the experts int32 [T, k]: `rows` [T, k], and how many copies each has, and where its rows end: [G]."""
    rows, sizes, ends = _sort(experts, num_experts=num_experts)
    return rows, sizes, ends


# --- copying, summing and multiplying rows -----------------------------------------------------------------------


def _permuted_avals(avals: Avals) -> list[jax.ShapeDtypeStruct]:
    x, rows = avals[:2]
    return [jax.ShapeDtypeStruct((math.prod(rows.shape), x.shape[1]), x.dtype)]


def _permute_reference(x: jax.Array, rows: jax.Array, *weights: jax.Array) -> list[jax.Array]:
    flat = rows.reshape(-1)
    copies = jnp.arange(flat.size, dtype=jnp.int32)
    copy = jnp.zeros(flat.size, jnp.int32).at[jnp.where(flat < 0, ~flat, flat)].set(copies, unique_indices=True)
    y = x[copy // rows.shape[1]]
    for w in weights:
        y = (w.reshape(-1)[copy][:, None] * y.astype(jnp.float32)).astype(x.dtype)
    return [jnp.where((flat[copy] >= 0)[:, None], y, jnp.zeros((), x.dtype))]


def _unpermuted_avals(avals: Avals) -> list[jax.ShapeDtypeStruct]:
    y, rows = avals[:2]
    return [jax.ShapeDtypeStruct((rows.shape[0], y.shape[1]), y.dtype)]


def _unpermute_reference(y: jax.Array, rows: jax.Array, *weights: jax.Array) -> list[jax.Array]:
    total = jnp.zeros((rows.shape[0], y.shape[1]), jnp.float32)
    for j in range(rows.shape[1]):
        row = _row_of(y, rows[:, j])
        for w in weights:
            row = w[:, j, None] * row
        total += jnp.where((rows[:, j] >= 0)[:, None], row, 0)
    return [total.astype(y.dtype)]


def _dot_avals(avals: Avals) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(avals[2].shape, jnp.float32)]


def _dots_reference(x: jax.Array, y: jax.Array, rows: jax.Array) -> list[jax.Array]:
    wide = x.astype(jnp.float32)
    dots = [jnp.sum(wide * _row_of(y, rows[:, j]), axis=1) for j in range(rows.shape[1])]
    return [jnp.where(rows >= 0, jnp.stack(dots, axis=1) if dots else jnp.zeros(rows.shape, jnp.float32), 0)]


def _row_of(y: jax.Array, row: jax.Array) -> jax.Array:
    """Where there is one; the caller leaves out the others."""
    if y.shape[0] == 0:
        return jnp.zeros((row.shape[0], y.shape[1]), jnp.float32)
    return y[jnp.maximum(row, 0)].astype(jnp.float32)


def permute_rows(x: jax.Array, rows: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """x [T, D] -> [T k, D]: `y[rows[t, j]] = weights[t, j] x[t]`, zeros for copies of no expert. Weights: float32."""
    return _permute(x, rows, *_given(weights))[0]


def unpermute_rows(y: jax.Array, rows: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """y [R, D] -> [T, D]: `sum over j of weights[t, j] y[rows[t, j]]`, in float32."""
    return _unpermute(y, rows, *_given(weights))[0]


def row_dots(x: jax.Array, y: jax.Array, rows: jax.Array) -> jax.Array:
    """x [T, D], y [R, D] -> float32 [T, k]: `x[t] . y[rows[t, j]]`, zeros for copies of no expert."""
    return _dots(x, y, rows)[0]


def _given(weights: jax.Array | None) -> tuple[jax.Array, ...]:
    return () if weights is None else (weights,)


def _bilinear_jvp(
    call: Call, primals: Sequence[jax.Array], tangents: Sequence[Any], params: Params
) -> tuple[Sequence[jax.Array], Sequence[Any]]:
    """Of what is linear in each operand of floats: the sum over these, each replaced by its tangent."""
    terms = []
    for i, tangent in enumerate(tangents):
        if type(tangent) is not ad.Zero and jnp.issubdtype(primals[i].dtype, jnp.floating):
            terms.append(call(*primals[:i], tangent, *primals[i + 1 :])[0])
    results = call(*primals)
    total = jnp.zeros_like(results[0]) if not terms else terms[0]
    for term in terms[1:]:
        total = total + term
    return results, [total]


def _transpose_of(*of: Callable[..., jax.Array]) -> Callable[..., list[jax.Array | None]]:
    """`Op.transpose`, of `of[i](cotangent, *operands)`, the cotangent of operand i. That of `rows` is none."""

    def transpose(call: Call, cotangents: Sequence[jax.Array], operands: Sequence[Any], params: Params) -> Any:
        linear = [ad.is_undefined_primal(x) for x in operands]
        return [rule(cotangents[0], *operands) if yes else None for yes, rule in zip(linear, of, strict=False)] + [
            None
        ] * (len(operands) - len(of))

    return transpose


def _no_rule(*_: Any) -> Any:
    raise AssertionError("rows are integers, and nothing is linear in them")


def _moves(avals: Avals, rule: str) -> Factors:
    weights = ", t k" if len(avals) == 3 else ""
    return Factors(rule.format(weights), whole=("t", "k", "r"))


_permute: Any = make(
    Op(
        name="moe_permute",
        abstract_eval=_permuted_avals,
        reference=_permute_reference,
        plan=permute_plan,
        factors=lambda avals, params: _moves(avals, "t d, t k{} -> r d"),
        jvp=_bilinear_jvp,
        transpose=_transpose_of(
            lambda ct, x, rows, *w: unpermute_rows(ct, rows, *w),
            _no_rule,
            lambda ct, x, rows, w: row_dots(x, ct, rows),
        ),
    )
)
_unpermute: Any = make(
    Op(
        name="moe_unpermute",
        abstract_eval=_unpermuted_avals,
        reference=_unpermute_reference,
        plan=unpermute_plan,
        factors=lambda avals, params: _moves(avals, "r d, t k{} -> t d"),
        jvp=_bilinear_jvp,
        transpose=_transpose_of(
            lambda ct, y, rows, *w: permute_rows(ct, rows, *w),
            _no_rule,
            lambda ct, y, rows, w: row_dots(ct, y, rows),
        ),
    )
)
_dots: Any = make(
    Op(
        name="moe_row_dots",
        abstract_eval=_dot_avals,
        reference=_dots_reference,
        plan=row_dots_plan,
        factors=lambda avals, params: Factors("t d, r d, t k -> t k", summed=("d",), whole=("t", "k", "r")),
        reduce=lambda call, axes, operands, params: [jax.lax.psum(call(*operands)[0], axes)],
        jvp=_bilinear_jvp,
        transpose=_transpose_of(
            lambda ct, x, y, rows: unpermute_rows(y, rows, ct),
            lambda ct, x, y, rows: permute_rows(x, rows, ct),
        ),
    )
)


# --- copying and quantising --------------------------------------------------------------------------------------


def _quantised_avals(avals: Avals, *, smallest_amax: float) -> list[jax.ShapeDtypeStruct]:
    x, rows = avals
    shape = math.prod(rows.shape), x.shape[1]
    scales = checks.scale_shape(shape, (1, casting.TILE))
    return [jax.ShapeDtypeStruct(shape, jnp.float8_e4m3fn), jax.ShapeDtypeStruct(scales, jnp.float32)]


def _permute_fp8_reference(x: jax.Array, rows: jax.Array, *, smallest_amax: float) -> list[jax.Array]:
    (y,) = _permute_reference(x, rows)
    return casting.reference(y, straight=(1, casting.TILE), smallest_amax=smallest_amax)


def _quantised_layouts(avals: Avals, params: Params) -> Layouts:
    return [None, (0, 1)]


_permute_fp8: Any = make(
    Op(
        name="moe_permute_fp8",
        abstract_eval=_quantised_avals,
        reference=_permute_fp8_reference,
        plan=permute_fp8_plan,
        result_layouts=_quantised_layouts,
        factors=lambda avals, params: Factors("t d, t k -> r d, r b", whole=("t", "k", "r", "d", "b")),
    )
)


def permute_rows_to_fp8(x: jax.Array, rows: jax.Array) -> checks.Quantized:
    """`per_token_cast_to_fp8(permute_rows(x, rows))`, bit for bit, by one kernel. It has no derivative."""
    return checks.Quantized(*_permute_fp8(x, rows, smallest_amax=casting.SMALLEST_AMAX))
