"""The first half of gated MLPs for rows in groups: an m-grouped FP8 GEMM whose result is gated and quantised."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jax_deepgemm import checks
from jax_deepgemm.checks import Quantized
from jax_deepgemm.factors import Factors
from jax_deepgemm.op import Avals, Layouts, Op, Params
from jax_deepgemm.ops import casting
from jax_deepgemm.ops.m_grouped_fp8_gemm import m_grouped_fp8_gemm_nt_contiguous
from jax_deepgemm.ops.m_grouped_fp8_gemm_swiglu_plan import TILE, plan
from jax_deepgemm.ops.swiglu import swiglu, swiglu_to_fp8
from jax_deepgemm.primitive import make

_FEWEST_ROWS = 128  # of a group on average: the kernel's tiles have as many


def m_grouped_fp8_gemm_swiglu(a: Quantized, b: Quantized, ends: jax.Array, dtype: jnp.dtype) -> Quantized:
    """`swiglu_to_fp8(m_grouped_fp8_gemm_nt_contiguous(a, b, ends, use_psum_layout=True, out_dtype=dtype))`.

    By one kernel where groups have rows enough, or else by two: the same to the bit. No derivative.
    """
    m, (groups, n, _) = a.data.shape[0], b.data.shape
    many = isinstance(m, int) and m >= _FEWEST_ROWS * groups  # nobody knows of a symbolic number, in an export
    if dtype == jnp.bfloat16 and n % (2 * TILE) == 0 and many:
        return Quantized(*_call(*a, *b, ends, smallest_amax=casting.SMALLEST_AMAX))
    return swiglu_to_fp8(m_grouped_fp8_gemm_nt_contiguous(a, b, ends, use_psum_layout=True, out_dtype=dtype))


# The operands of the primitive: a's data and scale, b's data and scale, and where each group ends.


def _abstract_eval(avals: Avals, *, smallest_amax: float) -> list[jax.ShapeDtypeStruct]:
    shape = avals[0].shape[0], avals[2].shape[1] // 2
    scales = checks.scale_shape(shape, (1, casting.TILE))
    return [jax.ShapeDtypeStruct(shape, jnp.float8_e4m3fn), jax.ShapeDtypeStruct(scales, jnp.float32)]


def _reference(
    a: jax.Array, a_scale: jax.Array, b: jax.Array, b_scale: jax.Array, ends: jax.Array, *, smallest_amax: float
) -> list[jax.Array]:
    h = m_grouped_fp8_gemm_nt_contiguous((a, a_scale), (b, b_scale), ends, use_psum_layout=True)
    return casting.reference(swiglu(h), straight=(1, casting.TILE), smallest_amax=smallest_amax)


def _operand_layouts(avals: Avals, params: Params) -> Layouts:
    return [None, (0, 1), None, None, None]


def _result_layouts(avals: Avals, params: Params) -> Layouts:
    return [None, (0, 1)]


def _factors(avals: Avals, params: Params) -> Factors:
    rule = "m k, m kb, g n k, g nb kb, g -> m i, m ib"
    return Factors(rule, whole=("m", "k", "kb", "g", "n", "nb", "i", "ib"))


_call: Any = make(
    Op(
        name="m_grouped_fp8_gemm_swiglu",
        abstract_eval=_abstract_eval,
        reference=_reference,
        plan=plan,
        operand_layouts=_operand_layouts,
        result_layouts=_result_layouts,
        factors=_factors,
        gradient="`moe_mlp` has derivatives, by other kernels",
    )
)
