"""A jitted chain of decode-sized GEMMs: what the host takes to enqueue it, and the GPU to run it.

Every GEMM has weights of its own, which no L2 cache holds together, and adds its product to the result of the one
before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

LENGTHS = (20, 40)
M, N, K = 64, 7168, 2048
CALLS = 50  # in flight together, where the GPU is what is measured
REPEATS = 9


def program(length: int) -> Callable[..., Any]:
    import jax_deepgemm

    def run(a, a_scale_t, weights):
        d = None
        for b, b_scale in weights[:length]:
            d = jax_deepgemm.fp8_gemm_nt((a, a_scale_t.T), (b, b_scale), c=d)
        return d

    return run


def operands(length: int) -> tuple[Any, ...]:
    import jax
    import jax.numpy as jnp

    import jax_deepgemm

    a, a_scale = jax_deepgemm.per_token_cast_to_fp8(jax.random.normal(jax.random.key(0), (M, K), jnp.bfloat16))

    @jax.jit
    def weights(key):
        return jax_deepgemm.per_block_cast_to_fp8(jax.random.normal(key, (N, K), jnp.bfloat16) * K**-0.5)

    return a, a_scale.T.copy(), tuple(weights(jax.random.key(1 + i)) for i in range(length))


def compiled(length: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    import jax

    if jax.default_backend() != "gpu":
        raise RuntimeError(f"a chain is timed on a GPU, this backend is {jax.default_backend()}")
    args = operands(length)
    run = jax.jit(program(length))
    for _ in range(10):
        jax.block_until_ready(run(*args))
    return run, args


def host_us(run: Callable[..., Any], args: tuple[Any, ...]) -> float:
    """Until a call returns, its work enqueued. The GPU is idle before each call, and slower than the host."""
    import jax

    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        out = run(*args)
        times.append(time.perf_counter() - start)
        jax.block_until_ready(out)
    return statistics.median(times) * 1e6


def wall_us(run: Callable[..., Any], args: tuple[Any, ...]) -> float:
    """Of a call, when many follow each other without a wait."""
    import jax

    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready([run(*args) for _ in range(CALLS)])
        times.append((time.perf_counter() - start) / CALLS)
    return statistics.median(times) * 1e6


def kernels_us(length: int) -> float:
    """The sum of the kernels' own times in a call, each launched after its predecessor's end."""
    import jax

    import jax_deepgemm
    from benchmarks import capture

    with jax_deepgemm.set_pdl(False):  # overlapping kernels count what they overlap twice
        run, args = compiled(length)

    def calls() -> None:
        jax.block_until_ready([run(*args) for _ in range(CALLS)])

    capture.capture_jax(calls)  # the first recording of a process may miss events
    events = capture.capture_jax(calls)
    if len(events) != CALLS * length:
        raise capture.TimerError(f"{CALLS} calls should be {CALLS * length} kernels, recorded {len(events)} events")
    return sum(event.duration_ns for event in events) / CALLS / 1e3
