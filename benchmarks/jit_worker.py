"""One measurement of the suite `jit`, in a process of its own: imports, prints "ready", waits for a line, measures."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

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


def chain(length: int) -> Any:
    """GEMMs in a row with nothing between them: the bits of each BF16 result are the next one's FP8 operand."""
    import jax
    import jax.numpy as jnp

    import jax_deepgemm

    def run(a, a_scale_t, b, b_scale):
        d = None
        for _ in range(length):
            d = jax_deepgemm.fp8_gemm_nt((a, a_scale_t.T), (b, b_scale))
            a = jax.lax.bitcast_convert_type(d, jnp.float8_e4m3fn).reshape(a.shape)
        return d

    return jax.jit(run)


def chain_operands() -> tuple[Any, ...]:
    import jax
    import jax.numpy as jnp

    m, n, k = 16, 512, 1024
    a, b = jax.random.normal(jax.random.key(0), (m, k)), jax.random.normal(jax.random.key(1), (n, k))
    return (
        a.astype(jnp.float8_e4m3fn),
        jnp.ones((k // 128, m), jnp.float32),
        b.astype(jnp.float8_e4m3fn),
        jnp.ones((n // 128, k // 128), jnp.float32),
    )


def host_times() -> dict[str, float]:
    """Median time in us until a call of a chain returns, its work enqueued. The GPU is idle before each call."""
    import jax

    if jax.default_backend() != "gpu":
        raise RuntimeError(f"the chain is enqueued on a GPU, this backend is {jax.default_backend()}")
    operands = chain_operands()
    compiled = {length: chain(length).lower(*operands).compile() for length in (20, 40)}
    ready()
    found = {}
    for length, run in compiled.items():
        times = []
        for index in range(CALLS + 10):
            start = time.perf_counter()
            out = run(*operands)
            took = (time.perf_counter() - start) * 1e6
            jax.block_until_ready(out)
            if index >= 10:
                times.append(took)
        found[f"host_us_{length}"] = statistics.median(times)
    return found


if __name__ == "__main__":
    try:
        print(json.dumps({"compile": compile_times, "chain": host_times}[sys.argv[1]]()), flush=True)
    except Exception as error:
        sys.exit(f"jit {sys.argv[1]}: {type(error).__name__}: {error}")
