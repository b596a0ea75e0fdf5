"""What an operation is, to the factory of primitives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.core import ShapedArray

from jax_deepgemm.config import Config
from jax_deepgemm.factors import Factors
from jax_deepgemm.launch import Launch
from jax_deepgemm.target import Target

Avals = Sequence[jax.ShapeDtypeStruct | ShapedArray]
Params = Mapping[str, Any]
Layouts = Sequence[tuple[int, ...] | None]


class Shaped(Protocol):
    """What a plan needs of an abstract value."""

    shape: tuple[int, ...]
    dtype: Any


class Stack(Protocol):
    """An operation on a batch of problems, all operands and results with the batch as their first dimension."""

    def takes(self, *operands: jax.Array, **params: Any) -> bool:
        """Whether there is a kernel for them."""
        ...

    def __call__(self, *operands: jax.Array, **params: Any) -> Sequence[jax.Array]: ...


def _at_once(stack: Stack, operands: Sequence[jax.Array], params: Params) -> Sequence[jax.Array] | None:
    return stack(*operands) if stack.takes(*operands) else None


@dataclasses.dataclass(frozen=True)
class Batched:
    """A batch of problems as one launch. `avals` are those of a `Stack`; `params` are the operation's.

    plan, configs, ranked, operand_layouts, aliases: as of `Op`. Where there is no plan, there is no kernel.
    inserted: as of `Op`: what tells the kernel how the batch lies.
    rule: `(stack, operands, params)` -> results, or None where it is not to be so.
    before_folding: whether it is better than to fold the batch into a factor.
    """

    plan: Callable[[Avals, Avals, Params, Target, Config], Launch | None]
    configs: tuple[type, ...] = ()
    ranked: Callable[[Avals, Avals, Params, Target, Config], Sequence[Any]] | None = None
    operand_layouts: Callable[[Avals, Params], Layouts] | None = None
    aliases: Callable[[Avals, Params], Mapping[int, int]] | None = None
    inserted: Callable[[Avals, Params], Mapping[int, np.ndarray]] | None = None
    rule: Callable[[Stack, Sequence[jax.Array], Params], Sequence[jax.Array] | None] = _at_once
    before_folding: bool = False


@dataclasses.dataclass(frozen=True)
class Op:
    """What an operation is. `params` are static and hashable; the functions of them are pure.

    name: as in the public API.
    abstract_eval: `(avals, **params)` -> shapes and dtypes of the results.
    reference: `(*arrays, **params)` -> results, in plain JAX, on any platform.
    plan: `(avals, out_avals, params, target, config)` -> the launch, or None where no kernel fits the problem.
    configs: the classes of the parameter `config`, which overrides the choice of the heuristics: frozen dataclasses of
        numbers and strings that check themselves. Without one, the operation has no such parameter.
    ranked: as `plan`, but -> the configurations that the heuristics know for the problem, the best first.
    typical: `(avals, params)` -> {operand: array} with which to measure configurations, of operands that say what is to
        be done. The others are random numbers. None: all are.
    operand_layouts, result_layouts: `(avals, params)` -> for each, minor-to-major order or None for row-major; `avals`
        are the operands' in both. Asked of XLA where the kernel runs.
    aliases: `(avals, params)` -> {operand: result} that share a buffer.
    inserted: `(avals, params)` -> constants that the kernel reads among its operands, by their positions there.
    factors: `(avals, params)` -> how dimensions belong together, for sharding and batching. None: not described.
    reduce: `(call, axes, operands, params)` -> results, where a summed factor is sharded over the mesh `axes`;
        `call(*operands, **params)` is the operation on this device's shards.
    jvp: `(call, primals, tangents, params)` -> (results, their tangents); a tangent may be `ad.Zero`. Together with
        `transpose`: `(call, cotangents, operands, params)` -> those of the operands, None where one is not
        `ad.UndefinedPrimal`. `call` is as in `reduce`. None: it cannot be differentiated.
    gradient: what to say to those who differentiate it, without `jvp`.
    batched: one launch for a batch, where it folds into no factor. None: that is a loop.
    """

    name: str
    abstract_eval: Callable[..., Sequence[jax.ShapeDtypeStruct]]
    reference: Callable[..., Sequence[jax.Array]]
    plan: Callable[[Avals, Avals, Params, Target, Config], Launch | None]
    configs: tuple[type, ...] = ()
    ranked: Callable[[Avals, Avals, Params, Target, Config], Sequence[Any]] | None = None
    typical: Callable[[Avals, Params], Mapping[int, np.ndarray]] | None = None
    operand_layouts: Callable[[Avals, Params], Layouts] | None = None
    result_layouts: Callable[[Avals, Params], Layouts] | None = None
    aliases: Callable[[Avals, Params], Mapping[int, int]] | None = None
    inserted: Callable[[Avals, Params], Mapping[int, np.ndarray]] | None = None
    factors: Callable[[Avals, Params], Factors] | None = None
    reduce: Callable[..., Sequence[jax.Array]] | None = None
    jvp: Callable[..., tuple[Sequence[jax.Array], Sequence[Any]]] | None = None
    transpose: Callable[..., Sequence[Any]] | None = None
    gradient: str = "it has no derivative rule"
    batched: Batched | None = None
