"""A jitted chain of decode-sized GEMMs: what the host takes to enqueue it, and the GPU to run it.

Between two of them stands nothing: the bits of a BF16 result are the next one's FP8 operand. The result of a call is
donated to the next, as a decode step's state is: addresses stay, and XLA replays its graphs as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

LENGTH = 20


@dataclasses.dataclass(frozen=True)
class Shapes:
    m: int
    weights: tuple[tuple[int, int], ...]  # (N, K), in turn: 2 N bytes of a row are the next K
    distinct: int  # matrices of weights


# Over before the host has enqueued the next: no launch waits for room in the queue.
TINY = Shapes(16, ((128, 256),), 1)
# As many bytes as 4096 x 7168 each. Every GEMM has weights of its own, which no L2 cache holds together; scales are
# shared, since each array takes jit a microsecond or two a call.
STREAMING = Shapes(64, ((4096, 7168), (3584, 8192)), LENGTH)


def program(length: int, shapes: Shapes) -> Any:
    import jax
    import jax.numpy as jnp

    import jax_deepgemm

    def run(before, a, scales, weights):
        d = before
        for i in range(length):
            a_scale, b_scale = scales[a.shape[1]]
            d = jax_deepgemm.fp8_gemm_nt((a, a_scale.T), (weights[i % len(weights)], b_scale))
            a = jax.lax.bitcast_convert_type(d, jnp.float8_e4m3fn).reshape(shapes.m, -1)
        return d

    return jax.jit(run, donate_argnums=0, keep_unused=True)


def operands(length: int, shapes: Shapes) -> tuple[Any, ...]:
    """A place for the result, A, the scales of A and of the weights by K, and the weights."""
    import jax
    import jax.numpy as jnp

    def in_fp8(index: int, rows: int, k: int) -> Any:
        return jax.random.normal(jax.random.key(index), (rows, k)).astype(jnp.float8_e4m3fn)

    count = len(shapes.weights)
    place = jnp.zeros((shapes.m, shapes.weights[(length - 1) % count][0]), jnp.bfloat16)
    scales = {
        k: (jnp.ones((k // 128, shapes.m)), jnp.full((-(-n // 128), k // 128), k**-0.5)) for n, k in shapes.weights
    }
    weights = [in_fp8(i, *shapes.weights[i % count]) for i in range(shapes.distinct)]
    return place, in_fp8(length, shapes.m, shapes.weights[0][1]), scales, weights


def step(length: int, shapes: Shapes) -> Callable[[], Any]:
    """One call of the chain, on the result of the call before. Called a few times already."""
    import jax

    if jax.default_backend() != "gpu":
        raise RuntimeError(f"a chain is timed on a GPU, this backend is {jax.default_backend()}")
    result, *others = operands(length, shapes)
    run = program(length, shapes)

    def call() -> Any:
        nonlocal result
        result = run(result, *others)
        return result

    for _ in range(10):
        jax.block_until_ready(call())
    return call


def host_us(length: int, calls: int = 300) -> dict[str, float]:
    """Until a call returns, its work enqueued while the GPU idles; and the part of each GEMM but the first.

    The parts are differences to a chain of one, whose calls stand between those of the chain: processors have moods.
    """
    import jax

    def returned(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        out = call()
        us = (time.perf_counter() - start) * 1e6
        jax.block_until_ready(out)
        return us

    chain, one = step(length, TINY), step(1, TINY)
    pairs = [(returned(chain), returned(one)) for _ in range(calls)]
    further = statistics.median(long - short for long, short in pairs) / (length - 1)
    return {"host_us": statistics.median(long for long, _ in pairs), "further_us": further}


def device_us(length: int, calls: int = 200, repeats: int = 7) -> dict[str, float]:
    """Of a call when many follow each other without a wait, and the sum of its kernels' times in such a sequence."""
    import jax

    from benchmarks import capture

    call = step(length, STREAMING)

    def many(count: int) -> None:
        jax.block_until_ready([call() for _ in range(count)][-1])

    def wall() -> float:
        start = time.perf_counter()
        many(calls)
        return (time.perf_counter() - start) / calls * 1e6

    many(calls)  # until the clocks have risen
    walls = [wall() for _ in range(repeats)]
    capture.capture_jax(functools.partial(many, 1))  # the first recording of a process may miss events
    events = capture.capture_jax(functools.partial(many, 2 * calls))
    if len(events) != 2 * calls * length:
        raise capture.TimerError(f"{2 * calls} calls should be {2 * calls * length} kernels, recorded {len(events)}")
    sums = [sum(e.duration_ns for e in events[i : i + length]) / 1e3 for i in range(0, len(events), length)]
    return {"wall_us": statistics.median(walls), "kernels_us": statistics.median(sums[calls:])}
