"""Which memory is written, and that what other kernels left in memory does not matter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import fp8_gemm_nt
from jax_deepgemm.checks import Quantized
from tests.gpu.configurations import FEW, K, M, N, name
from tests.gpu.native import forced, hlo, launches, native, poison
from tests.gpu.problems import all_same, problem, same_bits

pytestmark = pytest.mark.gpu


def address(x: jax.Array) -> int:
    return x.unsafe_buffer_pointer()


@pytest.mark.parametrize("config", [None, *FEW], ids=name)
def test_results_are_written_completely_and_nothing_beside_them(config):
    """Fifteen arrays of one size, most likely one after the other in memory: every other one becomes the result."""
    m = M + 4  # results of a multiple of 256 bytes: the allocator leaves no gap between them
    p = problem(m, N, K)

    def overwrite(before, a, b):
        del before
        return fp8_gemm_nt(a, b)

    shape = jax.ShapeDtypeStruct((m, N), jnp.bfloat16)
    with forced(config):
        run = jax.jit(overwrite, donate_argnums=0, keep_unused=True).lower(shape, p.a, p.b).compile()
    assert launches(run) == 1
    guard = np.random.default_rng(0).integers(0, 2**16, (m, N), np.uint16).view(shape.dtype)
    arrays = [poison(shape) if i % 2 else jax.device_put(guard) for i in range(15)]
    places = [address(x) for x in arrays]
    results = []
    for i in range(1, 15, 2):
        results.append(run(arrays[i], p.a, p.b))
        assert address(results[-1]) == places[i], "XLA did not reuse the memory that held NaN: this test proves nothing"
    p.check(results[0])
    assert all_same(results)
    assert all(same_bits(x, guard) for x in arrays[::2])


@pytest.mark.parametrize("config", [None, *FEW], ids=name)
def test_what_shared_memory_held_does_not_matter(config):
    """A first run fills the pipeline of every SM with NaN. The second one's tiles end beyond its operands."""
    large, small = problem(1024, 2112, 1040), problem(77, 136, 400)
    fill = Quantized(*(jnp.full(v.shape, jnp.nan, v.dtype) for v in large.a)), large.b
    both = native(lambda x, y: (fp8_gemm_nt(*x), fp8_gemm_nt(*y)), fill, (small.a, small.b), calls=2, config=config)
    dirty, d = both(fill, (small.a, small.b))
    assert jnp.isnan(dirty).all()
    small.check(d)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_donated_c_becomes_the_result(dtype):
    p = problem(M, N, K)
    c = p.c(dtype)
    copy, place = np.asarray(c).copy(), address(c)

    def add(a, a_scale_transposed, b, c):
        return fp8_gemm_nt((a, a_scale_transposed.T), b, c=c, out_dtype=dtype)

    args = p.a.data, jnp.asarray(np.ascontiguousarray(np.asarray(p.a.scale).T)), p.b, c
    run = jax.jit(add, donate_argnums=3).lower(*args).compile()
    assert launches(run) == 1 and " copy(" not in hlo(run) and "transpose(" not in hlo(run)
    d = run(*args)
    assert address(d) == place and c.is_deleted()
    p.check(d, copy)


def test_a_c_that_is_not_donated_keeps_its_value():
    p = problem(M, N, K)
    c = p.c(jnp.float32)
    copy = np.asarray(c).copy()
    p.check(native(lambda a, b, c: fp8_gemm_nt(a, b, c=c, out_dtype=jnp.float32), p.a, p.b, c)(p.a, p.b, c), c)
    assert same_bits(c, copy)
