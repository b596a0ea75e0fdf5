"""The m-grouped GEMMs with FP4 weights: references against float64, sharding, what XLA compiles, errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jax_deepgemm as jd
from jax_deepgemm import m_grouped_fp8_fp4_gemm_nn_contiguous as nn
from jax_deepgemm import m_grouped_fp8_fp4_gemm_nt_contiguous as nt
from jax_deepgemm import m_grouped_fp8_fp4_gemm_nt_masked as masked
from tests import m_grouped
from tests.deviceless import LAUNCH, moves
from tests.fp4 import BY_32, KINDS, in_bytes
from tests.helpers import assert_close
from tests.sharded import BOTH, collectives, mesh_of, put, stack
from tests.test_deviceless import compiled

SCALES = pytest.mark.parametrize("use_ue8m0, recipe", KINDS.values(), ids=KINDS)
SIZES = (20, 0, 40, 4)
INDEX, ENDS = m_grouped.index_of(SIZES, 0), m_grouped.psum_of(SIZES)
MASKED_M = np.array([3, 16, 0, -7], np.int32)


@functools.cache
def problem(use_ue8m0=True, recipe=BY_32, n=128, k=288):
    """Operands of 64 rows and 4 groups, and their float64 values."""
    a, b = m_grouped.operands(64, n, k, 4, "fp8_fp4", use_ue8m0=use_ue8m0, recipe=recipe)
    return a, b, *m_grouped.dequantised(a, b)


def stacked(x):
    """[G, Mmax, K] of [G * Mmax, K]."""
    return jax.tree.map(lambda v: v.reshape(4, -1, v.shape[-1]), x)


def masked_oracle(rows, weights, masked_m=MASKED_M):
    return m_grouped.masked_oracle(rows.reshape(4, 16, -1), weights, masked_m)


def check(got, wanted):
    assert_close(got, wanted)
    assert not np.any(np.asarray(got)[~wanted.any(axis=-1)])  # exactly zero


@SCALES
@pytest.mark.parametrize("k", [272, 288])
def test_contiguous(k, use_ue8m0, recipe):
    """Rows in any order, and of no group; then by ends that are none, with packed weights, as they lie and turned."""
    a, b, rows, weights = problem(use_ue8m0, recipe, k=k)
    index = np.random.default_rng(1).integers(-2, 6, 64).astype(np.int32)
    check(nt(a, b, jnp.asarray(index), recipe=recipe), m_grouped.oracle(rows, weights, index))
    ends, index = jnp.array([20, -5, 2**31 - 1, 60], jnp.int32), m_grouped.index_of((20, 0, 44, 0), 0)
    turned = jax.tree.map(lambda x: x.swapaxes(1, 2), b)
    for function, given in ((nt, b), (nn, turned)):
        call = functools.partial(function, use_psum_layout=True, out_dtype=jnp.float32, recipe=recipe)
        check(call(a, in_bytes(given), ends), m_grouped.oracle(rows, weights, index))


@SCALES
def test_masked(use_ue8m0, recipe):
    a, b, rows, weights = problem(use_ue8m0, recipe)
    check(masked(stacked(a), b, jnp.asarray(MASKED_M), 8, recipe=recipe), masked_oracle(rows, weights))


@pytest.mark.parametrize("m, groups, n", [(0, 3, 16), (5, 0, 16), (5, 3, 0)])
def test_nothing_to_do(m, groups, n):
    a = jd.Quantized(jnp.zeros((m, 256), jnp.float8_e4m3fn), jnp.ones((m, 2)))
    b = jd.Quantized(jnp.zeros((groups, n, 128), jnp.uint8), jnp.ones((groups, n, 8)))
    got = nt(a, b, jnp.zeros(m, jnp.int32))
    assert got.shape == (m, n) and not np.any(np.asarray(got))
    a = jax.tree.map(lambda x: jnp.zeros((groups, *x.shape), x.dtype), a)
    assert masked(a, b, jnp.zeros(groups, jnp.int32), 4).shape == (groups, m, n)


# --- transformations -----------------------------------------------------------------------------------------------


def test_vmap():
    """Over the weights it folds into N, over masked operands into the groups."""
    a, b, rows, weights = problem()
    function = jax.vmap(lambda b: nt(a, b, jnp.asarray(INDEX)))
    args = (stack([b, jax.tree.map(lambda x: x[::-1], b)]),)
    assert "bf16[64,256] = jax_deepgemm_m_grouped" in str(jax.make_jaxpr(function)(*args))
    for got, w in zip(function(*args), (weights, weights[::-1]), strict=True):
        assert_close(got, m_grouped.oracle(rows, w, INDEX))
    function = jax.vmap(lambda a, b, masked_m: masked(a, b, masked_m, 8))
    args = stack([stacked(a)] * 2), stack([b] * 2), jnp.stack([MASKED_M, MASKED_M[::-1]])
    assert "bf16[8,16,128] = jax_deepgemm_m_grouped" in str(jax.make_jaxpr(function)(*args))
    for got, masked_m in zip(function(*args), args[2], strict=True):
        assert_close(got, masked_oracle(rows, weights, masked_m))


@pytest.mark.parametrize("mesh_kind", BOTH)
def test_weights_stay_sharded_over_n(mesh_kind):
    a, b, rows, weights = problem()
    mesh = mesh_of(mesh_kind, 8)
    args = put(a, mesh, P()), put(b, mesh, P(None, "x")), put(jnp.asarray(ENDS), mesh, P())
    function = functools.partial(nt, use_psum_layout=True)
    assert collectives(function, *args) == set()
    d = jax.jit(function)(*args)
    assert d.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "x")), 2)
    assert_close(d, m_grouped.oracle(rows, weights, INDEX))


@pytest.mark.parametrize("mesh_kind", BOTH)
def test_masked_groups_stay_sharded(mesh_kind):
    a, b, rows, weights = problem()
    mesh = mesh_of(mesh_kind, 4, 2)
    args = put(stacked(a), mesh, P("x")), put(b, mesh, P("x", "y")), put(jnp.asarray(MASKED_M), mesh, P("x"))
    function = functools.partial(masked, expected_m=8)
    assert collectives(function, *args) == set()
    d = jax.jit(function)(*args)
    assert d.sharding.is_equivalent_to(NamedSharding(mesh, P("x", None, "y")), 3)
    assert_close(d, masked_oracle(rows, weights))


def test_shard_map_over_experts():
    """Each device has the rows of its own groups."""
    a, b, rows, weights = problem()
    mesh = mesh_of(BOTH[0], 2)
    local = functools.partial(masked, expected_m=8)
    d = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P("x"), P("x"), P("x")), out_specs=P("x")))(
        stacked(a), b, jnp.asarray(MASKED_M)
    )
    assert_close(d, masked_oracle(rows, weights))


def test_export():
    a, b, rows, weights = problem()
    given = a, in_bytes(b), jnp.asarray(INDEX)
    checks = [jax.export.DisabledSafetyCheck.custom_call("jax_deepgemm.launch")]
    with jd.set_target(jd.H100):
        exported = jax.export.export(jax.jit(nt), platforms=("cpu", "cuda"), disabled_checks=checks)(*given)
    again = jax.export.deserialize(exported.serialize())
    assert_close(again.call(*given), m_grouped.oracle(rows, weights, INDEX))


@pytest.mark.parametrize("form", ["nt", "packed nt", "masked"])
def test_nothing_moves_around_a_launch(form):
    groups, m, n, k = 4, 64, 1024, 512
    lead = (groups, m) if form == "masked" else (m,)
    data = ((groups, n, k // 2), jnp.uint8) if form == "packed nt" else ((groups, n, k), jnp.float4_e2m1fn)
    shapes = (
        ((*lead, k), jnp.float8_e4m3fn),
        ((k // 128, *lead), jnp.float32),
        data,
        ((groups, n, k // 32), jnp.float8_e8m0fnu),
        ((groups,), jnp.int32),
    )

    def function(a, a_scale, b, b_scale, layout):
        a, b = (a, jnp.moveaxis(a_scale, 0, -1)), (b, b_scale)
        return masked(a, b, layout, 8) if form == "masked" else nt(a, b, layout, use_psum_layout=True)

    program = compiled(function, *(jax.ShapeDtypeStruct(*s) for s in shapes))
    assert program.count(LAUNCH) == 1 and moves(program) == []


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            {"b": ((4, 128, 256), (4, 128, 8))},
            ValueError,
            r"`b` must be of \(G, N, 288\) values with the K of `a`, got ",
        ),
        ({"b": ((4, 12, 288), (4, 12, 9))}, ValueError, r"`b` must be of \(G, N, K\) values with N a multiple of 8"),
        ({"b": ((4, 128, 288), (4, 128, 3))}, ValueError, r"`b.scale` must be .* of shape \(4, 128, 9\)"),
        ({"recipe": ((1, 128), (128, 128))}, ValueError, "`recipe` must be .* or None"),
        ({"layout": np.zeros(9, np.int32)}, ValueError, r"`grouped_layout` must be integers of shape \(M\)"),
        (
            {"config": jd.GemmConfig(128, 128)},
            TypeError,
            "`config` must be a Fp4GemmConfig or Fp4SwappedConfig or None",
        ),
    ],
)
def test_errors(change, error, message):
    data, scale = change.pop("b", ((4, 128, 288), (4, 128, 9)))
    b = jnp.zeros(data, jnp.float4_e2m1fn), jnp.ones(scale)
    layout = change.pop("layout", INDEX)
    with pytest.raises(error, match=message):
        nt(problem()[0], b, layout, **change)


def test_errors_of_masked():
    a, b, *_ = problem()
    with pytest.raises(ValueError, match=r"`b` must be of \(4, N, 288\) values with the G and K of `a`"):
        masked(stacked(a), jax.tree.map(lambda x: x[:3], b), jnp.zeros(3, jnp.int32), 4)
    with pytest.raises(TypeError, match="`expected_m` must be a number of rows known at tracing"):
        masked(stacked(a), b, jnp.zeros(4, jnp.int32), 2.5)


def test_no_gradient():
    a, b, *_ = problem()
    with pytest.raises(NotImplementedError, match="cannot be differentiated"):
        jax.grad(lambda s: nt((a.data, s), b, jnp.asarray(INDEX)).astype(jnp.float32).sum())(a.scale)
