"""The FP8 GEMMs and the casts under vmap, shard_map, jit over eight devices, and export."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_deepgemm import fp8_gemm_nt, per_block_cast_to_fp8, per_channel_cast_to_fp8, per_token_cast_to_fp8
from jax_deepgemm.ops.casting import quantise
from jax_deepgemm.partition import _spec
from tests.helpers import BLOCKS, GEMMS, RECIPES, ROWS, assert_close, laid_out, operands, oracle

A, B = operands(64, 1024, 1024)
C = jax.random.normal(jax.random.key(2), (64, 1024)).astype(jnp.bfloat16)
WANTED = oracle(A, B)
BY_ROWS = functools.partial(fp8_gemm_nt, recipe=ROWS)
LAYOUTS = pytest.mark.parametrize("layout", ["nn", "tn", "tt"])  # beside nt, which all else here is


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def primitives(function, *args):
    """Shapes of the results of our primitive, and whether it stands in a loop."""
    text = str(jax.make_jaxpr(function)(*args))
    calls = re.findall(r"(\w+\[[\d,]*\]) = jax_deepgemm_(?:batched_)?fp8_gemm_nt", text)
    return calls[0], "scan[" in text


@pytest.mark.parametrize(
    "axes, n, recipe, call",
    [
        ((0, None, None), 256, BLOCKS, "bf16[120,256]"),  # folds into M
        ((None, 0, None), 256, BLOCKS, "bf16[40,768]"),  # folds into N
        ((0, None, 0), 256, BLOCKS, "bf16[120,256]"),
        ((None, 0, 0), 256, BLOCKS, "bf16[40,768]"),
        ((None, None, 0), 256, BLOCKS, "bf16[120,256]"),
        ((0, 0, None), 256, BLOCKS, "f32[3,40,256]"),  # is a group each; no such kernel adds C
        ((0, 0, 0), 256, BLOCKS, "f32[3,40,256]"),
        ((None, 0, None), 136, BLOCKS, "f32[3,40,136]"),  # scale blocks would straddle two of the batch
        ((0, None, None), 136, BLOCKS, "bf16[120,136]"),
        ((None, 0, None), 136, ROWS, "bf16[40,408]"),
        ((None, 0, 0), 136, ROWS, "bf16[40,408]"),
        ((0, None, 0), 136, ROWS, "bf16[120,136]"),
        ((0, 0, None), 136, ROWS, "loop"),  # blocks of K would straddle two of the batch
    ],
)
def test_vmap(axes, n, recipe, call):
    batch = 3
    pairs = [operands(40, n, 272, seed=s, recipe=recipe) for s in range(batch)]
    cs = [jax.random.normal(jax.random.key(s), (40, n)).astype(jnp.bfloat16) for s in range(batch)]
    args = [stack([v[i] for v in pairs]) if axis == 0 else pairs[0][i] for i, axis in enumerate(axes[:2])] + [
        jnp.stack(cs) if axes[2] == 0 else cs[0]
    ]

    function = jax.vmap(lambda a, b, c: fp8_gemm_nt(a, b, c=c, recipe=recipe), axes)
    d = function(*args)
    for i in range(batch):
        a, b = (pairs[i if axis == 0 else 0][j] for j, axis in enumerate(axes[:2]))
        assert_close(d[i], oracle(a, b, cs[i if axes[2] == 0 else 0], recipe))
    shape, loops = primitives(function, *args)
    assert loops if call == "loop" else (shape, loops) == (call, False)


def test_vmap_of_data_alone_and_of_inner_axes():
    a, b = operands(40, 256, 272)
    data = jnp.stack([a.data, a.data[::-1]], axis=2)
    d = jax.vmap(lambda x: fp8_gemm_nt((x, a.scale), b), in_axes=2, out_axes=1)(data)
    assert_close(d[:, 1], oracle((a.data[::-1], a.scale), b))


@LAYOUTS
@RECIPES
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_of_other_layouts(axes, recipe, layout):
    pairs = [operands(40, 256, 272, seed=s, recipe=recipe) for s in range(2)]
    given = [laid_out(layout, *pair) for pair in pairs]
    args = [stack([g[i] for g in given]) if axis == 0 else given[0][i] for i, axis in enumerate(axes)]
    function = jax.vmap(functools.partial(GEMMS[layout], recipe=recipe), axes)
    picked = [pairs[1][i] if axis == 0 else pairs[0][i] for i, axis in enumerate(axes)]
    assert_close(function(*args)[1], oracle(*picked, recipe=recipe))
    assert primitives(function, *args)[1] == (axes == (0, 0) and recipe == ROWS)


def test_nested_vmap():
    pairs = [[operands(16, 128, 256, seed=2 * i + j) for j in range(2)] for i in range(2)]
    a, b = stack([p[0][0] for p in pairs]), stack([p[1] for p in pairs[0]])
    d = jax.vmap(jax.vmap(fp8_gemm_nt, (None, 0)), (0, None))(a, b)
    assert d.shape == (2, 2, 16, 128)
    assert_close(d[1, 0], oracle(pairs[1][0][0], pairs[0][0][1]))


def test_vmap_over_nothing():
    a, b = (jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), v) for v in operands(16, 128, 256))
    assert jax.vmap(fp8_gemm_nt)(a, b).shape == (0, 16, 128)
    assert jax.vmap(fp8_gemm_nt, (0, None))(a, operands(16, 128, 256)[1]).shape == (0, 16, 128)


# --- jit over several devices --------------------------------------------------------------------------------------


def mesh_of(kind: AxisType, *sizes: int):
    return jax.make_mesh(sizes, ("x", "y")[: len(sizes)], axis_types=(kind,) * len(sizes))


def put(tree, mesh, *specs):
    """The leaves of `tree`, sharded. One spec serves all of them."""
    leaves, structure = jax.tree.flatten(tree)
    specs = specs * len(leaves) if len(specs) == 1 else specs
    return structure.unflatten(jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(leaves, specs, strict=True))


def collectives(function, *args) -> set[str]:
    text = jax.jit(function).lower(*args).compile().as_text()
    return set(re.findall(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", text))


GATHER, SUM = {"all-gather"}, {"all-reduce"}
BOTH = [AxisType.Auto, AxisType.Explicit]

# name: (m, n, k), mesh, sharding of A and B (data, scale), collectives, sharding of the result
SHARDED = {
    "m": ((64, 256, 256), (8,), (P("x"),), (P(),), set(), P("x", None)),
    "n": ((64, 1024, 256), (8,), (P(),), (P("x"),), set(), P(None, "x")),
    "n, scales whole": ((64, 1024, 256), (8,), (P(),), (P("x"), P()), set(), P(None, "x")),
    "m and n": ((64, 256, 256), (4, 2), (P("x"),), (P("y"),), set(), P("x", "y")),
    "m over both": ((64, 256, 256), (4, 2), (P(("x", "y")),), (P(),), set(), P(("x", "y"), None)),
    "k": ((64, 256, 1024), (8,), (P(None, "x"),), (P(None, "x"),), SUM, P(None, None)),
    "k, scales whole": ((64, 256, 1024), (8,), (P(None, "x"), P()), (P(None, "x"), P()), SUM, P(None, None)),
    "k of a": ((64, 256, 1024), (8,), (P(None, "x"),), (P(),), SUM, P(None, None)),
    "m and k": ((64, 256, 256), (4, 2), (P("x", "y"),), (P(None, "y"),), SUM, P("x", None)),
    "weights sharded over k by the axis of m": (
        (64, 256, 1024),
        (8,),
        (P("x"),),
        (P(None, "x"),),
        GATHER,
        P("x", None),
    ),
    "n off block borders": ((64, 256, 256), (8,), (P(),), (P("x"), P()), GATHER, None),
    "k off block borders": ((64, 256, 512), (8,), (P(None, "x"), P()), (P(None, "x"), P()), GATHER, None),
    "n no multiple of 128": ((64, 192, 256), (8,), (P(),), (P("x"), P()), GATHER, None),
    "k no multiple of 128": ((64, 256, 1040), (8,), (P(None, "x"), P()), (P(None, "x"), P()), GATHER, None),
}
SHARDED_BY_ROWS = {
    "m and n": ((64, 256, 256), (4, 2), (P("x"),), (P("y"),), set(), P("x", "y")),
    "n no multiple of 128": ((64, 192, 1040), (8,), (P(),), (P("x"),), set(), P(None, "x")),
    "n and k": ((64, 192, 256), (4, 2), (P(None, "y"),), (P("x", "y"),), SUM, P(None, "x")),
    "k no multiple of 128": ((64, 192, 1040), (8,), (P(None, "x"), P()), (P(None, "x"), P()), GATHER, None),
}


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    "recipe, case",
    [
        pytest.param(recipe, case, id=name)
        for recipe, cases in ((BLOCKS, SHARDED), (ROWS, SHARDED_BY_ROWS))
        for name, case in cases.items()
    ],
)
def test_sharded_jit(recipe, case, kind):
    sizes, shape, of_a, of_b, wanted, result = case
    a, b = operands(*sizes, recipe=recipe)
    mesh = mesh_of(kind, *shape)
    check_sharded("nt", recipe, a, b, put(a, mesh, *of_a), put(b, mesh, *of_b), wanted, result, mesh)


@LAYOUTS
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("recipe, name", [(BLOCKS, "m and n"), (BLOCKS, "m and k"), (ROWS, "n and k")])
def test_sharded_jit_of_other_layouts(recipe, name, kind, layout):
    cases = SHARDED_BY_ROWS if recipe == ROWS else SHARDED
    sizes, shape, (of_a,), (of_b,), wanted, result = cases[name]
    a, b = operands(*sizes, recipe=recipe)
    mesh = mesh_of(kind, *shape)
    given = laid_out(layout, a, b)
    specs = (of_a if layout[0] == "n" else turned(of_a)), (of_b if layout[1] == "t" else turned(of_b))
    sharded = (put(x, mesh, s) for x, s in zip(given, specs, strict=True))
    check_sharded(layout, recipe, a, b, *sharded, wanted, result, mesh)


def turned(spec):
    return P(*reversed([*spec, None][:2]))


def check_sharded(layout, recipe, a, b, sharded_a, sharded_b, wanted, result, mesh):
    function = functools.partial(GEMMS[layout], recipe=recipe)
    assert collectives(function, sharded_a, sharded_b) == wanted
    d = jax.jit(function)(sharded_a, sharded_b)
    assert_close(d, oracle(a, b, recipe=recipe))
    if result is not None:
        assert d.sharding.is_equivalent_to(NamedSharding(mesh, result), 2)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("specs", [(P(), P("x")), (P("x", "y"), P(None, "x")), (P("y"), P(("x", "y")))])
def test_fewer_blocks_than_devices(specs, kind):
    """The casts' scales have two blocks for the four devices of `x`, so Shardy splits that axis."""
    random = np.random.default_rng(0)
    x, w = (jnp.asarray(random.standard_normal((256, 256)), jnp.bfloat16) for _ in range(2))

    def products(x, w):
        activations, weights = per_token_cast_to_fp8(x), per_block_cast_to_fp8(w)
        columns = per_channel_cast_to_fp8(x), per_channel_cast_to_fp8(w)
        return fp8_gemm_nt(activations, weights), GEMMS["nn"](activations, weights), BY_ROWS(*columns)

    mesh = mesh_of(kind, 4, 2)
    got = jax.jit(products)(*(put(v, mesh, s) for v, s in zip((x, w), specs, strict=True)))
    for d, wanted in zip(got, products(x, w), strict=True):
        assert_close(d, np.asarray(wanted).astype(np.float64))


