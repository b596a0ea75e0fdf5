"""Time on the GPU's own clock, without events or CUPTI: a kernel that waits, and then writes what the clock says.

The wait is for the host. Calls enqueued during it run one after the other without a gap, however long each takes to
enqueue, as they would inside a CUDA graph or behind larger kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar
from jax_deepgemm.op import Op
from jax_deepgemm.primitive import make

SHORTEST_WAIT, LONGEST_WAIT = 2.0**-10, 2.0**-3  # seconds


def gpu_seconds(enqueue: Callable[[], Any], wait: float = SHORTEST_WAIT) -> tuple[float, float]:
    """The GPU's time for what `enqueue` launches and returns, and the wait that it took: give it to the next call.

    Where the host takes longer than the wait, all is done again with a longer one.
    """
    while True:
        before = _stamp(wait)
        start = time.perf_counter()
        results = enqueue()
        took = time.perf_counter() - start
        after = _stamp(0.0)
        jax.block_until_ready(results)
        if took < wait or wait >= LONGEST_WAIT:
            return (_nanoseconds(after) - _nanoseconds(before)) * 1e-9, wait
        wait *= 2  # powers of two, since every wait is a program of its own


def _nanoseconds(words: jax.Array) -> int:
    return int(np.asarray(words).view(np.uint64)[0])


def _stamp(wait: float) -> jax.Array:
    return _call(nanoseconds=round(wait * 1e9))[0]


def _plan(avals: Any, out_avals: Any, params: Any, target: Any, config: Any) -> Launch:
    return Launch(
        kernel=Kernel("stamp"),
        grid=(1, 1, 1),
        block=(1, 1, 1),
        arguments=(Pointer(0), Scalar(params["nanoseconds"], "uint64")),
    )


def _reference(*, nanoseconds: int) -> list[jax.Array]:
    raise NotImplementedError("only a GPU has the clock that is asked")


_call: Any = make(
    Op(
        name="stamp",
        abstract_eval=lambda avals, nanoseconds: [jax.ShapeDtypeStruct((2,), jnp.uint32)],  # one of 64 bits
        reference=_reference,
        plan=_plan,
    )
)
