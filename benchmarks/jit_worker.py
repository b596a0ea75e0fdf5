"""One measurement of the suite `jit`, in a process of its own: imports, prints "ready", waits for a line, measures."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import chain

CALLS = 50


def ready() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def microseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e6


def kernel() -> tuple[Any, str]:
    """The kernel of a decode-sized GEMM on an H100, with its architecture. Needs no GPU."""
    import jax
    import jax.numpy as jnp

    from jax_deepgemm import config, target
    from jax_deepgemm.ops.fp8_gemm_plan import RECIPE, plan

    m, n, k = 64, 4096, 7168
    avals = [
        jax.ShapeDtypeStruct((m, k), jnp.float8_e4m3fn),
        jax.ShapeDtypeStruct((m, k // 128), jnp.float32),
        jax.ShapeDtypeStruct((n, k), jnp.float8_e4m3fn),
        jax.ShapeDtypeStruct((n // 128, k // 128), jnp.float32),
    ]
    out = [jax.ShapeDtypeStruct((m, n), jnp.bfloat16)]
    params = {"out_dtype": jnp.dtype(jnp.bfloat16), "recipe": RECIPE}
    launch = plan(avals, out, params, target.H100, config.Config())
    if launch is None:
        raise RuntimeError("there is no native plan for the dense GEMM")
    return launch.kernel, target.H100.arch


def compile_times() -> dict[str, float]:
    """Loading NVRTC, the first compilation (or disk hit) and the next call, in us."""
    from jax_deepgemm import compile as compiler

    made, arch = kernel()
    ready()
    return {
        "load_us": microseconds(compiler.nvrtc_location),
        "first_us": microseconds(lambda: compiler.compile_kernel(made, arch)),
        "again_us": statistics.median(microseconds(lambda: compiler.compile_kernel(made, arch)) for _ in range(CALLS)),
    }


def chains() -> dict[str, float]:
    """Times in us of a call of a chain, on the host and on the GPU."""
    ready()
    return chain.host_us(chain.LENGTH) | chain.device_us(chain.LENGTH)


if __name__ == "__main__":
    try:
        print(json.dumps({"compile": compile_times, "chain": chains}[sys.argv[1]]()), flush=True)
    except Exception as error:
        sys.exit(f"jit {sys.argv[1]}: {type(error).__name__}: {error}")
