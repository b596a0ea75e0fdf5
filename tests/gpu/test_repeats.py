"""The same inputs give bitwise the same result, also while another stream keeps the GPU busy."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import jax.numpy as jnp
import pytest

from jax_deepgemm import fp8_gemm_nt, per_token_cast_to_fp8, set_pdl
from tests.gpu.configurations import FEW, name
from tests.gpu.native import native
from tests.gpu.problems import all_same, problem

pytestmark = pytest.mark.gpu

REPEATS = 50


@pytest.fixture(scope="module")
def busy() -> Iterator[None]:
    """Another stream of this process, loaded with products that come and go, so that SMs are free at random times.

    JAX has one stream for all that it computes on a device, hence PyTorch.
    """
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    stop, started = threading.Event(), threading.Event()

    def load() -> None:
        try:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                factors = [torch.randn(s, s, device="cuda", dtype=torch.bfloat16) for s in (512, 2048, 640)]
                while not stop.is_set():
                    for _ in range(8):
                        for x in factors:
                            torch.mm(x, x)
                    stream.synchronize()
                    started.set()
        finally:
            started.set()

    thread = threading.Thread(target=load)
    thread.start()
    assert started.wait(60) and thread.is_alive()
    yield
    assert thread.is_alive()
    stop.set()
    thread.join()


@pytest.mark.parametrize("m, n, k", [(1, 576, 7168), (64, 2112, 7168), (1000, 2112, 2048)])
def test_chosen_configurations(m, n, k, busy):
    repeat(None, m, n, k)


@pytest.mark.parametrize("config", FEW, ids=name)
def test_configurations(config, busy):
    repeat(config, 300, 616, 4112)


def repeat(config, m, n, k):
    p = problem(m, n, k)
    c = p.c(jnp.bfloat16)
    run = native(lambda a, b, c: fp8_gemm_nt(a, b, c=c), p.a, p.b, c, config=config)
    results = run.many(REPEATS, p.a, p.b, c)
    p.check(results[0], c)
    assert all_same(results)


# --- programmatic dependent launch: a kernel starts before its predecessor has ended -------------------------------


def with_and_without_pdl(function, *args, calls, config=None):
    results = []
    for enabled in (True, False):
        with set_pdl(enabled):
            run = native(function, *args, calls=calls, config=config)
        results += run.many(5, *args)
    assert all_same(results)
    return results[0]


@pytest.mark.parametrize("config", [None, *FEW], ids=name)
def test_each_result_is_the_next_ones_c(config):
    """Our kernels alone, one after the other, in place: each reads and overwrites what its predecessor wrote."""
    p = problem(300, 616, 1040)
    c = p.c(jnp.float32)

    def chain(a, b, c):
        for _ in range(20):
            c = fp8_gemm_nt(a, b, c=c, out_dtype=jnp.float32)
        return c

    p.check(with_and_without_pdl(chain, p.a, p.b, c, calls=20, config=config), c, copies=20)


def test_each_result_is_the_next_ones_operand():
    p = problem(64, 2048, 2048)

    def layers(a, b):
        for _ in range(5):
            d = fp8_gemm_nt(a, b)
            a = per_token_cast_to_fp8(d / jnp.maximum(jnp.abs(d).max(axis=1, keepdims=True), 1e-6))
        return fp8_gemm_nt(a, b)

    d = with_and_without_pdl(layers, p.a, p.b, calls=11)  # casts are ours too
    assert jnp.isfinite(d).all()


def test_two_configurations_in_turns():
    """Kernels of different clusters and shared memory, of which one can begin beside the other."""
    p, q = problem(64, 2112, 7168), problem(1000, 576, 400)

    def turns(x, y):
        first, second = fp8_gemm_nt(*x), fp8_gemm_nt(*y)
        for _ in range(5):
            first = fp8_gemm_nt(*x, c=first)
            second = fp8_gemm_nt(*y, c=second)
        return jnp.concatenate([first.ravel(), second.ravel()])

    with_and_without_pdl(turns, (p.a, p.b), (q.a, q.b), calls=12)
