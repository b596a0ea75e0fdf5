"""Quantisation to FP8 of groups that lie along K: each begins with a block, and K becomes contiguous."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_deepgemm import checks
from jax_deepgemm.checks import Quantized
from jax_deepgemm.config import Config
from jax_deepgemm.factors import Factors
from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar
from jax_deepgemm.op import Avals, Layouts, Op, Params
from jax_deepgemm.ops import k_groups
from jax_deepgemm.ops.casting import SMALLEST_AMAX, reference
from jax_deepgemm.ops.casting_plan import MAX_EXTENT, TILE, cast_block, cast_template
from jax_deepgemm.ops.prefix import running_sum
from jax_deepgemm.primitive import make
from jax_deepgemm.target import Target

_WIDE = (jnp.bfloat16, jnp.float16, jnp.float32)


def k_grouped_cast_to_fp8(x: jax.Array, ks: jax.Array, *, use_ue8m0: bool = False) -> Quantized:
    """Quantises and transposes an operand of `k_grouped_fp8_gemm_tn_contiguous`: a scale for each column and 128 rows.

    x: bfloat16, float16 or float32 [K, M], of any size.
    ks: integers [G], how many rows each group has, as for the GEMM; read on the device.
    use_ue8m0: round scales up to powers of two, kept as float8_e8m0fnu.

    FP8 tensor cores want K contiguous, and a block of 128 of K under one scale must not reach into another group. So
    what is returned is transposed, and in it each group begins at a multiple of 128, behind the one before: data
    float8_e4m3fn [M, P] and scale float32 (or float8_e8m0fnu) [M, P / 128], where P is the most that groups padded so
    can need, (K + 127 min(G, K)) rounded down to a multiple of 128. What no group fills is zero. Each group is
    `per_channel_cast_to_fp8` of its rows, bit for bit. A NaN or Inf in `x` makes the block it is in NaN.

    Raises TypeError or ValueError, naming the argument, where `x` or `ks` is none of these; NotImplementedError when
    differentiated.

    >>> x = jnp.ones((100, 16), jnp.bfloat16)
    >>> k_grouped_cast_to_fp8(x, jnp.array([30, 70])).data.shape
    (16, 256)
    """
    x = checks.array("x", x, _WIDE, "K, M")
    return Quantized(*_call(x, k_groups.checked_sizes(ks), use_ue8m0=checks.flag("use_ue8m0", use_ue8m0)))


def _abstract_eval(avals: Avals, *, use_ue8m0: bool) -> list[jax.ShapeDtypeStruct]:
    (k, m), (groups,) = avals[0].shape, avals[1].shape
    extent = k_groups.padded_extent(k, groups)
    scale_dtype = jnp.float8_e8m0fnu if use_ue8m0 else jnp.float32
    return [
        jax.ShapeDtypeStruct((m, extent), jnp.float8_e4m3fn),
        jax.ShapeDtypeStruct((m, extent // TILE), scale_dtype),
    ]


def _reference(x: jax.Array, ks: jax.Array, *, use_ue8m0: bool) -> list[jax.Array]:
    k, groups = x.shape[0], ks.shape[0]
    at = jnp.arange(k_groups.padded_extent(k, groups), dtype=jnp.uint32)
    if at.size == 0:
        return reference(x[:0], turned=(TILE, 1), use_ue8m0=use_ue8m0)
    starts, ends = k_groups.bounds(ks, k)
    padded_ends = running_sum((ends - starts + (TILE - 1)) // TILE * TILE)
    group = jnp.searchsorted(padded_ends, at, side="right")
    mine = jnp.minimum(group, groups - 1)
    padded_starts = jnp.concatenate([jnp.zeros((1,), jnp.uint32), padded_ends[:-1]])
    row = starts[mine] + (at - padded_starts[mine])
    there = (group < groups) & (row < ends[mine])
    spread = jnp.where(there[:, None], x[jnp.where(there, row, 0)], 0)
    return reference(spread, turned=(TILE, 1), use_ue8m0=use_ue8m0)


def _plan(avals: Avals, out_avals: Avals, params: Params, target: Target, config: Config) -> Launch | None:
    x, ks = avals
    (k, m), (groups,), extent = x.shape, ks.shape, out_avals[0].shape[1]
    grid = extent // TILE * -(-m // TILE)
    if target.arch != "sm_90a" or 0 in (k, m, extent) or max(k, m, extent) > MAX_EXTENT or grid >= 2**31:
        return None
    template = cast_template(np.dtype(x.dtype), (extent, m), None, (TILE, 1), params["use_ue8m0"])
    sizes = (Scalar(size, "uint32") for size in (groups, k, extent, m))
    return Launch(
        kernel=Kernel("sm90_k_grouped_cast_fp8", template),
        grid=(grid, 1, 1),
        block=cast_block(template),
        pdl=config.pdl,
        arguments=(*map(Pointer, range(4)), *sizes, Scalar(SMALLEST_AMAX, "float32")),
    )


def _factors(avals: Avals, params: Params) -> Factors:
    """Sizes count rows from the first of all, so neither rows nor groups are shared out."""
    extent = k_groups.padded_extent(avals[0].shape[0], avals[1].shape[0])
    sizes = (("p", extent), ("pb", extent // TILE))
    return Factors("k m, g -> m p, m pb", sizes, whole=("k", "g", "p", "pb"))


def _result_layouts(avals: Avals, params: Params) -> Layouts:
    """Scales with the rows fastest, as the GEMM reads them."""
    return [None, (0, 1)]


_call: Any = make(
    Op(
        name="k_grouped_cast_to_fp8",
        abstract_eval=_abstract_eval,
        reference=_reference,
        plan=_plan,
        result_layouts=_result_layouts,
        factors=_factors,
        gradient="differentiate around it with jax.custom_vjp",
    )
)
