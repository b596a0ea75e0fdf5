"""A jitted chain of decode-sized GEMMs: what the host takes to enqueue it, and the GPU to run it.

Where the GPU is timed, every GEMM has weights of its own, which no L2 cache holds together. Between two of them stands
nothing: the bits of a BF16 result are the next one's FP8 operand.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

LENGTH = 20
M = 64
WEIGHTS = ((3584, 4096), (2048, 7168))  # (N, K), in turn; as many bytes as 7168 x 2048
CALLS = 50  # in flight together, where the GPU is what is measured
REPEATS = 9


def program(length: int) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    import jax_deepgemm

    def run(a, scales, weights):
        d = None
        for i in range(length):
            b, b_scale = weights[i % len(weights)]
            d = jax_deepgemm.fp8_gemm_nt((a, scales[a.shape[1]].T), (b, b_scale))
            a = jax.lax.bitcast_convert_type(d, jnp.float8_e4m3fn).reshape(M, -1)
        return d

    return run


def operands(copies: int) -> tuple[Any, ...]:
    """A, scales of A by K, and so many weights."""
    import jax
    import jax.numpy as jnp

    import jax_deepgemm

    def quantised(index: int) -> Any:
        n, k = WEIGHTS[index % 2]
        return cast(jax.random.normal(jax.random.key(index), (n, k), jnp.bfloat16) * k**-0.5)

    cast = jax.jit(jax_deepgemm.per_block_cast_to_fp8)
    a = jax.random.normal(jax.random.key(copies), (M, WEIGHTS[0][1])).astype(jnp.float8_e4m3fn)
    scales = {k: jnp.ones((k // 128, M)) for _, k in WEIGHTS}
    return a, scales, [quantised(i) for i in range(copies)]


def compiled(length: int, copies: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The chain, called a few times, and its operands."""
    import jax

    if jax.default_backend() != "gpu":
        raise RuntimeError(f"a chain is timed on a GPU, this backend is {jax.default_backend()}")
    args = operands(copies)
    run = jax.jit(program(length))
    for _ in range(10):
        jax.block_until_ready(run(*args))
    return run, args


def host_us(length: int) -> float:
    """Until a call returns, its work enqueued. The GPU is idle before each call, and slower than the host.

    The GEMMs share two weights: what jit takes for each argument is not a matter of the calls within.
    """
    import jax

    run, args = compiled(length, 2)
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        out = run(*args)
        times.append(time.perf_counter() - start)
        jax.block_until_ready(out)
    return statistics.median(times) * 1e6


def wall_us(length: int) -> float:
    """Of a call, when many follow each other without a wait."""
    import jax

    run, args = compiled(length, length)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        out = None
        for _ in range(CALLS):
            out = run(*args)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - start) / CALLS)
    return statistics.median(times) * 1e6


def kernels_us(length: int) -> float:
    """The sum of the kernels' own times in a call, each launched after its predecessor's end."""
    import jax

    import jax_deepgemm
    from benchmarks import capture

    with jax_deepgemm.set_pdl(False):  # overlapping kernels count what they overlap twice
        run, args = compiled(length, length)

    def calls() -> None:
        jax.block_until_ready([run(*args) for _ in range(CALLS)])

    capture.capture_jax(calls)  # the first recording of a process may miss events
    events = capture.capture_jax(calls)
    if len(events) != CALLS * length:
        raise capture.TimerError(f"{CALLS} calls should be {CALLS * length} kernels, recorded {len(events)} events")
    return sum(event.duration_ns for event in events) / CALLS / 1e3
