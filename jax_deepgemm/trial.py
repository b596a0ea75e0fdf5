"""One operation in several configurations, timed on the GPU as it would run in a model: one call after another.

Programs make a few calls each, with operands of their own, and rotate over enough copies of the operands that the L2
cache has forgotten those of a call by its next turn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_deepgemm import race
from jax_deepgemm.config import Config
from jax_deepgemm.op import Avals, Op, Params

ROTATION_BYTES = 160 * 2**20  # three times the largest L2
MOST_COPIES = 64
CALLS = 16  # in a program, so that calling it costs little for each
BATCH_SECONDS = 4e-3
_NO_GRAPHS = {"xla_gpu_graph_min_graph_size": 10**6}  # in which calls that share nothing might run side by side

Bind = Callable[..., Sequence[jax.Array]]
Arrays = list[jax.Array]


def fastest(
    op: Op, bind: Bind, avals: Avals, params: Params, settings: Config, configs: Sequence[Any]
) -> tuple[int, float, float]:
    """The index of the fastest configuration, its microseconds a call, and those of the first beside it."""
    copies = _copies(avals)
    calls = min(CALLS, copies)
    orders = _orders(op, avals, params)
    groups = [
        [_operands(avals, orders, seed) for seed in range(start, start + calls)] for start in range(0, copies, calls)
    ]
    donated = tuple(op.aliases(avals, params)) if op.aliases else ()

    def batch_of(config: Any) -> Callable[[int], None]:
        program = _program(
            bind, orders, dict(op.aliases(avals, params)) if op.aliases else {}, params, settings, config
        )
        return lambda times: _run(program, groups, donated, times)

    batches = [batch_of(config) for config in configs]
    for batch in batches:
        batch(len(groups))  # compiles
    start = time.perf_counter()
    batches[0](len(groups))
    once = (time.perf_counter() - start) / len(groups)
    times = math.ceil(max(BATCH_SECONDS / once, 1) / len(groups)) * len(groups)  # each copy as often as the others
    best, seconds, first = race.winner([lambda batch=batch: batch(times) for batch in batches])
    return best, seconds / times / calls * 1e6, first / times / calls * 1e6


def _program(
    bind: Bind,
    orders: Sequence[tuple[int, ...]],
    aliases: dict[int, int],
    params: Params,
    settings: Config,
    config: Any,
) -> Callable[..., Any]:
    """Calls of one configuration, a call for each set of operands; gives the operands that were donated a successor."""

    def run(donated: list[Arrays], kept: list[Arrays]) -> tuple[Any, Any]:
        results, successors = [], []
        for mine, others in zip(donated, kept, strict=True):
            operands = _merged(mine, others, list(aliases))
            logical = [jnp.transpose(x, _inverse(order)) for x, order in zip(operands, orders, strict=True)]
            out = bind(*logical, settings=settings, partitioned=None, **{**params, "config": config})
            successors.append([out[result] for result in aliases.values()])
            results.append([x for i, x in enumerate(out) if i not in aliases.values()])
        return successors, results

    return jax.jit(run, donate_argnums=0, compiler_options=_NO_GRAPHS)


def _run(program: Callable[..., Any], groups: list[list[Arrays]], donated: tuple[int, ...], times: int) -> None:
    """Calls `program` for one group of operands after the other, and waits for all."""
    out: Any = None
    for i in range(times):
        group = groups[i % len(groups)]
        successors, out = program(
            [[operands[d] for d in donated] for operands in group],
            [[x for d, x in enumerate(operands) if d not in donated] for operands in group],
        )
        for operands, mine in zip(group, successors, strict=True):
            for d, x in zip(donated, mine, strict=True):
                operands[d] = x
    jax.block_until_ready((out, groups))


def _merged(donated: Arrays, kept: Arrays, where: list[int]) -> Arrays:
    found, rest = dict(zip(where, donated, strict=True)), iter(kept)
    return [found[i] if i in found else next(rest) for i in range(len(donated) + len(kept))]


def _copies(avals: Avals) -> int:
    size = sum(math.prod(a.shape) * a.dtype.itemsize for a in avals)
    copies = min(max(math.ceil(ROTATION_BYTES / max(size, 1)), 2), MOST_COPIES)
    return copies if copies <= CALLS else math.ceil(copies / CALLS) * CALLS


def _orders(op: Op, avals: Avals, params: Params) -> list[tuple[int, ...]]:
    """For each operand its dimensions from major to minor, as the kernel wants them: so they are laid out beforehand."""
    layouts = op.operand_layouts(avals, params) if op.operand_layouts else [None] * len(avals)
    return [tuple(reversed(l)) if l else tuple(range(len(a.shape))) for l, a in zip(layouts, avals, strict=True)]


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(d) for d in range(len(order)))


def _operands(avals: Avals, orders: Sequence[tuple[int, ...]], seed: int) -> Arrays:
    keys = jax.random.split(jax.random.key(seed), len(avals))
    return [_random(k, tuple(a.shape[d] for d in o), a.dtype) for k, a, o in zip(keys, avals, orders, strict=True)]


def _random(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Values whose bits toggle as those of real data do, since the power that they take sets the clock."""
    if dtype == jnp.float8_e8m0fnu:
        return jnp.ones(shape, dtype)
    if jnp.issubdtype(dtype, jnp.integer):  # packed numbers of few bits; what indices mean is not known here
        return jax.random.bits(key, shape, jnp.uint8).astype(dtype) if dtype.itemsize == 1 else jnp.zeros(shape, dtype)
    return jax.jit(lambda k: jax.random.normal(k, shape, jnp.float32).astype(dtype))(key)