def test_shardings_are_decoded_to_whole_axes():
    devices = np.array(jax.devices()).reshape(2, 1, 4)[:, :, ::-1]  # in another order than XLA's
    mesh = Mesh(devices, ("x", "one", "y"))
    for spec in (P(), P("x"), P(None, "y"), P(("x", "y")), P(("y", "x"), None), P("y", "x")):
        x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=NamedSharding(mesh, spec))
        assert NamedSharding(mesh, _spec(mesh, x)).is_equivalent_to(x.sharding, 2), spec
    split = Mesh(devices.reshape(2, 2, 2), ("x", "major", "minor"))
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=NamedSharding(split, P("x", "major")))
    assert NamedSharding(mesh, _spec(mesh, x)).is_equivalent_to(NamedSharding(mesh, P("x")), 2)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    "specs, wanted", [((P("x"), P("y"), P("x", "y")), set()), ((P("x", "y"), P(None, "y"), P("x")), SUM)]
)
def test_sharded_jit_with_c(specs, wanted, kind):
    mesh = mesh_of(kind, 4, 2)
    args = [put(v, mesh, spec) for v, spec in zip((A, B, C), specs, strict=True)]

    def function(a, b, c):
        return fp8_gemm_nt(a, b, c=c)

    assert collectives(function, *args) == wanted
    assert_close(jax.jit(function)(*args), oracle(A, B, C))


