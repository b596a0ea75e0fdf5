"""One operation in several configurations, timed on the GPU as it would run in a model: one call after another.

A program makes a few calls, each with operands of its own, and programs rotate over enough copies of the operands that
the L2 cache has forgotten those of a call by its next turn.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_deepgemm import race
from jax_deepgemm.op import Avals, Op, Params
from jax_deepgemm.stopwatch import SHORTEST_WAIT, gpu_seconds

ROTATION_BYTES = 160 * 2**20  # three times the largest L2
MOST_COPIES = 64
CALLS = 16  # in a program, so that calling it costs little for each
BATCH_SECONDS = 2e-3
MOST_LAUNCHES = 400  # in a batch: the driver takes some 1000 before the host must wait for the GPU
_NO_GRAPHS = {"xla_gpu_graph_min_graph_size": 10**6}  # in which calls that share nothing might run side by side

Bind = Callable[..., Sequence[jax.Array]]  # the primitive, its parameters but `config` given
Order = tuple[int, ...]  # dimensions of an operand from major to minor


def fastest(op: Op, bind: Bind, avals: Avals, params: Params, configs: Sequence[Any]) -> tuple[int, float, float]:
    """The index of the fastest configuration, its microseconds a call, and those of the first beside it."""
    orders = _orders(op, avals, params)
    aliases = dict(op.aliases(avals, params)) if op.aliases else {}
    size = sum(math.prod(a.shape) * a.dtype.itemsize for a in avals)
    copies = min(max(math.ceil(ROTATION_BYTES / size), 2), MOST_COPIES)
    calls = min(CALLS, copies)
    typical = op.typical(avals, params) if op.typical else {}
    groups = [[_operands(avals, orders, typical, i) for i in range(j, j + calls)] for j in range(0, copies, calls)]
    programs = [program(functools.partial(bind, config=c), orders, aliases) for c in configs]
    batches = [Batch(run, groups, aliases) for run in programs]
    for batch in batches:
        jax.block_until_ready(batch.enqueue(1))  # compiles
    once = batches[0].seconds(1)
    launches = len(groups) * calls
    rounds = max(1, min(math.ceil(BATCH_SECONDS / once), MOST_LAUNCHES // launches))
    best, seconds, first = race.winner([functools.partial(batch.seconds, rounds) for batch in batches])
    each = 1e6 / (rounds * launches)
    return best, seconds * each, first * each


def program(call: Bind, orders: Sequence[Order], aliases: Mapping[int, int]) -> Callable[..., Any]:
    """`(carried, group) -> (carried, results)`: a call for each of a group of operands.

    An operand whose buffer becomes a result's is the result of the call before: a fresh one would have to be copied.
    """

    def run(carried: dict[int, jax.Array], group: list[list[jax.Array]]) -> Any:
        results = []
        for operands in group:
            arrays = [jnp.transpose(x, _inverse(order)) for x, order in zip(operands, orders, strict=True)]
            out = call(*(carried.get(i, x) for i, x in enumerate(arrays)))
            carried = {operand: out[result] for operand, result in aliases.items()}
            results.append([x for i, x in enumerate(out) if i not in aliases.values()])
        return carried, results

    return jax.jit(run, donate_argnums=0, compiler_options=_NO_GRAPHS)


class Batch:
    """Some rounds of a program over all groups of operands."""

    def __init__(self, run: Callable[..., Any], groups: list[list[list[jax.Array]]], aliases: Mapping[int, int]):
        self._run, self._groups = run, groups
        self._carried: Any = {operand: jnp.copy(groups[0][0][operand]) for operand in aliases}
        self._wait = SHORTEST_WAIT

    def enqueue(self, rounds: int) -> Any:
        out: Any = None
        for _ in range(rounds):
            for group in self._groups:
                self._carried, out = self._run(self._carried, group)
        return self._carried, out

    def seconds(self, rounds: int) -> float:
        """On the GPU."""
        seconds, self._wait = gpu_seconds(functools.partial(self.enqueue, rounds), self._wait)
        return seconds


def _orders(op: Op, avals: Avals, params: Params) -> list[Order]:
    """As the kernel wants the operands: they are laid out so beforehand."""
    layouts = op.operand_layouts(avals, params) if op.operand_layouts else [None] * len(avals)
    return [
        tuple(range(len(a.shape))) if layout is None else tuple(reversed(layout))
        for layout, a in zip(layouts, avals, strict=True)
    ]


def _inverse(order: Order) -> Order:
    return tuple(order.index(dimension) for dimension in range(len(order)))


def _operands(avals: Avals, orders: Sequence[Order], typical: Mapping[int, np.ndarray], seed: int) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(seed), len(avals))
    return [
        jnp.array(typical[i]) if i in typical else _random(key, tuple(a.shape[d] for d in order), a.dtype)
        for i, (key, a, order) in enumerate(zip(keys, avals, orders, strict=True))
    ]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _random(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Values whose bits toggle as those of real data do, since the power that they take sets the clock."""
    if dtype == jnp.float8_e8m0fnu:
        return jnp.ones(shape, dtype)
    if jnp.issubdtype(dtype, jnp.integer):  # packed numbers of few bits; all else is for `Op.typical` to say
        return jax.random.bits(key, shape, jnp.uint8).astype(dtype) if dtype.itemsize == 1 else jnp.zeros(shape, dtype)
    return jax.random.normal(key, shape, jnp.float32).astype(dtype)
