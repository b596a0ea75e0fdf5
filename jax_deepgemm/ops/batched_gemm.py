"""A batch of GEMMs as one launch of a grouped GEMM, whose groups are the batch and are all of one size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_deepgemm.config import Config
from jax_deepgemm.launch import Launch
from jax_deepgemm.op import Avals, Batched, Layouts, Params, Stack
from jax_deepgemm.ops.gemm_result import alias_of, rounded
from jax_deepgemm.target import Target


class Grouped(NamedTuple):
    """A grouped GEMM of the same buffers.

    plan, ranked: its own, of these `avals` and `params`.
    groups: int32 [G], what it asks of the groups: how many rows each has, or where it ends.
    """

    plan: Callable[..., Launch | None]
    ranked: Callable[..., Sequence[Any]]
    groups: np.ndarray
    avals: Sequence[Any]
    params: Mapping[str, Any]


def sizes(groups: int, rows: int) -> np.ndarray:
    """`rows` of each group. One beyond, of the last, is cut off: of equal numbers XLA would make a kernel that writes
    them."""
    return np.array([rows] * (groups - 1) + [rows + 1], np.int32)


def batched(
    grouped: Callable[[Avals, Params], Grouped | None],
    c: int,
    *,
    configs: tuple[type, ...],
    operand_layouts: Callable[[Avals, Params], Layouts],
) -> Batched:
    """`Op.batched` of a GEMM whose `c`, if it has one, is its operand number `c`, the last.

    grouped: `(avals, params)` -> the grouped GEMM, or None where there is none. Its groups are operand number `c`.
    """

    def plan(avals: Avals, out_avals: Avals, params: Params, target: Target, config: Config) -> Launch | None:
        found = grouped(avals, params)
        return found.plan(found.avals, out_avals, found.params, target, config) if found else None

    def ranked(avals: Avals, out_avals: Avals, params: Params, target: Target, config: Config) -> Sequence[Any]:
        found = grouped(avals, params)
        return found.ranked(found.avals, out_avals, found.params, target, config) if found else ()

    def inserted(avals: Avals, params: Params) -> Mapping[int, np.ndarray]:
        found = grouped(avals, params)
        return {c: found.groups} if found else {}

    def rule(stack: Stack, operands: Sequence[jax.Array], params: Params) -> Sequence[jax.Array] | None:
        """A `c` that the kernel does not take is added to its result, in float32."""
        if stack.takes(*operands):
            return stack(*operands)
        product, wide = operands[:c], {"out_dtype": jnp.dtype(jnp.float32)}
        if len(operands) == c or not stack.takes(*product, **wide):
            return None
        return [rounded(stack(*product, **wide)[0], operands[c:], params["out_dtype"])]

    return Batched(plan, configs, ranked, operand_layouts, alias_of(c), inserted, rule)