def test_sharded_k_sums_in_float32():
    """A partial result that is rounded to bfloat16 before the sum would show: it is far larger than the result."""
    a, b = operands(16, 128, 1024)
    opposite = a._replace(data=a.data.at[:, 512:].set(-a.data[:, :512]), scale=a.scale.at[:, 4:].set(a.scale[:, :4]))
    same = b._replace(data=b.data.at[:, 512:].set(b.data[:, :512]), scale=b.scale.at[:, 4:].set(b.scale[:, :4]))
    mesh = mesh_of(AxisType.Auto, 8)
    c = jnp.ones((16, 128), jnp.bfloat16)
    d = jax.jit(lambda a, b, c: fp8_gemm_nt(a, b, c=c))(
        put(opposite, mesh, P(None, "x")), put(same, mesh, P(None, "x")), put(c, mesh, P())
    )
    np.testing.assert_allclose(np.asarray(d).astype(np.float32), 1, rtol=1e-2)


def test_result_sharding_that_the_caller_asks_for():
    mesh = mesh_of(AxisType.Auto, 4, 2)
    a, b = put((A, B), mesh, P())
    function = jax.jit(fp8_gemm_nt, out_shardings=NamedSharding(mesh, P("x", "y")))
    assert "all-gather" not in function.lower(a, b).compile().as_text()
    assert_close(function(a, b), WANTED)


