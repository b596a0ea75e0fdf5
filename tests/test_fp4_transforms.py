"""The GEMM with FP4 weights, and the cast to them, under vmap, shard_map, jit over eight devices, and export."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jax_deepgemm import fp8_fp4_gemm_nt, per_token_cast_to_fp4
from tests.fp4 import BY_32, GEMMS, KINDS, operands, oracle
from tests.helpers import assert_close, laid_out
from tests.sharded import BOTH, GATHER, SUM, mapped, mesh_of, put, run, stack

A, B = operands(64, 1024, 1024)
WANTED = oracle(A, B)
SCALES = pytest.mark.parametrize("use_ue8m0, recipe", KINDS.values(), ids=KINDS)
KIND = pytest.mark.parametrize("kind", BOTH)


@SCALES
@pytest.mark.parametrize(
    "axes, call",
    [((0, None), "bf16[120,136]"), ((None, 0), "bf16[40,408]"), ((0, 0), "loop")],  # folds into M, into N, neither
)
def test_vmap(axes, call, use_ue8m0, recipe):
    pairs = [operands(40, 136, 288, seed=s, use_ue8m0=use_ue8m0, recipe=recipe) for s in range(3)]
    args = [stack([p[i] for p in pairs]) if axis == 0 else pairs[0][i] for i, axis in enumerate(axes)]
    function = jax.vmap(functools.partial(fp8_fp4_gemm_nt, recipe=recipe), axes)
    d = function(*args)
    for i in range(3):
        a, b = (pairs[i if axis == 0 else 0][j] for j, axis in enumerate(axes))
        assert_close(d[i], oracle(a, b, recipe=recipe))
    text = str(jax.make_jaxpr(function)(*args))
    assert "scan[" in text if call == "loop" else f"{call} = jax_deepgemm_fp8_fp4_gemm_nt" in text


@pytest.mark.parametrize("layout", ["nn", "tn", "tt"])
def test_vmap_of_other_layouts(layout):
    pairs = [operands(40, 256, 288, seed=s) for s in range(2)]
    d = jax.vmap(GEMMS[layout])(*map(stack, zip(*(laid_out(layout, *p) for p in pairs), strict=True)))
    assert_close(d[1], oracle(*pairs[1]))


# name: (m, n, k), mesh, shardings of A and of B, collectives, sharding of the result
SHARDED = {
    "m": ((64, 136, 288), (8,), P("x"), P(), set(), P("x", None)),
    "n": ((64, 192, 288), (8,), P(), P("x"), set(), P(None, "x")),
    "m and n": ((64, 192, 288), (4, 2), P("x"), P("y"), set(), P("x", "y")),
    "k": ((64, 136, 4096), (8,), P(None, "x"), P(None, "x"), SUM, P(None, None)),
    "m and k": ((64, 136, 1024), (4, 2), P("x", "y"), P(None, "y"), SUM, P("x", None)),
    "k off borders of 512": ((64, 136, 2048), (8,), P(None, "x"), P(None, "x"), GATHER, None),
}


@SCALES
@KIND
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_jit(name, kind, use_ue8m0, recipe):
    sizes, shape, of_a, of_b, wanted, result = SHARDED[name]
    a, b = operands(*sizes, use_ue8m0=use_ue8m0, recipe=recipe)
    mesh = mesh_of(kind, *shape)
    d, found = run(functools.partial(fp8_fp4_gemm_nt, recipe=recipe), put(a, mesh, of_a), put(b, mesh, of_b))
    assert found == wanted
    assert_close(d, oracle(a, b, recipe=recipe))
    if result is not None:
        assert d.sharding.is_equivalent_to(NamedSharding(mesh, result), 2)


@KIND
@pytest.mark.parametrize("layout", ["nn", "tn", "tt"])
def test_sharded_jit_of_other_layouts(layout, kind):
    mesh = mesh_of(kind, 4, 2)
    given = laid_out(layout, A, B)
    specs = P("x") if layout[0] == "n" else P(None, "x"), P("y") if layout[1] == "t" else P(None, "y")
    sharded = [put(x, mesh, s) for x, s in zip(given, specs, strict=True)]
    d, found = run(GEMMS[layout], *sharded)
    assert not found
    assert_close(d, WANTED)


@KIND
def test_sharded_jit_with_c(kind):
    mesh = mesh_of(kind, 4, 2)
    c = jax.random.normal(jax.random.key(2), WANTED.shape)
    args = put(A, mesh, P("x", "y")), put(B, mesh, P(None, "y")), put(c, mesh, P("x"))
    d, found = run(lambda a, b, c: fp8_fp4_gemm_nt(a, b, c=c, out_dtype=jnp.float32), *args)
    assert found == SUM
    assert_close(d, oracle(A, B, c))


@KIND
@pytest.mark.parametrize("spec, gathers", [(P("x", "y"), False), (P("y", "x"), True)])
def test_cast_of_shards(spec, gathers, kind):
    x = jax.random.normal(jax.random.key(0), (512, 192))
    mesh = mesh_of(kind, 4, 2)
    result, found = run(per_token_cast_to_fp4, put(x, mesh, spec))
    assert gathers or not found
    for got, wanted in zip(result, per_token_cast_to_fp4(x), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))


def test_cast_in_shard_map():
    x = jax.random.normal(jax.random.key(0), (512, 192))
    for got, wanted in zip(mapped(per_token_cast_to_fp4, P("x"), P("x"))(x), per_token_cast_to_fp4(x), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))
    with pytest.raises(ValueError, match="out_specs"):
        mapped(per_token_cast_to_fp4, P("x"), P())(x)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_vmap_of_the_cast_folds_into_rows(axis):
    x = jax.random.normal(jax.random.key(0), (3, 40, 96))
    function = jax.vmap(per_token_cast_to_fp4, axis)
    given = jnp.moveaxis(x, 0, axis)
    for got, wanted in zip(function(given), per_token_cast_to_fp4(x.reshape(120, 96)), strict=True):
        np.testing.assert_array_equal(np.asarray(got).reshape(wanted.shape), np.asarray(wanted))
    text = str(jax.make_jaxpr(function)(given))
    assert "f32[120,3] = jax_deepgemm_per_token_cast_to_fp4[" in text and "scan[" not in text


@pytest.mark.filterwarnings("ignore:jax_deepgemm lowers for cuda")
def test_export_of_the_cast():
    x = jax.random.normal(jax.random.key(0), (64, 96))
    exported = jax.export.export(jax.jit(per_token_cast_to_fp4), platforms=("cpu", "cuda"))(x)
    m, *_ = jax.export.symbolic_shape("m")
    sizes = [(m, 96), (64, m)]
    exports = [jax.export.deserialize(exported.serialize())] + [
        jax.export.export(jax.jit(per_token_cast_to_fp4), platforms=("cpu",))(jax.ShapeDtypeStruct(s, x.dtype))
        for s in sizes
    ]
    for again in exports:
        for got, wanted in zip(again.call(x), per_token_cast_to_fp4(x), strict=True):
            np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))


def test_shard_map():
    def partial(a, b):
        return jax.lax.psum(fp8_fp4_gemm_nt(a, b, out_dtype=jnp.float32), "y")

    assert_close(mapped(fp8_fp4_gemm_nt, (P("x"), P("y")), P("x", "y"))(A, B), WANTED)
    assert_close(mapped(partial, (P("x", "y"), P(None, "y")), P("x"))(A, B), WANTED)
    with pytest.raises(ValueError, match="out_specs"):
        mapped(fp8_fp4_gemm_nt, (P("x"), P()), P())(A, B)


def test_control_flow_and_remat():
    def body(total, b):
        return total + jax.checkpoint(lambda b: fp8_fp4_gemm_nt(A, b, out_dtype=jnp.float32))(b), None

    total, _ = jax.jit(lambda bs: jax.lax.scan(body, jnp.zeros((64, 1024)), bs))(stack([B, B]))
    assert_close(total, 2 * WANTED)


@pytest.mark.parametrize("platforms", [("cpu",), ("cpu", "cuda")])
@pytest.mark.filterwarnings("ignore:jax_deepgemm lowers for cuda")
def test_export_round_trip(platforms):
    b = jax.tree.map(np.asarray, B)
    exported = jax.export.export(jax.jit(lambda a: fp8_fp4_gemm_nt(a, b, recipe=BY_32)), platforms=platforms)(A)
    again = jax.export.deserialize(exported.serialize())
    assert_close(again.call(A), WANTED)
