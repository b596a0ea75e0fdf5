"""vmap of an operation: the batch folds into a dimension where the operation's factors allow it, or the operation has a
launch for a batch; else it is a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_deepgemm.factors import Dims, Factors, position

Bind = Callable[..., Sequence[jax.Array]]
AtOnce = Callable[..., Sequence[jax.Array] | None]


def batch(
    bind: Bind,
    factors: Factors | None,
    operands: Sequence[jax.Array],
    axes: Sequence[int | None],
    at_once: AtOnce | None = None,
    *,
    before_folding: bool = False,
) -> tuple[Sequence[jax.Array], Sequence[int]]:
    """Results of `bind` over a batch, and the batch axis of each. `axes` has None where an operand is not batched.

    at_once: of operands with the batch in front, the results, with the batch in front; or None where that cannot be.
    """
    size = next(x.shape[d] for x, d in zip(operands, axes, strict=True) if d is not None)
    if isinstance(size, int) and size == 1:
        results = bind(*(x if d is None else jnp.squeeze(x, d) for x, d in zip(operands, axes, strict=True)))
        return [jnp.expand_dims(x, 0) for x in results], [0] * len(results)
    factor = _fold_into(factors, axes) if factors is not None and size > 0 else None
    if at_once and (factor is None or before_folding) and _repeats_little(operands, axes, size):
        results = at_once(*_in_front(operands, axes, size))
        if results is not None:
            return results, [0] * len(results)
    if factors is None or factor is None:
        return _loop(bind, operands, axes)
    folded = [_fold(x, d, dims, factor, size) for x, d, dims in zip(operands, axes, factors.operands, strict=True)]
    results = bind(*folded)
    where = [_place(dims, factor) for dims in factors.results]
    return [_unfold(x, d, size) for x, d in zip(results, where, strict=True)], where


def _fold_into(factors: Factors, axes: Sequence[int | None]) -> str | None:
    """The first factor that every batched operand has: folding there repeats nothing but unbatched operands with it."""
    for factor in factors.foldable():
        has = [position(dims, factor) is not None for dims in factors.operands]
        if all(h for h, d in zip(has, axes, strict=True) if d is not None):
            return factor
    return None


def _place(dims: Dims, factor: str) -> int:
    found = position(dims, factor)
    assert found is not None  # Factors.foldable offers only factors of every result
    return found


def _fold(x: jax.Array, axis: int | None, dims: Dims, factor: str, size: int) -> jax.Array:
    at = position(dims, factor)
    if at is None:
        return x
    if axis is None:
        x = jnp.broadcast_to(jnp.expand_dims(x, at), (*x.shape[:at], size, *x.shape[at:]))
    else:
        x = jnp.moveaxis(x, axis, at)
    return x.reshape(*x.shape[:at], x.shape[at] * x.shape[at + 1], *x.shape[at + 2 :])


def _unfold(x: jax.Array, at: int, size: int) -> jax.Array:
    return x.reshape(*x.shape[:at], size, x.shape[at] // size, *x.shape[at + 1 :])


def _repeats_little(operands: Sequence[jax.Array], axes: Sequence[int | None], size: int) -> bool:
    """Whether all operands that are not batched, repeated, take no more memory than those that are."""
    sizes = [(x.size * x.dtype.itemsize, d is None) for x, d in zip(operands, axes, strict=True)]
    return sum(size * n for n, alone in sizes if alone) <= sum(n for n, alone in sizes if not alone)


def _in_front(operands: Sequence[jax.Array], axes: Sequence[int | None], size: int) -> list[jax.Array]:
    return [
        jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
        for x, d in zip(operands, axes, strict=True)
    ]


def _loop(
    bind: Bind, operands: Sequence[jax.Array], axes: Sequence[int | None]
) -> tuple[Sequence[jax.Array], Sequence[int]]:
    batched = [jnp.moveaxis(x, d, 0) for x, d in zip(operands, axes, strict=True) if d is not None]

    def one(slices: list[jax.Array]) -> Any:
        rest = iter(slices)
        return tuple(bind(*(x if d is None else next(rest) for x, d in zip(operands, axes, strict=True))))

    results = jax.lax.map(one, batched)
    return results, [0] * len(results)
