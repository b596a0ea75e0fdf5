"""Several threads, and several devices, at once."""

from __future__ import annotations

import concurrent.futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jax_deepgemm import fp8_gemm_nt
from tests.gpu.configurations import FEW
from tests.gpu.native import launches, native
from tests.gpu.problems import all_same, problem, same_bits

pytestmark = pytest.mark.gpu

TIMES = 50


@pytest.fixture
def devices():
    if len(jax.devices()) < 2:
        pytest.skip("needs two GPUs")
    return jax.devices()[:2]


def in_threads(*functions) -> None:
    with concurrent.futures.ThreadPoolExecutor(len(functions)) as pool:
        for future in [pool.submit(f) for f in functions]:
            future.result()


def test_two_threads_with_their_own_programs():
    problems = [problem(77, 576, 1040), problem(300, 616, 400)]
    runs = [native(fp8_gemm_nt, p.a, p.b, config=config) for p, config in zip(problems, FEW[:2], strict=True)]
    wanted = [np.asarray(run(p.a, p.b)) for run, p in zip(runs, problems, strict=True)]

    def many(i):
        assert all_same([wanted[i], *runs[i].many(TIMES, problems[i].a, problems[i].b)])

    in_threads(lambda: many(0), lambda: many(1))


def test_four_threads_with_one_program_and_other_operands():
    p = problem(300, 616, 1040)
    run = native(fp8_gemm_nt, p.a, p.b)
    shuffled = [
        jax.tree.map(lambda x, s=s: jax.device_put(np.random.default_rng(s).permutation(np.asarray(x))), p.a)
        for s in range(4)
    ]
    wanted = [np.asarray(run(a, p.b)) for a in shuffled]
    assert not same_bits(wanted[0], wanted[1])

    def many(i):
        assert all_same([wanted[i], *run.many(TIMES, shuffled[i], p.b)])

    in_threads(*(lambda i=i: many(i) for i in range(4)))


def test_threads_that_compile_and_load_at_once():
    problems = [problem(m, 576, 1040) for m in (5, 40, 100, 200)]

    def first(p):
        p.check(jax.jit(lambda a, b: fp8_gemm_nt(a, b, out_dtype=jnp.float32))(p.a, p.b))

    in_threads(*(lambda p=p: first(p) for p in problems))


def test_one_program_on_two_devices(devices):
    p = problem(300, 2112, 1040)
    mesh = jax.make_mesh((2,), ("x",), devices=devices, axis_types=(AxisType.Auto,))
    mapped = jax.jit(jax.shard_map(fp8_gemm_nt, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x")))
    compiled = mapped.lower(p.a, p.b).compile()
    assert launches(compiled) == 1
    results = [mapped(p.a, p.b) for _ in range(TIMES)]
    p.check(results[0])
    assert all_same(results)


def test_two_threads_with_a_device_each(devices):
    p = problem(300, 2112, 1040)

    def many(device):
        a, b = jax.device_put((p.a, p.b), device)
        function = jax.jit(fp8_gemm_nt)
        results = [function(a, b) for _ in range(TIMES)]
        p.check(results[0])
        assert all_same(results) and results[0].devices() == {device}

    in_threads(*(lambda d=d: many(d) for d in devices))
