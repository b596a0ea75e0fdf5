"""`jax.lax.dot_general` in FP8, for layers that let their users choose one."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jax.typing import DTypeLike

from jax_deepgemm import checks
from jax_deepgemm.ops.folding import merge, spec, split
from jax_deepgemm.ops.fp8_linear import DTYPES, matmul_nt

_SMALLEST_K = 16


def fp8_dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    *,
    out_sharding: Any = None,
) -> jax.Array:
    """`jax.lax.dot_general` with both operands quantised to FP8, and with gradients computed in FP8 too.

    Arguments, and the result's shape and dtype, are those of `jax.lax.dot_general`, so it goes into `flax.linen.Dense`,
    `flax.nnx.Linear` and others as `dot_general=fp8_dot_general`. `lhs` is quantised as activations are and `rhs` as
    weights are: with one scale for each 128 of the summed dimensions, and in `rhs` for 128 of the others. Gradients,
    sizes, sharding and errors are as for `fp8_linear`.

    Batch dimensions are as for `fp8_linear` under `vmap`: a product is one launch.

    It is `jax.lax.dot_general` itself, not FP8, where
    - an operand, or the result, is neither bfloat16 nor float32;
    - `precision` is not the default (what `jax.default_matmul_precision` says does not count);
    - fewer than 16 products are summed, or none are as in an outer product.

    >>> x, kernel = jnp.ones((2, 5, 256)), jnp.ones((256, 384))
    >>> fp8_dot_general(x, kernel, (((2,), (0,)), ((), ()))).shape
    (2, 5, 384)
    """
    plain = functools.partial(
        jax.lax.dot_general,
        dimension_numbers=dimension_numbers,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    if not all(isinstance(x, (jax.Array, np.ndarray)) and x.dtype in DTYPES for x in (lhs, rhs)):
        return plain(lhs, rhs, out_sharding=out_sharding)
    # This also raises what is wrong with the arguments.
    result = jax.eval_shape(plain, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (lhs, rhs)))
    if dimension_numbers is None:
        wanted = "((summed of lhs, summed of rhs), (batch of lhs, batch of rhs))"
        checks.fail(TypeError, "dimension_numbers", wanted, "None")
    (lhs_summed, rhs_summed), (lhs_batch, rhs_batch) = dimension_numbers
    few = math.prod(lhs.shape[d] for d in lhs_summed) < _SMALLEST_K
    if few or result.dtype not in DTYPES or not _is_default(precision):
        return plain(lhs, rhs, out_sharding=out_sharding)

    checks.out_sharding(out_sharding)
    lhs, rhs = _batch_free_summed(lhs, lhs_batch, lhs_summed), _batch_free_summed(rhs, rhs_batch, rhs_summed)
    y = _folded(lhs, rhs, len(lhs_batch), len(lhs_summed), result.dtype)
    return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


def _batch_free_summed(x: jax.Array, batch: Sequence[int], summed: Sequence[int]) -> jax.Array:
    free = [d for d in range(x.ndim) if d not in (*batch, *summed)]
    return jnp.transpose(jnp.asarray(x), (*batch, *free, *summed))


def _folded(lhs: jax.Array, rhs: jax.Array, batch: int, summed: int, out_dtype: jnp.dtype) -> jax.Array:
    """The product of operands whose dimensions are in the order batch, free, summed."""

    def matrices(x: jax.Array) -> jax.Array:
        groups = (x.ndim - batch - summed, summed)
        return merge(x, (batch, *groups) if batch else groups)

    product = functools.partial(matmul_nt, out_dtype=out_dtype)
    leading = 1 if batch else 0
    y = (jax.vmap(product) if batch else product)(matrices(lhs), matrices(rhs))
    y = split(y, leading + 1, *_free(rhs, batch, summed))  # the last first: the others keep their places
    y = split(y, leading, *_free(lhs, batch, summed))
    return split(y, 0, lhs.shape[:batch], spec(lhs)[:batch]) if batch else y


def _free(x: jax.Array, batch: int, summed: int) -> tuple[Sequence[int], Sequence[Any]]:
    """Sizes and sharding of the dimensions between."""
    between = slice(batch, x.ndim - summed)
    return x.shape[between], spec(x)[between]


def _is_default(precision: Any) -> bool:
    both = precision if type(precision) in (tuple, list) else (precision,)
    return all(p in (None, Precision.DEFAULT, "default", "fastest", "bfloat16") for p in both)
