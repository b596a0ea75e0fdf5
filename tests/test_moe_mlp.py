"""moe_mlp on the CPU: values and gradients in BF16 and FP8, transformations, errors."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jax_deepgemm import Quantized, moe_mlp
from jax_deepgemm.ops.stacked_casting import quantise_stack
from jax_deepgemm.ops.swiglu import swiglu, swiglu_to_fp8
from tests import moe, sharded
from tests.helpers import quantised as by_numpy
from tests.helpers import relative_error

BF16, F32 = jnp.bfloat16, jnp.float32
T, H, INNER, G, TOP_K = 40, 144, 160, 5, 3
IDX, WEIGHTS = moe.routed(0, T, TOP_K, G)
# Two products each of operands that are rounded to FP8, one behind the other; and the gradients of as many.
BOUNDS = {None: 1e-2, moe.FP8: 0.1}


def arrays(dtype=BF16):
    keys = jax.random.split(jax.random.key(1), 4)
    shapes = ((T, H), (G, 2 * INNER, H), (G, H, INNER), (T, H))
    scales = (1.0, H**-0.5, INNER**-0.5, 1.0)
    return [(jax.random.normal(k, s) * f).astype(dtype) for k, s, f in zip(keys, shapes, scales, strict=True)]


@functools.partial(jax.jit, static_argnames="recipe")
def step(x, weights, w13, w2, dy, idx, recipe=None):
    return moe.step_of(lambda x, w, w13, w2: moe_mlp(x, idx, w, w13, w2, recipe=recipe), x, weights, w13, w2, dy)


@jax.jit
def wanted(x, weights, w13, w2, dy, idx):
    given = [jnp.asarray(v, F32) for v in (x, weights, w13, w2, dy)]
    return moe.step_of(lambda x, w, w13, w2: moe.moe_mlp(x, idx, w, w13, w2), *given)


run = jax.jit(moe_mlp, static_argnames="recipe")


def check(got, expected, bound):
    for g, w in zip(got, expected, strict=True):
        assert relative_error(g, np.asarray(w).astype(np.float64)) < bound


@pytest.mark.parametrize("recipe, dtype", [(None, BF16), (moe.FP8, BF16), (moe.FP8, F32)])
def test_values_and_gradients(recipe, dtype):
    x, w13, w2, dy = arrays(dtype)
    got = step(x, WEIGHTS, w13, w2, dy, IDX, recipe=recipe)
    assert [v.dtype for v in got] == [dtype, dtype, F32, dtype, dtype]
    expected = wanted(x, WEIGHTS, w13, w2, dy, IDX)
    check(got, expected, BOUNDS[recipe])
    alone = run(x, IDX, WEIGHTS, w13, w2, recipe=recipe)
    assert relative_error(alone, np.asarray(got[0]).astype(np.float64)) < 2e-3
    if recipe:
        assert relative_error(alone, np.asarray(expected[0]).astype(np.float64)) > 1e-2


@pytest.mark.parametrize("idx", [jnp.full((T, TOP_K), -1), jnp.zeros((T, TOP_K), jnp.int32)], ids=["none", "one"])
@pytest.mark.parametrize("recipe", [None, moe.FP8])
def test_no_expert_and_one_for_all(idx, recipe):
    x, w13, w2, dy = arrays()
    got = step(x, WEIGHTS, w13, w2, dy, idx, recipe=recipe)
    for g, w in zip(got, wanted(x, WEIGHTS, w13, w2, dy, idx), strict=True):
        w = np.asarray(w).astype(np.float64)
        assert relative_error(g, w) < BOUNDS[recipe] if w.any() else not np.asarray(g).any()


def quantised(w):
    each = [by_numpy(v, (128, 128)) for v in np.asarray(w)]
    return Quantized(*(jnp.stack(v) for v in zip(*each, strict=True)))


def test_quantised_weights():
    x, w13, w2, dy = arrays()
    pairs = quantised(w13), quantised(w2)
    inside = moe_mlp(x, IDX, WEIGHTS, w13, w2, recipe=moe.FP8)
    np.testing.assert_array_equal(np.asarray(moe_mlp(x, IDX, WEIGHTS, *pairs)), np.asarray(inside))
    plain: Any = [tuple(p) for p in pairs]
    np.testing.assert_array_equal(np.asarray(moe_mlp(x, IDX, WEIGHTS, *plain)), np.asarray(inside))
    got = jax.jit(lambda *args: moe.step_of(lambda x, w: moe_mlp(x, IDX, w, *pairs), *args))(x, WEIGHTS, dy)
    check(got, wanted(x, WEIGHTS, w13, w2, dy, IDX)[:3], 0.1)
    with pytest.raises(NotImplementedError, match="quantised already"):
        jax.grad(lambda s: moe_mlp(x, IDX, WEIGHTS, Quantized(pairs[0].data, s), pairs[1]).astype(F32).sum())(
            pairs[0].scale
        )


def test_stacks_of_weights_are_quantised_as_each_alone():
    for shape in ((3, 256, 300), (2, 130, 128)):
        w = jnp.asarray(moe.normal(0, *shape), BF16)
        straight, turned = quantise_stack(w, straight=True, turned=True)
        for got, x in ((straight, w), (turned, w.transpose(0, 2, 1))):
            for g, expected in zip(got, quantised(x), strict=True):
                np.testing.assert_array_equal(np.asarray(g).view(np.uint8), np.asarray(expected).view(np.uint8))


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_swiglu(dtype):
    h = jnp.asarray(moe.normal(2, 20, 272), dtype)
    wide = moe.swiglu(np.asarray(h).astype(np.float64))
    assert relative_error(swiglu(h), wide) < (3e-3 if dtype == BF16 else 1e-6)
    data, scale = (np.asarray(v).astype(np.float64) for v in swiglu_to_fp8(h))
    assert relative_error(data * scale.repeat(128, 1)[:, :136], wide) < 0.04


def test_vmap_of_tokens():
    x, w13, w2, _ = arrays()
    xs = jnp.stack([x, x[::-1]])
    got = jax.jit(jax.vmap(lambda x: moe_mlp(x, IDX, WEIGHTS, w13, w2)))(xs)
    alone = run(xs[1], IDX, WEIGHTS, w13, w2)
    np.testing.assert_allclose(got[1].astype(F32), alone.astype(F32), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("recipe", [None, moe.FP8])
def test_experts_shared_out(recipe):
    """Each device has a part of the experts and all the tokens; others' experts are none of its own."""
    keys = jax.random.split(jax.random.key(3), 2)
    x, _, _, dy = arrays()
    w13 = (jax.random.normal(keys[0], (16, 2 * INNER, H)) * H**-0.5).astype(BF16)
    w2 = (jax.random.normal(keys[1], (16, H, INNER)) * INNER**-0.5).astype(BF16)
    idx, weights = moe.routed(4, T, TOP_K, 16)

    def local(x, weights, w13, w2, dy):
        def both(x, weights, w13, w2):
            mine = moe_mlp(x, idx - 2 * jax.lax.axis_index("e"), weights, w13, w2, recipe=recipe)
            return jax.lax.psum(mine.astype(F32), "e")

        return moe.step_of(both, x, weights, w13, w2, dy)

    mesh = jax.make_mesh((8,), ("e",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P(), P("e"), P("e"), P()),
        out_specs=(P(), P(), P(), P("e"), P("e")),
        check_vma=True,
    )
    got = jax.jit(mapped)(x, weights, w13, w2, dy)
    check(got, wanted(x, weights, w13, w2, dy, idx), BOUNDS[recipe])


