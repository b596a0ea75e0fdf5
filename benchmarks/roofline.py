"""The two ceilings of this card, measured in the same run, and the time that they allow a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import peers
from benchmarks.capture import EventSource
from benchmarks.environment import warn
from benchmarks.timing import Call, Flush, measure

COPY_BYTES = 1024**3


def copy_gbs(source: EventSource, flush: Flush) -> float:
    """The best rate of a device-to-device copy of 1 GiB, in GB/s, bytes read plus bytes written."""
    import jax
    import jax.numpy as jnp

    buffer = jnp.arange(COPY_BYTES // 4, dtype=jnp.uint32)
    copies = {"memcpy": jnp.copy, "kernel": lambda x: x + jnp.uint32(3)}  # whichever this XLA does better
    calls: dict[str, Call] = {name: peers.jax_call(copy, buffer).call for name, copy in copies.items()}
    for call in calls.values():
        call()
    jax.block_until_ready(buffer)
    return 2 * COPY_BYTES / 1e3 / min(timing.us for timing in measure(calls, 10, source, flush).values())


def fp8_tflops(operands: peers.Operands, source: EventSource, flush: Flush) -> float | None:
    """The best FP8 matrix rate seen on `operands`, [8192,8192] each, in TFLOP/s: cuBLASLt's, or ours where faster."""
    return tflops(operands, {"cublaslt": peers.cublaslt, "ours": peers.ours}, source, flush)


def tflops(
    operands: Any, candidates: Mapping[str, Callable[[Any], peers.Prepared]], source: EventSource, flush: Flush
) -> float | None:
    """The best rate of the candidates in `operands.a @ operands.b.T`, in TFLOP/s."""
    calls: dict[str, Call] = {}
    for name, prepare in candidates.items():
        try:
            prepared = prepare(operands)
            prepared.call()
        except Exception as error:
            warn(f"peak: {name} left out: {type(error).__name__}: {error}")
        else:
            calls[name] = prepared.call
    timings: Mapping = measure(calls, 10, source, flush) if calls else {}
    if not timings:
        return None
    m, n, k = operands.a.shape[0], operands.b.shape[0], operands.a.shape[1]
    return 2 * m * n * k / 1e6 / min(timing.us for timing in timings.values())


def limit_us(flops: float, moved: float, peak_tflops: float | None, rate_gbs: float) -> float:
    """The least time of a case in us: its FLOPs at the peak or its bytes at the copy rate."""
    return max(flops / 1e6 / peak_tflops if peak_tflops else 0.0, moved / 1e3 / rate_gbs)
