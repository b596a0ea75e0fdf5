"""Products of BF16 matrices that sum over groups of their rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jax_deepgemm import checks
from jax_deepgemm.factors import Factors
from jax_deepgemm.heuristics.k_grouped_config import KGroupedBf16Config
from jax_deepgemm.op import Avals, Op, Params
from jax_deepgemm.ops import k_groups
from jax_deepgemm.ops.gemm_result import alias_of, rounded
from jax_deepgemm.ops.k_grouped_plan import bf16_plan, bf16_ranked
from jax_deepgemm.primitive import make

CONFIGS = (KGroupedBf16Config,)
_OUT_DTYPES = (jnp.float32, jnp.bfloat16)


def k_grouped_bf16_gemm_tn_contiguous(
    a: jax.Array,
    b: jax.Array,
    ks: jax.Array,
    c: jax.Array | None = None,
    *,
    out_dtype: DTypeLike = jnp.float32,
    config: KGroupedBf16Config | None = None,
) -> jax.Array:
    """`A[g].T @ B[g] (+ C[g])` for groups g of rows of bfloat16 matrices, accumulated in float32.

    a: bfloat16 [K, M], M a multiple of 8.
    b: bfloat16 [K, N], N a multiple of 8.
    ks: integers [G], how many rows each group has. Groups lie one behind the other from row 0 on, and begin and end
        anywhere; rows behind the last belong to none. Sizes are read on the device, and may be anything there: a
        negative one counts as 0, and what lies beyond K is cut off.
    c: `out_dtype` [G, M, N], added before the result is rounded. Donated to jit, its buffer becomes the result's.
    out_dtype: float32 or bfloat16.
    config: the kernel's tiles, instead of what `tune` found or the heuristics choose. Only a kernel heeds it.

    K and G may be anything, also zero. Returns `out_dtype` [G, M, N]; of a group without rows, zeros or `c`. NaN and
    Inf stay in the group, the row and the column they belong to.

    Under jit over several devices, operands sharded over M or N stay where they are; K is gathered.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes; NotImplementedError when
    differentiated.

    It is what gradients of the weights of experts are made of. DeepGEMM's function of this name
    (https://github.com/deepseek-ai/DeepGEMM) needs the sizes on the host too, as multiples of 128.

    >>> a, b = jnp.ones((100, 16), jnp.bfloat16), jnp.ones((100, 128), jnp.bfloat16)
    >>> k_grouped_bf16_gemm_tn_contiguous(a, b, jnp.array([30, 0, 70])).shape
    (3, 16, 128)
    """
    dtype = checks.dtype("out_dtype", out_dtype, _OUT_DTYPES, "float32 or bfloat16")
    a = checks.array("a", a, [jnp.bfloat16], "K, M")
    b = checks.array("b", b, [jnp.bfloat16], "K, N")
    (k, m), n = a.shape, b.shape[1]
    if b.shape[0] != k:
        checks.fail(ValueError, "b", f"of shape ({k}, N) with the K of `a`", b)
    for name, x, dims in (("a", a, "K, M"), ("b", b, "K, N")):
        if x.shape[1] % 8:
            checks.fail(ValueError, name, f"of shape ({dims}) with {dims[-1]} a multiple of 8", x)
    ks = k_groups.checked_sizes(ks)
    checks.config(config, CONFIGS, dtype.itemsize)
    shape = (ks.shape[0], m, n)
    added = () if c is None else (checks.array("c", c, [dtype], ", ".join(map(str, shape)), shape),)
    return _call(a, b, ks, *added, out_dtype=dtype, config=config)[0]


# The operands of the primitive: a, b, ks, and c if there is one.


def _abstract_eval(
    avals: Avals, *, out_dtype: jnp.dtype, config: KGroupedBf16Config | None
) -> list[jax.ShapeDtypeStruct]:
    a, b, ks = avals[:3]
    return [jax.ShapeDtypeStruct((ks.shape[0], a.shape[1], b.shape[1]), out_dtype)]


def _reference(
    a: jax.Array, b: jax.Array, ks: jax.Array, *c: jax.Array, out_dtype: jnp.dtype, config: KGroupedBf16Config | None
) -> list[jax.Array]:
    def product(mine: jax.Array) -> jax.Array:
        left, right = (jnp.where(mine[:, None], x, 0) for x in (a, b))  # both: NaN times zero is NaN
        return jax.lax.dot_general(left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    rows = k_groups.rows_of_groups(*k_groups.bounds(ks, a.shape[0]), a.shape[0])
    return [rounded(jax.lax.map(product, rows), c, out_dtype)]


def _factors(avals: Avals, params: Params) -> Factors:
    """Sizes count rows from the first of all, so neither rows nor groups are shared out."""
    c = ", g m n" if len(avals) == 4 else ""
    return Factors(f"k m, k n, g{c} -> g m n", whole=("k", "g"))


def _typical(avals: Avals, params: Params) -> dict[int, np.ndarray]:
    return {2: k_groups.evenly(avals[0].shape[0], avals[2].shape[0])}


_call: Any = make(
    Op(
        name="k_grouped_bf16_gemm_tn_contiguous",
        abstract_eval=_abstract_eval,
        reference=_reference,
        plan=bf16_plan,
        configs=CONFIGS,
        ranked=bf16_ranked,
        typical=_typical,
        aliases=alias_of(3),
        factors=_factors,
    )
)