def test_experts_shared_out_beside_an_axis_of_data():
    """Manual over the experts alone: what XLA does over the other axis is not ours to say."""
    x, w13, w2, _ = arrays()
    mesh = jax.make_mesh((5, 1), ("e", "d"), devices=jax.devices()[:5], axis_types=(AxisType.Auto,) * 2)

    def local(x, w13, w2):
        mine = moe_mlp(x, IDX - jax.lax.axis_index("e"), WEIGHTS, w13, w2)
        return jax.lax.psum(mine.astype(F32), "e")

    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("e"), P("e")), out_specs=P(), axis_names={"e"}, check_vma=True
    )
    with jax.set_mesh(mesh):
        got, gradient = jax.jit(jax.value_and_grad(lambda w: mapped(x, w, w2).sum()))(w13)
    value, expected = jax.value_and_grad(lambda w: run(x, IDX, WEIGHTS, w, w2).astype(F32).sum())(w13)
    np.testing.assert_allclose(got, value, rtol=1e-2, atol=1)
    assert relative_error(gradient, np.asarray(expected).astype(np.float64)) < 1e-2


@pytest.mark.parametrize("recipe", [None, moe.FP8])
@pytest.mark.parametrize("spec", [P("x"), P(None, "x")], ids=str)
def test_gradients_of_sharded_weights_have_their_type(spec, recipe):
    x, w13, w2, _ = arrays()
    mesh = sharded.mesh_of(AxisType.Explicit, 5 if spec == P("x") else 2)
    x, idx, weights = sharded.put((x, IDX, WEIGHTS), mesh, P())
    given, w2 = sharded.put(w13, mesh, spec), sharded.put(w2, mesh, P())

    def loss(w, x, idx, weights, w2):
        return moe_mlp(x, idx, weights, w, w2, recipe=recipe).astype(F32).sum()

    gradient = jax.jit(jax.grad(loss))(given, x, idx, weights, w2)
    assert gradient.sharding.is_equivalent_to(given.sharding, 3)
    expected = jax.jit(jax.grad(loss))(w13, *map(np.asarray, (x, idx, weights, w2)))
    assert relative_error(gradient, np.asarray(expected).astype(np.float64)) < 1e-2


