"""The m-grouped GEMMs under vmap, shard_map, jit over eight devices, export, and as XLA compiles them for a GPU."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jax_deepgemm as jd
from tests import m_grouped
from tests.deviceless import LAUNCH, commands, moves
from tests.helpers import assert_close
from tests.test_deviceless import compiled
from tests.test_m_grouped import OPS, contiguous, masked, problem, stacked
from tests.test_transforms import BOTH, collectives, mesh_of, put, stack

G, M, N, K = 4, 64, 1024, 256
SIZES = (10, 0, 30, 20)
INDEX = m_grouped.index_of(SIZES, 4)
ENDS = m_grouped.psum_of(SIZES)
MASKED_M = np.array([3, 16, 0, 9], np.int32)


@functools.cache
def given(kind):
    return problem(kind, M, G, N, K)


@OPS
@pytest.mark.parametrize("axes", [(0, None, 0), (None, 0, None), (None, None, 0)])
def test_vmap(kind, axes):
    a, b, rows, weights = given(kind)
    turned = jax.tree.map(lambda x: x[::-1], a), jax.tree.map(lambda x: x[::-1], b), INDEX[::-1].copy()
    args = [stack([x, y]) if axis == 0 else x for x, y, axis in zip((a, b, INDEX), turned, axes, strict=True)]
    d = jax.vmap(lambda a, b, layout: contiguous(kind, a, b, layout), axes)(*args)
    both = zip((rows, weights, INDEX), (rows[::-1], weights[::-1], turned[2]), axes, strict=True)
    picked = [y if axis == 0 else x for x, y, axis in both]
    assert_close(d[0], m_grouped.oracle(rows, weights, INDEX))
    assert_close(d[1], m_grouped.oracle(*picked))


@OPS
def test_vmap_of_masked_folds_into_the_groups(kind):
    a, b, rows, weights = given(kind)
    a, b = (stack([x, x]) for x in (stacked(a, G), b))
    sizes = jnp.stack([jnp.asarray(MASKED_M), jnp.asarray(MASKED_M[::-1].copy())])
    function = jax.vmap(lambda a, b, masked_m: masked(kind, a, b, masked_m, 8))
    d = function(a, b, sizes)
    for i in range(2):
        wanted = m_grouped.masked_oracle(rows.reshape(G, M // G, K), weights, np.asarray(sizes[i]))
        assert_close(d[i], wanted)
    assert "scan[" not in str(jax.make_jaxpr(function)(a, b, sizes)).split("jax_deepgemm")[0]


@OPS
@pytest.mark.parametrize("mesh_kind", BOTH)
@pytest.mark.parametrize("psum", [False, True])
def test_weights_stay_sharded_over_n(kind, mesh_kind, psum):
    a, b, rows, weights = given(kind)
    mesh = mesh_of(mesh_kind, 8)
    layout = ENDS if psum else INDEX
    args = put(a, mesh, P()), put(b, mesh, P(None, "x")), put(jnp.asarray(layout), mesh, P())

    def function(a, b, layout):
        return contiguous(kind, a, b, layout, use_psum_layout=psum)

    assert collectives(function, *args) == set()
    d = jax.jit(function)(*args)
    assert d.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "x")), 2)
    assert_close(d, m_grouped.oracle(rows, weights, INDEX))


@OPS
def test_rows_are_gathered(kind):
    a, b, rows, weights = given(kind)
    mesh = mesh_of(BOTH[0], 8)
    args = put(a, mesh, P("x")), put(b, mesh, P()), put(jnp.asarray(INDEX), mesh, P("x"))
    assert_close(
        jax.jit(lambda a, b, layout: contiguous(kind, a, b, layout))(*args), m_grouped.oracle(rows, weights, INDEX)
    )


@OPS
@pytest.mark.parametrize("mesh_kind", BOTH)
def test_masked_groups_stay_sharded(kind, mesh_kind):
    a, b, rows, weights = given(kind)
    mesh = mesh_of(mesh_kind, 4, 2)
    args = put(stacked(a, G), mesh, P("x")), put(b, mesh, P("x", "y")), put(jnp.asarray(MASKED_M), mesh, P("x"))

    def function(a, b, masked_m):
        return masked(kind, a, b, masked_m, 8)

    assert collectives(function, *args) == set()
    d = jax.jit(function)(*args)
    assert d.sharding.is_equivalent_to(NamedSharding(mesh, P("x", None, "y")), 3)
    assert_close(d, m_grouped.masked_oracle(rows.reshape(G, M // G, K), weights, MASKED_M))


@OPS
def test_shard_map_over_experts(kind):
    """Each device has the rows of its own groups."""
    a, b, rows, weights = given(kind)
    mesh = mesh_of(BOTH[0], 2)

    def local(a, b, masked_m):
        return masked(kind, a, b, masked_m, 8)

    d = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P("x"), P("x"), P("x")), out_specs=P("x")))(
        stacked(a, G), b, jnp.asarray(MASKED_M)
    )
    assert_close(d, m_grouped.masked_oracle(rows.reshape(G, M // G, K), weights, MASKED_M))


@OPS
@pytest.mark.parametrize("platforms", [("cpu",), ("cpu", "cuda")])
def test_export(kind, platforms):
    a, b, rows, weights = given(kind)
    checks = [jax.export.DisabledSafetyCheck.custom_call("jax_deepgemm.launch")]
    with jd.set_target(jd.H100):
        exported = jax.export.export(
            jax.jit(lambda a, b, layout: contiguous(kind, a, b, layout)), platforms=platforms, disabled_checks=checks
        )(a, b, jnp.asarray(INDEX))
    again = jax.export.deserialize(exported.serialize())
    assert_close(again.call(a, b, jnp.asarray(INDEX)), m_grouped.oracle(rows, weights, INDEX))


@pytest.mark.filterwarnings("ignore:jax_deepgemm lowers for cuda")
def test_export_without_a_target_runs_by_reference():
    """Both platforms take the reference. JAX 0.12's CPU compiler aborts where a program has one twice."""
    a, b, rows, weights = given("bf16")
    layout = jnp.asarray(INDEX)
    jitted = jax.jit(lambda a, b, layout: contiguous("bf16", a, b, layout))
    exported = jax.export.export(jitted, platforms=("cpu", "cuda"))(a, b, layout)
    assert_close(exported.call(a, b, layout), m_grouped.oracle(rows, weights, INDEX))


