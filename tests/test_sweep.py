"""`benchmarks.sweep`, as far as it runs without a GPU."""

from __future__ import annotations

import sys
import types

import jax
import jax.numpy as jnp
import pytest

import jax_deepgemm as dg
from benchmarks import power, sweep
from jax_deepgemm import tuned
from jax_deepgemm.config import current
from jax_deepgemm.primitive import OPS
from jax_deepgemm.target import H100

DENSE = next(op for op in OPS.values() if op.name == "fp8_gemm_nt")


def planned(config=None):
    """The plan of a GEMM as a lowering asks for it."""
    k = 1024
    shapes = (256, k), (256, k // 128), (512, k), (4, k // 128)
    dtypes = (jnp.float8_e4m3fn, jnp.float32) * 2
    avals = [jax.ShapeDtypeStruct(*one) for one in zip(shapes, dtypes, strict=True)]
    params = {"out_dtype": jnp.dtype(jnp.bfloat16), "recipe": ((1, 128), (128, 128)), "config": config}
    out = DENSE.abstract_eval(avals, **params)
    return tuned.plan(DENSE, avals, out, params, H100, current())[0]


def test_override_takes_the_configuration_and_collects_the_ranking():
    usual = planned()
    config = sweep.parsed("GemmConfig(rows=64, columns=48)")
    expected = planned(config)
    with sweep.overriding() as override:
        override.seen = {}
        assert planned() == usual
        ranking = list(override.seen)
        override.config = config
        assert planned() == expected
    assert planned() == usual != expected
    assert len(ranking) > 8 and all(isinstance(c, dg.GemmConfig) for c in ranking)


@pytest.mark.parametrize("text", ["__import__('os')", "GemmConfig(rows=65, columns=48)", "Nothing()"])
def test_other_texts_are_refused(text):
    with pytest.raises((NameError, ValueError)):
        sweep.parsed(text)


def test_table_has_the_fastest_first_and_ratios_to_the_choice():
    config = dg.GemmConfig(rows=64, columns=48)
    drawn = power.Power(us=2.0, watts=500, mhz=1500, calls=7)
    lines = sweep.table({"as chosen": 3.0, sweep.label(config): 2.0}, {"as chosen": drawn})
    assert [line.split()[0] for line in lines] == ["2.00", "3.00"]
    assert "1.500x" in lines[0] and lines[0].endswith("GemmConfig(rows=64, columns=48)")
    assert "500 W" in lines[1] and "1.0 mJ" in lines[1] and "3 kcycles" in lines[1]


def test_power_divides_energy_by_time(monkeypatch):
    energy = iter([1000, 4000])
    nvml = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(energy),
        nvmlDeviceGetClockInfo=lambda handle, kind: 1500,
        NVML_CLOCK_SM=1,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(power, "WARM_SECONDS", 0)
    found = power.measure(lambda: None, seconds=0.01)
    assert found.mhz == 1500 and found.calls > 1
    assert found.watts == pytest.approx(3 / (found.us * found.calls / 1e6))