@pytest.mark.parametrize("recipe", [None, moe.FP8])
def test_export_of_any_number_of_tokens(recipe):
    x, w13, w2, _ = arrays()
    m, *_ = jax.export.symbolic_shape("m")
    symbolic = [jax.ShapeDtypeStruct((m, v.shape[1]), v.dtype) for v in (x, IDX, WEIGHTS)]
    call = jax.jit(lambda *given: moe_mlp(*given, w13, w2, recipe=recipe))
    again = jax.export.export(call, platforms=("cpu",))(*symbolic)
    wanted = np.asarray(run(x, IDX, WEIGHTS, w13, w2, recipe=recipe)).astype(np.float64)
    assert relative_error(again.call(x, IDX, WEIGHTS), wanted) < 1e-2


@pytest.mark.filterwarnings("ignore:jax_deepgemm lowers for cuda")
def test_export():
    x, w13, w2, _ = arrays()
    args = x, IDX, WEIGHTS, quantised(w13), quantised(w2)
    again = jax.export.deserialize(jax.export.export(jax.jit(moe_mlp), platforms=("cpu", "cuda"))(*args).serialize())
    np.testing.assert_array_equal(np.asarray(again.call(*args)), np.asarray(run(*args)))


X, W13, W2 = jnp.zeros((4, 32), BF16), jnp.zeros((3, 64, 32), BF16), jnp.zeros((3, 32, 32), BF16)
I0, TW = jnp.zeros((4, 2), jnp.int32), jnp.zeros((4, 2))


@pytest.mark.parametrize(
    "args, error, message",
    [
        (
            (X.astype(F32), I0, TW, W13, W2),
            TypeError,
            "`x` must be bfloat16 of shape (T, H), got float32[4,32]",
        ),
        ((X, I0, TW, W13[:, :, :16], W2), ValueError, "`w13` must be of shape (G, 2 I, 32) with the H of `x`"),
        ((X, I0, TW, W13[:, :63], W2), ValueError, "`w13` must be of shape (G, 2 I, 32)"),
        ((X, I0, TW, W13, W2[:2]), ValueError, "`w2` must be of shape (3, 32, 32) with the G and I of `w13`"),
        ((X, I0, TW, W13[:, :24], W2[:, :, :12]), ValueError, "with H and I multiples of 8"),
        ((X, I0, TW[:, :1], W13, W2), ValueError, "`topk_weights` must be"),
        ((X, I0, TW, (W13, W2), (W2, W2)), TypeError, "`w13` must be float8_e4m3fn of shape (G, 2 I, H)"),
    ],
)
def test_bad_input(args, error, message):
    with pytest.raises(error) as caught:
        moe_mlp(*args)
    assert message in str(caught.value)