@pytest.mark.parametrize("kind", BOTH)
def test_sharded_operands_outside_jit_and_under_set_mesh(kind):
    mesh = mesh_of(kind, 4, 2)
    a, b = put(A, mesh, P("x")), put(B, mesh, P("y"))
    d = fp8_gemm_nt(a, b)
    assert d.sharding.spec == P("x", "y")
    assert_close(d, WANTED)
    with jax.set_mesh(mesh):
        assert_close(jax.jit(fp8_gemm_nt)(a, b), WANTED)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("axes", [(0, None), (None, 0)])
def test_vmap_over_a_sharded_batch(axes, kind):
    mesh = mesh_of(kind, 8)
    args = [
        put(stack([v] * 8), mesh, P("x")) if axis == 0 else put(v, mesh, P())
        for v, axis in zip((A, B), axes, strict=True)
    ]
    function = jax.vmap(fp8_gemm_nt, axes)
    assert not collectives(function, *args)
    assert_close(jnp.asarray(jax.device_get(jax.jit(function)(*args))[5]), WANTED)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    "cast, spec",
    [
        (per_token_cast_to_fp8, P("x", "y")),
        (per_block_cast_to_fp8, P("x", "y")),
        (per_channel_cast_to_fp8, P("y", "x")),
    ],
)
def test_casts_gather_nothing(cast, spec, kind):
    x = jax.random.normal(jax.random.key(0), (512, 1024))
    mesh = mesh_of(kind, 4, 2)
    sharded = jax.device_put(x, NamedSharding(mesh, P("x", "y")))
    assert not collectives(cast, sharded)
    got = jax.jit(cast)(sharded)
    assert (got.data.sharding.spec, got.scale.sharding.spec) == (spec, spec)
    for g, wanted in zip(got, cast(x), strict=True):
        np.testing.assert_array_equal(np.asarray(g), np.asarray(wanted))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("cast", [per_block_cast_to_fp8, per_channel_cast_to_fp8])
def test_casts_of_shards_that_cut_blocks(cast, kind):
    x = jax.random.normal(jax.random.key(0), (64, 512))
    sharded = jax.device_put(x, NamedSharding(mesh_of(kind, 8), P("x")))
    for g, wanted in zip(jax.jit(cast)(sharded), cast(x), strict=True):
        np.testing.assert_array_equal(np.asarray(g), np.asarray(wanted))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("rows", [512, 64])
