"""GEMMs of BF16 operands whose rows come in groups, each with weights of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_deepgemm import checks
from jax_deepgemm.factors import Factors
from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig
from jax_deepgemm.op import Avals, Op, Params
from jax_deepgemm.ops import m_grouped_bf16_gemm_plan as plans
from jax_deepgemm.ops.m_grouped_checks import (
    OUT_DTYPES,
    checked_expected_m,
    checked_grouped_layout,
    checked_layout,
    checked_sizes,
)
from jax_deepgemm.ops.m_grouped_plan import typical_groups
from jax_deepgemm.ops.m_grouped_reference import by_groups, groups_of_rows, zero_beyond
from jax_deepgemm.primitive import make

CONFIGS = (Bf16GemmConfig,)
_NO_GRADIENT = "`ragged_dot` has derivatives, or differentiate around it with jax.custom_vjp"


def m_grouped_bf16_gemm_nt_contiguous(
    a: jax.Array,
    b: jax.Array,
    grouped_layout: jax.Array,
    *,
    use_psum_layout: bool = False,
    out_dtype: DTypeLike = jnp.bfloat16,
    config: Bf16GemmConfig | None = None,
) -> jax.Array:
    """`A[i] @ B[g].T` for each row i of A, where g is the group of the row, of bfloat16 matrices.

    a: bfloat16 [M, K].
    b: bfloat16 [G, N, K].
    grouped_layout: integers [M], the group of each row; -1, or anything else outside 0 .. G - 1, is none. Rows may come
        in any order, but those of a group in one piece are fast. With `use_psum_layout`: integers [G], the row at which
        each group ends and the next begins; an end beyond M, or before the one before it, is taken as that.
    out_dtype: bfloat16 or float32.
    config: the kernel's tiles, of this layout and without clusters that share an operand, instead of what `tune` found
        or the heuristics choose. Only a kernel heeds it.

    Groups begin and end on any row and may be empty: nothing is padded. Sizes may be zero; K, and a row of the result,
    are multiples of 16 bytes. The layout is read on the device: the host knows M and G alone, and one compiled program
    serves all sizes of the groups.

    Returns `out_dtype` [M, N]; rows of no group are zeros. NaN and Inf stay in the rows and columns they belong to.

    Under jit over several devices, `b` sharded over N stays where it is; all else is gathered.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes; NotImplementedError when
    differentiated.

    The name is DeepGEMM's, which wants groups padded to its tiles' rows.

    >>> a, b = jnp.ones((6, 256), jnp.bfloat16), jnp.ones((2, 128, 256), jnp.bfloat16)
    >>> m_grouped_bf16_gemm_nt_contiguous(a, b, jnp.array([0, 0, 0, 1, 1, -1])).shape
    (6, 128)
    """
    return _contiguous("G, N, K", a, b, grouped_layout, use_psum_layout, out_dtype, config)


def m_grouped_bf16_gemm_nn_contiguous(
    a: jax.Array,
    b: jax.Array,
    grouped_layout: jax.Array,
    *,
    use_psum_layout: bool = False,
    out_dtype: DTypeLike = jnp.bfloat16,
    config: Bf16GemmConfig | None = None,
) -> jax.Array:
    """`A[i] @ B[g]`: `m_grouped_bf16_gemm_nt_contiguous` of a B whose N is contiguous.

    a: bfloat16 [M, K].
    b: bfloat16 [G, K, N], N a multiple of 8.

    The rest is as for `m_grouped_bf16_gemm_nt_contiguous`. The kernel reads both as they lie in memory.

    >>> a, b = jnp.ones((6, 256), jnp.bfloat16), jnp.ones((2, 256, 128), jnp.bfloat16)
    >>> m_grouped_bf16_gemm_nn_contiguous(a, b, jnp.array([0, 0, 0, 1, 1, -1])).shape
    (6, 128)
    """
    return _contiguous("G, K, N", a, b, grouped_layout, use_psum_layout, out_dtype, config)


def m_grouped_bf16_gemm_nt_masked(
    a: jax.Array,
    b: jax.Array,
    masked_m: jax.Array,
    expected_m: int,
    *,
    out_dtype: DTypeLike = jnp.bfloat16,
    config: Bf16GemmConfig | None = None,
) -> jax.Array:
    """`A[g] @ B[g].T` for each group g, of whose rows the first `masked_m[g]` count, of bfloat16 matrices.

    a: bfloat16 [G, Mmax, K].
    b: bfloat16 [G, N, K].
    masked_m: integers [G], rows of each group. A negative number counts as 0, one beyond Mmax as Mmax.
    expected_m: about how many rows a group has, known to the host: what the kernel's tiles are chosen by. Results do
        not depend on it.
    out_dtype, config: as for `m_grouped_bf16_gemm_nt_contiguous`.

    Returns `out_dtype` [G, Mmax, N]. Only the first `masked_m[g]` rows of a group are computed and written; what the
    others hold is undefined, on a GPU whatever the buffer held. Use none of them.

    Under jit over several devices, operands sharded over G stay where they are, and `b` sharded over N. All else is
    gathered.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes; NotImplementedError when
    differentiated.

    The name is DeepGEMM's.

    >>> a, b = jnp.ones((2, 4, 256), jnp.bfloat16), jnp.ones((2, 128, 256), jnp.bfloat16)
    >>> m_grouped_bf16_gemm_nt_masked(a, b, jnp.array([3, 1]), 2).shape
    (2, 4, 128)
    """
    dtype = checks.dtype("out_dtype", out_dtype, OUT_DTYPES, "bfloat16 or float32")
    a = checks.array("a", a, [jnp.bfloat16], "G, Mmax, K")
    b = checks.array("b", b, [jnp.bfloat16], "G, N, K")
    groups = checked_sizes(a, b, "G, Mmax, K", "G, N, K", dtype, 8)
    masked_m = checked_layout("masked_m", masked_m, "G", groups)
    expected_m = checked_expected_m(expected_m)
    _check_config(config, "nt", dtype)
    return _masked(a, b, masked_m, expected_m=expected_m, out_dtype=dtype, config=config)[0]


def _contiguous(
    dims: str,
    a: jax.Array,
    b: jax.Array,
    layout: jax.Array,
    use_psum_layout: bool,
    out_dtype: DTypeLike,
    config: Bf16GemmConfig | None,
) -> jax.Array:
    dtype = checks.dtype("out_dtype", out_dtype, OUT_DTYPES, "bfloat16 or float32")
    a = checks.array("a", a, [jnp.bfloat16], "M, K")
    b = checks.array("b", b, [jnp.bfloat16], dims)
    groups = checked_sizes(a, b, "M, K", dims, dtype, 8)
    layout, psum = checked_grouped_layout(layout, use_psum_layout, groups, a.shape[0])
    order = "nt" if dims == "G, N, K" else "nn"
    _check_config(config, order, dtype)
    return _call(a, b, layout, layout=order, use_psum_layout=psum, out_dtype=dtype, config=config)[0]


def _check_config(config: Bf16GemmConfig | None, layout: str, out_dtype: jnp.dtype) -> None:
    checks.config(config, CONFIGS, out_dtype.itemsize)
    if config is not None and (config.layout != layout or config.multicast > 1):
        checks.fail(ValueError, "config", f"of layout {layout}, and share no operand", repr(config))


# The operands of both primitives: a, b, and the layout or masked_m.


def _abstract_eval(avals: Avals, *, layout: str, out_dtype: jnp.dtype, **_: Any) -> list[jax.ShapeDtypeStruct]:
    n = avals[1].shape[1 if layout == "nt" else 2]
    return [jax.ShapeDtypeStruct((avals[0].shape[0], n), out_dtype)]


def _masked_abstract_eval(avals: Avals, *, out_dtype: jnp.dtype, **_: Any) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((*avals[0].shape[:2], avals[1].shape[1]), out_dtype)]


def _reference(
    a: jax.Array,
    b: jax.Array,
    groups: jax.Array,
    *,
    layout: str,
    use_psum_layout: bool,
    out_dtype: jnp.dtype,
    config: Bf16GemmConfig | None,
) -> list[jax.Array]:
    at_k = 1 if layout == "nt" else 0

    def product(at: jax.Array, g: jax.Array) -> jax.Array:
        return jax.lax.dot_general(a[at], b[g], (((1,), (at_k,)), ((), ())), preferred_element_type=jnp.float32)

    group = groups_of_rows(groups, a.shape[0], b.shape[0], use_psum_layout=use_psum_layout)
    return [by_groups(product, group, b.shape[0], b.shape[2 - at_k]).astype(out_dtype)]


def _masked_reference(
    a: jax.Array,
    b: jax.Array,
    masked_m: jax.Array,
    *,
    expected_m: int,
    out_dtype: jnp.dtype,
    config: Bf16GemmConfig | None,
) -> list[jax.Array]:
    product = jax.lax.dot_general(a, b, (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32)
    return [zero_beyond(product, masked_m).astype(out_dtype)]


def _factors(avals: Avals, params: Params) -> Factors:
    b = "g n k" if params["layout"] == "nt" else "g k n"
    layout = "g" if params["use_psum_layout"] else "m"
    return Factors(f"m k, {b}, {layout} -> m n", whole=("m", "g", "k"))


def _masked_factors(avals: Avals, params: Params) -> Factors:
    return Factors("g m k, g n k, g -> g m n", whole=("m", "k"))


_CONTIGUOUS = Op(
    name="m_grouped_bf16_gemm_contiguous",
    abstract_eval=_abstract_eval,
    reference=_reference,
    plan=plans.plan,
    configs=CONFIGS,
    ranked=plans.ranked,
    typical=typical_groups,
    factors=_factors,
    gradient=_NO_GRADIENT,
)
_MASKED = dataclasses.replace(
    _CONTIGUOUS,
    name="m_grouped_bf16_gemm_nt_masked",
    abstract_eval=_masked_abstract_eval,
    reference=_masked_reference,
    factors=_masked_factors,
)
_call: Any = make(_CONTIGUOUS)
_masked: Any = make(_MASKED)
