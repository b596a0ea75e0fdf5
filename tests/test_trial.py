"""The programs that `tune` times, run by reference, and compiled for a GPU that is not there."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import H100, GemmConfig, compile, race, stopwatch, trial
from jax_deepgemm.config import current
from jax_deepgemm.ops.fp8_gemm_plan import RECIPE
from jax_deepgemm.primitive import OPS
from tests.deviceless import LAUNCH, OPTIMISED, moves, sharding

PRIMITIVE, OP = next((primitive, op) for primitive, op in OPS.items() if op.name == "fp8_gemm_nt")
CONFIGS = [GemmConfig(64, 64), GemmConfig(64, 16, swap=True), GemmConfig(64, 32)]


def problem(m, n, k, has_c, dtype=jnp.bfloat16):
    shapes = [((m, k), jnp.float8_e4m3fn), ((m, k // 128), jnp.float32)]
    shapes += [((n, k), jnp.float8_e4m3fn), ((n // 128, k // 128), jnp.float32)]
    avals = [jax.ShapeDtypeStruct(*s) for s in shapes + [((m, n), dtype)] * has_c]
    params = {"recipe": RECIPE, "out_dtype": jnp.dtype(dtype)}
    bind = functools.partial(PRIMITIVE.bind, settings=current(), partitioned=None, **params)
    return bind, avals, params | {"config": None}


@pytest.mark.parametrize("has_c", [False, True])
def test_fastest_runs_every_configuration_on_all_copies(has_c, monkeypatch):
    bind, avals, params = problem(8, 128, 256, has_c)
    monkeypatch.setattr(trial, "ROTATION_BYTES", 20 * 40e3)  # 20 copies: two programs' worth
    monkeypatch.setattr(trial, "gpu_seconds", lambda enqueue, wait: (jax.block_until_ready(enqueue()), (1e-3, wait))[1])
    calls = []

    def winner(batches):
        assert [batch() for batch in batches] == [1e-3] * 3
        return 1, 64e-6, 128e-6

    monkeypatch.setattr(race, "winner", winner)

    def counted(*operands, config):
        calls.append((config, operands))
        return bind(*operands, config=config)

    best, us, first = trial.fastest(OP, counted, avals, params, CONFIGS)
    assert (best, us, first) == (
        1,
        1.0,
        2.0,
    )  # 64 calls: two rounds of 32, which are the 20 copies rounded up to whole programs
    assert [config for config, _ in calls] == [config for config in CONFIGS for _ in range(trial.CALLS)]
    assert all([(x.shape, x.dtype) for x in operands] == [(a.shape, a.dtype) for a in avals] for _, operands in calls)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e8m0fnu", "bfloat16", "float32", "uint8", "int32"])
def test_random_operands(dtype):
    x = trial._random(jax.random.key(0), (64, 128), jnp.dtype(dtype))
    assert x.shape == (64, 128) and x.dtype == dtype and jnp.isfinite(x.astype(jnp.float32)).all()
    assert (jnp.unique(x.astype(jnp.float32)).size > 100) == (dtype not in ("float8_e8m0fnu", "int32"))


@pytest.mark.parametrize("has_c", [False, True])
def test_the_program_moves_nothing_on_a_gpu(has_c):
    bind, avals, params = problem(64, 384, 256, has_c)
    orders = trial._orders(OP, avals, params)
    assert orders[:2] == [(0, 1), (1, 0)]
    on = sharding("h100")
    operands = [
        jax.ShapeDtypeStruct(tuple(a.shape[d] for d in order), a.dtype, sharding=on)
        for a, order in zip(avals, orders, strict=True)
    ]
    aliases = OP.aliases(avals, params)
    run = trial.program(functools.partial(bind, config=CONFIGS[0]), orders, aliases)
    compiled = run.lower({i: operands[i] for i in aliases}, [operands] * 3).compile(OPTIMISED).as_text()
    assert compiled.count(LAUNCH) == 3
    assert moves(compiled) == []


def on_a_clock(monkeypatch, took):
    """The host's clock as `gpu_seconds` reads it: `took` has the seconds that each call of what is enqueued takes."""
    readings = iter([reading for seconds in took for reading in (0.0, seconds)])
    monkeypatch.setattr(stopwatch, "time", types.SimpleNamespace(perf_counter=lambda: next(readings)))


def test_the_stopwatch_compiles_and_waits_no_shorter_than_the_host(monkeypatch):
    launch = stopwatch._plan([], [], {"nanoseconds": 10**6}, H100, current())
    compile.compile_kernel(launch.kernel, H100.arch)
    stamps = iter([1, 2, 5_000, 2**40 + 7, 2**40 + 8, 2**41])
    waits = []

    def stamp(wait):
        waits.append(wait)
        return np.asarray([next(stamps)], np.uint64).view(np.uint32)

    monkeypatch.setattr(stopwatch, "_stamp", stamp)
    on_a_clock(monkeypatch, [0.01, 0.01, 0.001])
    seconds, wait = stopwatch.gpu_seconds(lambda: None, 2**-7)
    assert (seconds, wait) == (pytest.approx((2**40 - 4993) * 1e-9), 2**-6)
    assert stopwatch.gpu_seconds(lambda: None, wait) == (pytest.approx((2**40 - 8) * 1e-9), wait)
    assert waits == [2**-7, 0.0, 2**-6, 0.0, 2**-6, 0.0]


def test_the_longest_wait_is_taken_as_it_is(monkeypatch):
    monkeypatch.setattr(stopwatch, "_stamp", lambda wait: np.zeros(2, np.uint32))
    on_a_clock(monkeypatch, [0.2])
    assert stopwatch.gpu_seconds(lambda: None, stopwatch.LONGEST_WAIT) == (0.0, stopwatch.LONGEST_WAIT)