def test_both_casts_at_once_over_devices(rows, kind):
    """Whole blocks stay where they are; blocks that shards cut are gathered."""
    x = jax.random.normal(jax.random.key(0), (rows, 1024))
    sharded = jax.device_put(x, NamedSharding(mesh_of(kind, 4, 2), P("x", "y")))
    function = functools.partial(quantise, straight=(1, 128), turned=(128, 1))
    assert collectives(function, sharded) <= (GATHER if rows == 64 else set())
    for g, wanted in zip(jax.tree.leaves(jax.jit(function)(sharded)), jax.tree.leaves(function(x)), strict=True):
        np.testing.assert_array_equal(np.asarray(g), np.asarray(wanted))


# --- shard_map -----------------------------------------------------------------------------------------------------


def mapped(function, in_specs, out_specs, **options):
    mesh = mesh_of(AxisType.Auto, 4, 2)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **options))


def test_shard_map():
    assert_close(mapped(fp8_gemm_nt, (P("x"), P("y")), P("x", "y"))(A, B), WANTED)


@LAYOUTS
@RECIPES
def test_shard_map_of_other_layouts(recipe, layout):
    a, b = operands(64, 1024, 272, recipe=recipe)
    specs = P("x") if layout[0] == "n" else P(None, "x"), P("y") if layout[1] == "t" else P(None, "y")
    function = mapped(functools.partial(GEMMS[layout], recipe=recipe), specs, P("x", "y"))
    assert_close(function(*laid_out(layout, a, b)), oracle(a, b, recipe=recipe))


def test_gradient_of_weights_over_sharded_tokens():
    """Data parallel: every device has its tokens, and the gradients of weights become their sum."""
    random = np.random.default_rng(0)
    dy, x = (jnp.asarray(random.standard_normal((1024, width)), jnp.bfloat16) for width in (64, 128))
    wanted = oracle(per_channel_cast_to_fp8(dy), per_channel_cast_to_fp8(x), recipe=ROWS)

    def gradient(dy, x):
        return BY_ROWS(per_channel_cast_to_fp8(dy), per_channel_cast_to_fp8(x), out_dtype=jnp.float32)

    mesh = mesh_of(AxisType.Auto, 8)
    sharded = put((dy, x), mesh, P("x"))
    assert collectives(gradient, *sharded) == SUM
    assert_close(jax.jit(gradient)(*sharded), wanted)
    mapped_gradient = jax.shard_map(
        lambda dy, x: jax.lax.psum(gradient(dy, x), "x"), mesh=mesh, in_specs=P("x"), out_specs=P()
    )
    assert_close(jax.jit(mapped_gradient)(dy, x), wanted)


def test_shard_map_over_k():
    def partial(a, b):
        return jax.lax.psum(fp8_gemm_nt(a, b, out_dtype=jnp.float32), "y")

    assert_close(mapped(partial, (P("x", "y"), P(None, "y")), P("x"))(A, B), WANTED)


@pytest.mark.parametrize("specs", [(P("x"), P()), (P(), P("x"))])
def test_shard_map_refuses_wrong_out_specs(specs):
    with pytest.raises(ValueError, match="out_specs"):
        mapped(fp8_gemm_nt, specs, P())(A, B)


def test_shard_map_over_some_axes():
    assert_close(mapped(fp8_gemm_nt, (P("x"), P()), P("x"), axis_names={"x"})(A, B), WANTED)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_in_shard_map(axes):
    args = [stack([v] * 4) if axis == 0 else v for v, axis in zip((A, B), axes, strict=True)]
    specs = tuple(P("x") if axis == 0 else P() for axis in axes)
    assert_close(mapped(jax.vmap(fp8_gemm_nt, axes), specs, P("x"))(*args)[3], WANTED)


def test_control_flow_and_remat():
    def body(total, b):
        gemm = jax.checkpoint(lambda b: fp8_gemm_nt(A, b, out_dtype=jnp.float32))
        return total + gemm(b), None

    total, _ = jax.jit(lambda bs: jax.lax.scan(body, jnp.zeros((64, 1024)), bs))(stack([B, B]))
    assert_close(total, 2 * WANTED)