# --- as XLA compiles them ------------------------------------------------------------------------------------------


def shapes(kind, order, lead):
    def quantised(shape, scale):
        return jd.Quantized(jax.ShapeDtypeStruct(shape, jnp.float8_e4m3fn), jax.ShapeDtypeStruct(scale, jnp.float32))

    of_b = (G, N, K) if order == "nt" else (G, K, N)
    if kind == "bf16":
        return tuple(jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((*lead, K), of_b))
    return quantised((*lead, K), (*lead, K // 128)), quantised(of_b, (G, of_b[1] // 128, of_b[2] // 128))


@OPS
@pytest.mark.parametrize("order", ["nt", "nn"])
@pytest.mark.parametrize("psum", [False, True])
def test_nothing_moves_around_a_launch(kind, order, psum):
    a, b = shapes(kind, order, (M,))
    layout = jax.ShapeDtypeStruct((G,) if psum else (M,), jnp.int32)

    def function(a, b, layout):
        if kind == "fp8":  # as a cast writes the scales
            a = jd.Quantized(a.data, a.scale.T)
        name = f"m_grouped_{kind}_gemm_{order}_contiguous"
        return getattr(jd, name)(a, b, layout, use_psum_layout=psum)

    if kind == "fp8":
        a = jd.Quantized(a.data, jax.ShapeDtypeStruct(a.scale.shape[::-1], jnp.float32))
    program = compiled(function, a, b, layout)
    assert program.count(LAUNCH) == 1
    if (kind, order) != ("fp8", "nn"):  # whose weights are transposed
        assert moves(program) == []


@OPS
def test_nothing_moves_around_a_masked_launch(kind):
    a, b = shapes(kind, "nt", (G, 16))

    def function(a, b, masked_m):
        if kind == "fp8":
            a = jd.Quantized(a.data, a.scale.transpose(1, 2, 0))
        return masked(kind, a, b, masked_m, 8)

    if kind == "fp8":
        a = jd.Quantized(a.data, jax.ShapeDtypeStruct((K // 128, G, 16), jnp.float32))
    program = compiled(function, a, b, jax.ShapeDtypeStruct((G,), jnp.int32))
    assert program.count(LAUNCH) == 1
    assert moves(program) == []


def test_launches_go_into_a_graph(tmp_path):
    a, _ = shapes("bf16", "nt", (M,))
    square = jax.ShapeDtypeStruct((G, K, K), jnp.bfloat16)

    def function(a, square, layout):
        for _ in range(6):
            a = jd.m_grouped_bf16_gemm_nt_contiguous(a, square, layout, use_psum_layout=True)
        return a

    options = {"xla_dump_to": str(tmp_path)}
    compiled(function, a, square, jax.ShapeDtypeStruct((G,), jnp.int32), options=options)
    assert commands(tmp_path) == ["kCustomCall"] * 6
