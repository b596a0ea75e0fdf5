from __future__ import annotations

import types
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jax_deepgemm import config, warn
from jax_deepgemm.target import H100, Target, lowering_target
from tests.deviceless import devices

X = jax.ShapeDtypeStruct((8, 8), jnp.float32)

_found: list[Target | None] = []
_probe = Primitive("jax_deepgemm_target_probe")
_probe.def_abstract_eval(lambda x: x)


def _lower(ctx: mlir.LoweringRuleContext, x: Any) -> Any:
    _found.append(lowering_target(ctx))
    return [x]


mlir.register_lowering(_probe, _lower, platform="cuda")
mlir.register_lowering(_probe, lambda ctx, x: [x])


def probe(x: jax.Array) -> jax.Array:
    return _probe.bind(x) + 1


@pytest.fixture(autouse=True)
def fresh() -> None:
    _found.clear()
    warn.warn_once.cache_clear()


def test_from_topology_device() -> None:
    target = Target.from_device(devices("h100")[0])
    assert target == H100 == Target("sm_90a", 132, 232448)
    assert target is not None and target.name == "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize("capability", ["8.0", "8.9", "10.0", "12.0"])
def test_no_target_for_other_gpus(capability: str) -> None:
    assert Target.from_device(types.SimpleNamespace(compute_capability=capability, core_count=100)) is None
    assert Target.from_device(jax.devices("cpu")[0]) is None


def test_shared_memory_that_the_device_does_not_tell() -> None:
    device = types.SimpleNamespace(compute_capability="9.0", core_count=78, device_kind="NVIDIA H20")
    assert Target.from_device(device) == Target("sm_90a", 78, 232448)


def test_bad_targets() -> None:
    with pytest.raises(ValueError, match="`arch` must be a real architecture such as sm_90a, got 'compute_90a'"):
        Target("compute_90a", 132, 232448)
    with pytest.raises(ValueError, match="`num_sms` must be a positive integer, got 0"):
        Target("sm_90a", 0, 232448)


def test_cpu_lowering_asks_for_no_target() -> None:
    assert jax.jit(probe)(jnp.zeros((2, 2)))[0, 0] == 1
    assert _found == []


def test_deviceless_topology() -> None:
    sharding = SingleDeviceSharding(devices("h100")[0])
    jax.jit(probe).lower(jax.ShapeDtypeStruct(X.shape, X.dtype, sharding=sharding))
    assert _found == [H100]


@pytest.mark.parametrize("manual", [False, True])
def test_deviceless_mesh(manual: bool) -> None:
    mesh = Mesh(np.array(devices("h100", 4)), ("x",))
    f = jax.shard_map(probe, mesh=mesh, in_specs=P("x"), out_specs=P("x")) if manual else probe
    jax.jit(f).lower(jax.ShapeDtypeStruct(X.shape, X.dtype, sharding=NamedSharding(mesh, P("x"))))
    assert _found == [H100]


def test_gpu_without_kernels_warns_once() -> None:
    sharding = SingleDeviceSharding(devices("b200")[0])
    with pytest.warns(RuntimeWarning, match=r"no kernels for NVIDIA B200.*capability 10\.0") as caught:
        for n in (2, 4):
            jax.jit(probe).lower(jax.ShapeDtypeStruct((n, n), X.dtype, sharding=sharding))
    assert _found == [None, None]
    assert len(caught) == 1


def test_devices_that_differ() -> None:
    def device(capability: str, core_count: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(compute_capability=capability, core_count=core_count, device_kind="GPU")

    def ctx(*found: types.SimpleNamespace) -> Any:
        backend = types.SimpleNamespace(platform="gpu", devices=lambda: found)
        return types.SimpleNamespace(module_context=types.SimpleNamespace(backend=backend))

    target = lowering_target(ctx(device("9.0", 132), device("9.0", 114)))
    assert target is not None and target.num_sms == 114
    with pytest.warns(RuntimeWarning, match=r"capability 8\.0"):
        assert lowering_target(ctx(device("9.0", 132), device("8.0", 108))) is None


def _export() -> None:
    jax.export.export(jax.jit(probe), platforms=("cpu", "cuda"))(X)


def test_export_from_the_cpu() -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("a GPU is there to ask")
    with pytest.warns(RuntimeWarning, match=r"no CUDA device to ask.*set_target"):
        _export()
    assert _found == [None]


def test_export_for_a_set_target() -> None:
    small = Target("sm_90a", 78, 232448)
    with warnings.catch_warnings(), config.set_target(small):
        warnings.simplefilter("error")
        _export()
    assert _found == [small]
