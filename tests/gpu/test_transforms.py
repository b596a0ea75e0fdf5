"""vmap, shard_map, jit over a mesh, control flow and export, run by kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.export import DisabledSafetyCheck
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_deepgemm import _native, fp8_gemm_nt
from jax_deepgemm.checks import Quantized
from tests.gpu.native import hlo, launches, native
from tests.gpu.problems import problem, same_bits

pytestmark = pytest.mark.gpu

BATCH = 3


def stacked(x: Quantized, rolled: bool) -> Quantized:
    """A batch of three: `x` with its rows moved around by whole blocks of 128."""
    shifts = [128 * i * rolled for i in range(BATCH)]
    return Quantized(
        jnp.asarray(np.stack([np.roll(np.asarray(x.data), s, 0) for s in shifts])),
        jnp.asarray(np.stack([np.roll(np.asarray(x.scale), s * len(x.scale) // len(x.data), 0) for s in shifts])),
    )


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap(axes):
    p = problem(256, 384, 1040)
    a, b = (stacked(x, True) if axis == 0 else x for x, axis in zip((p.a, p.b), axes, strict=True))
    d = native(jax.vmap(fp8_gemm_nt, axes), a, b)(a, b)
    for i in range(BATCH):
        shifts = [-128 * i if axis == 0 else 0 for axis in axes]
        p.check(jnp.roll(d[i], shifts, (0, 1)))


@pytest.mark.parametrize("specs", [(P("x"), P()), (P(), P("x"))])
def test_shard_map(specs):
    p = problem(256, 384, 1040)
    mesh = jax.make_mesh((1,), ("x",), devices=jax.devices()[:1], axis_types=(AxisType.Auto,))
    out = P("x") if specs[0] == P("x") else P(None, "x")
    p.check(run_native(jax.shard_map(fp8_gemm_nt, mesh=mesh, in_specs=specs, out_specs=out), p))


def test_jit_over_all_devices():
    """The kernel's way through the partitioning rule; with one GPU, its way around it."""
    count = len(jax.devices())
    p = problem(128 * count, 384, 1024)
    mesh = jax.make_mesh((count,), ("x",), axis_types=(AxisType.Auto,))
    a, b = jax.device_put((p.a, p.b), (NamedSharding(mesh, P("x")), NamedSharding(mesh, P())))
    function = jax.jit(fp8_gemm_nt)
    compiled = function.lower(a, b).compile()
    assert launches(compiled) == 1 and "all-gather" not in hlo(compiled)
    p.check(function(a, b))


def run_native(function, p):
    jitted = jax.jit(function)
    assert launches(jitted.lower(p.a, p.b).compile()) == 1
    return jitted(p.a, p.b)


def test_outside_jit():
    p = problem(40, 384, 400)
    assert same_bits(fp8_gemm_nt(p.a, p.b), run_native(fp8_gemm_nt, p))


def test_cond_and_checkpoint():
    p = problem(40, 384, 400)

    def either(flag, a, b):
        return jax.lax.cond(flag, jax.checkpoint(fp8_gemm_nt), lambda a, b: -fp8_gemm_nt(a, b), a, b)

    run = native(either, True, p.a, p.b, calls=2)
    p.check(run(True, p.a, p.b))
    p.check(-run(False, p.a, p.b))


@pytest.mark.parametrize("platforms", [("cuda",), ("cpu", "cuda")])
def test_export_round_trip(platforms):
    p = problem(77, 576, 1040)
    allowed = [DisabledSafetyCheck.custom_call(_native.TARGET)]
    exported = jax.export.export(jax.jit(fp8_gemm_nt), platforms=platforms, disabled_checks=allowed)(p.a, p.b)
    again = jax.export.deserialize(exported.serialize())
    d = run_native(again.call, p)
    assert same_bits(d, run_native(fp8_gemm_nt, p))
    p.check(d)