CASTS = pytest.mark.parametrize(
    "cast, spec",
    [(per_token_cast_to_fp8, P("x")), (per_block_cast_to_fp8, P("x")), (per_channel_cast_to_fp8, P(None, "x"))],
)


@CASTS
def test_casts_in_shard_map(cast, spec):
    x = jax.random.normal(jax.random.key(0), (512, 256))
    for g, wanted in zip(mapped(cast, P("x"), spec)(x), cast(x), strict=True):
        np.testing.assert_array_equal(np.asarray(g), np.asarray(wanted))
    with pytest.raises(ValueError, match="out_specs"):
        mapped(cast, P("x"), P())(x)


# --- export --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platforms", [("cpu",), ("cpu", "cuda")])
@pytest.mark.filterwarnings("ignore:jax_deepgemm lowers for cuda")
def test_export_round_trip(platforms):
    exported = jax.export.export(jax.jit(fp8_gemm_nt), platforms=platforms)(A, B)
    again = jax.export.deserialize(exported.serialize())
    assert again.platforms == platforms
    assert_close(again.call(A, B), WANTED)


@RECIPES
@pytest.mark.filterwarnings("ignore:jax_deepgemm lowers for cuda")
def test_export_of_every_layout(recipe):
    a, b = operands(16, 128, 144, recipe=recipe)
    given = {layout: laid_out(layout, a, b) for layout in GEMMS}

    def products(pairs):
        return {layout: GEMMS[layout](*pair, recipe=recipe) for layout, pair in pairs.items()}

    exported = jax.export.export(jax.jit(products), platforms=("cpu", "cuda"))(given)
    for d in jax.export.deserialize(exported.serialize()).call(given).values():
        assert_close(d, oracle(a, b, recipe=recipe))


def test_export_for_several_devices():
    mesh = mesh_of(AxisType.Auto, 4, 2)
    a, b = put(A, mesh, P("x")), put(B, mesh, P("y"))
    again = jax.export.deserialize(jax.export.export(jax.jit(fp8_gemm_nt))(a, b).serialize())
    assert again.nr_devices == 8
    assert_close(jax.jit(again.call)(a, b), WANTED)


def test_export_of_shard_map_needs_no_devices():
    mesh = AbstractMesh((4, 2), ("x", "y"))
    function = jax.jit(jax.shard_map(fp8_gemm_nt, mesh=mesh, in_specs=(P("x"), P("y")), out_specs=P("x", "y")))

    def described(x, spec):
        return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=NamedSharding(mesh, spec)), x)

    exported = jax.export.export(function, platforms=("cpu",))(described(A, P("x")), described(B, P("y")))
    real = mesh_of(AxisType.Auto, 4, 2)
    again = jax.export.deserialize(exported.serialize())
    assert_close(jax.jit(again.call)(put(A, real, P("x")), put(B, real, P("y"))), WANTED)


def test_export_with_a_symbolic_m():
    m, *_ = jax.export.symbolic_shape("m")
    a = tuple(jax.ShapeDtypeStruct((m, x.shape[1]), x.dtype) for x in A)
    exported = jax.export.export(jax.jit(fp8_gemm_nt), platforms=("cpu",))(a, B)
    assert_close(jax.export.deserialize(exported.serialize()).call(tuple(A), B), WANTED)


@CASTS
@pytest.mark.filterwarnings("ignore:jax_deepgemm lowers for cuda")
def test_export_of_casts(cast, spec):
    x = jax.random.normal(jax.random.key(0), (64, 272))
    exported = jax.export.export(jax.jit(cast), platforms=("cpu", "cuda"))(x)
    for g, wanted in zip(jax.export.deserialize(exported.serialize()).call(x), cast(x), strict=True):
        np.testing.assert_array_equal(np.asarray(g), np.asarray(wanted))
    m, *_ = jax.export.symbolic_shape("m")
    for shape in ((m, 272), (128 * m, 272), (64, m), (64, 16 * m)):
        exported = jax.export.export(jax.jit(cast), platforms=("cpu",))(jax.ShapeDtypeStruct(shape, x.dtype))
        given = jnp.tile(x, (2, 1)) if shape[0] is not m and shape[0] != 64 else x
        for g, wanted in zip(exported.call(given), cast(given), strict=True):
            np.testing.assert_array_equal(np.asarray(g), np.asarray(wanted))
