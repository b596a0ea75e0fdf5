from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jax_deepgemm import ragged_dot
from tests import moe
from tests.helpers import assert_close, relative_error
from tests.linear import ABOVE, BELOW

BF16, F32 = jnp.bfloat16, jnp.float32
M, K, N, G = 70, 48, 40, 5


def arrays(dtype=BF16, m=M, k=K, n=N, g=G):
    return [jnp.asarray(moe.normal(i, *s), dtype) for i, s in enumerate(((m, k), (g, k, n), (m, n)))]


@functools.partial(jax.jit, static_argnames=("preferred_element_type", "recipe"))  # one program for all sizes
def step(lhs, rhs, sizes, dy, **options):
    return moe.step_of(lambda a, b: ragged_dot(a, b, sizes, **options), lhs, rhs, dy)


@jax.jit
def jax_step(lhs, rhs, sizes, dy):
    return moe.step_of(lambda a, b: jax.lax.ragged_dot(a, b, sizes), lhs, rhs, dy)


@pytest.mark.parametrize("name", moe.SIZES)
@pytest.mark.parametrize("out", [None, F32])
def test_against_float64(name, out):
    lhs, rhs, dy = arrays()
    sizes = jnp.asarray(moe.SIZES[name], jnp.int32)
    got = step(lhs, rhs, sizes, dy, preferred_element_type=out)
    assert [v.dtype for v in got] == [out or BF16, BF16, BF16]
    for g, wanted in zip(got, moe.ragged_dot(lhs, rhs, moe.SIZES[name], dy), strict=True):
        if wanted.any():
            assert_close(g, wanted)
        else:
            assert not np.asarray(g).any()


@pytest.mark.parametrize("dtype", [BF16, jnp.float16, F32])
@pytest.mark.parametrize("name", ["mixed", "rest", "empty"])
@pytest.mark.parametrize("k, n", [(K, N), (7, 5)])
def test_it_is_jax_lax_ragged_dot(dtype, name, k, n):
    lhs, rhs, dy = arrays(dtype, k=k, n=n)
    sizes = jnp.asarray(moe.SIZES[name], jnp.int32)
    for g, w in zip(step(lhs, rhs, sizes, dy), jax_step(lhs, rhs, sizes, dy), strict=True):
        assert (g.dtype, g.shape) == (w.dtype, w.shape)
        np.testing.assert_allclose(np.asarray(g, np.float32), np.asarray(w, np.float32), rtol=2e-2, atol=1e-1)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_more_rows_than_the_dtype_of_sizes_holds(dtype):
    lhs, rhs, _ = arrays(m=300, g=3)
    sizes = jnp.asarray([100, 120, 60])
    np.testing.assert_array_equal(ragged_dot(lhs, rhs, sizes.astype(dtype)), ragged_dot(lhs, rhs, sizes))


@pytest.mark.parametrize(
    "options",
    [
        {"precision": jax.lax.Precision.HIGHEST},
        {"precision": "highest"},
        {"preferred_element_type": jnp.float16},
        {"preferred_element_type": F32},
        {"preferred_element_type": jnp.bfloat16},
    ],
)
def test_options_are_those_of_jax(options):
    lhs, rhs, _ = arrays()
    sizes = jnp.asarray(moe.SIZES["rest"])
    got, wanted = (f(lhs, rhs, sizes, **options) for f in (ragged_dot, jax.lax.ragged_dot))
    assert got.dtype == wanted.dtype
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(wanted, np.float32), rtol=1e-2, atol=1e-1)


@pytest.mark.parametrize(
    "change",
    [
        {"lhs": jnp.zeros((M, K + 8), BF16)},
        {"rhs": jnp.zeros((G + 1, K, N), BF16)},
        {"rhs": jnp.zeros((K, N), BF16)},
        {"group_sizes": jnp.zeros(G)},
        {"group_sizes": jnp.zeros((), jnp.int32)},
        {"lhs": [1.0]},
    ],
)
def test_errors_are_those_of_jax(change):
    lhs, rhs, _ = arrays()
    given = {"lhs": lhs, "rhs": rhs, "group_sizes": jnp.asarray(moe.SIZES["mixed"])} | change
    raised = []
    for function in (jax.lax.ragged_dot, ragged_dot):
        with pytest.raises(Exception) as caught:
            function(**given)
        raised.append((caught.type, str(caught.value)))
    assert raised[0] == raised[1]


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("k, n", [(256, 384), (72, 40), (3, 5)])
def test_fp8_against_float64(dtype, k, n):
    lhs, rhs, dy = arrays(dtype, m=200, k=k, n=n)
    sizes = (50, 0, 77, 1, 60)
    got = step(lhs, rhs, jnp.asarray(sizes), dy, recipe=moe.FP8)
    assert [v.dtype for v in got] == [dtype] * 3
    y, of_lhs, of_rhs = moe.ragged_dot(lhs, rhs, sizes, dy)
    assert relative_error(got[2], of_rhs) < (2e-3 if dtype == BF16 else 5e-3)  # of operands in BF16
    for g, wanted in zip(got, (y, of_lhs), strict=False):
        error = relative_error(g, wanted)
        assert error < ABOVE if k < 128 else BELOW < error < ABOVE


def test_fp8_errors():
    lhs, rhs, _ = arrays()
    sizes = jnp.asarray(moe.SIZES["mixed"])
    with pytest.raises(ValueError, match="`recipe` must be"):
        ragged_dot(lhs, rhs, sizes, recipe=((1, 128), (1, 128)))
    with pytest.raises(TypeError, match="`lhs` must be bfloat16 or float32 of shape"):
        ragged_dot(lhs.astype(jnp.float16), rhs, sizes, recipe=moe.FP8)
    with pytest.raises(TypeError, match="`preferred_element_type` must be"):
        ragged_dot(lhs, rhs, sizes, preferred_element_type=jnp.float16, recipe=moe.FP8)
    with pytest.raises(NotImplementedError):
        jax.grad(lambda x: jax.grad(lambda x: ragged_dot(x, rhs, sizes, recipe=moe.FP8).sum())(x).sum())(lhs)


def masked_dot(lhs, rhs, sizes):
    """`jax.lax.ragged_dot`, whose gradient has none."""
    ends = jnp.cumsum(sizes)
    rows = jnp.arange(lhs.shape[0])[:, None]
    return jnp.einsum("mg,mk,gkn->mn", (ends - sizes <= rows) & (rows < ends), lhs, rhs)


def test_second_derivatives():
    lhs, rhs, _ = arrays()
    sizes = jnp.asarray(moe.SIZES["rest"])

    def penalty(function, lhs, rhs):
        of_both = jax.grad(lambda a, b: jnp.sum(function(a, b, sizes).astype(F32) ** 2) / 1e3, (0, 1))(lhs, rhs)
        return sum(jnp.sum(v.astype(F32) ** 2) for v in of_both)

    got, wanted = (jax.jit(jax.grad(functools.partial(penalty, f), (0, 1)))(lhs, rhs) for f in (ragged_dot, masked_dot))
    for g, w in zip(got, wanted, strict=True):
        assert relative_error(g, np.asarray(w).astype(np.float64)) < 1e-2


@pytest.mark.parametrize("recipe", [None, moe.FP8])
@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0)])
def test_vmap(axes, recipe):
    pairs = [arrays() for _ in range(2)]
    lhs, rhs, dy = (jnp.stack([v, 2 * v[::-1]]) for v in pairs[0])
    sizes = jnp.asarray([moe.SIZES["mixed"], moe.SIZES["rest"]])
    args = [v if axis == 0 else v[0] for v, axis in zip((lhs, rhs, sizes), axes, strict=True)]
    function = functools.partial(step, recipe=recipe)
    got = jax.jit(jax.vmap(function, (*axes, 0)))(*args, dy)
    for i in range(2):
        one = [v[i] if axis == 0 else v for v, axis in zip(args, axes, strict=True)]
        for g, w in zip(got, function(*[*one, dy[i]]), strict=True):
            np.testing.assert_allclose(np.asarray(g[i], np.float32), np.asarray(w, np.float32), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("recipe", [None, moe.FP8])
def test_experts_shared_out(recipe):
    """Eight devices have a part of the experts each: rows are rolled so that their own come first, results summed."""
    lhs, rhs, dy = arrays(g=16)
    sizes = jnp.asarray([3, 0, 9, 1, 0, 0, 5, 8, 2, 2, 0, 20, 1, 3, 4, 2], jnp.int32)

    def local(lhs, rhs, sizes, dy):
        begin = jnp.cumsum(sizes)[2 * jax.lax.axis_index("e")] - sizes[2 * jax.lax.axis_index("e")]
        mine = jax.lax.dynamic_slice_in_dim(sizes, 2 * jax.lax.axis_index("e"), 2)

        def product(lhs, rhs):
            y = ragged_dot(jnp.roll(lhs, -begin, axis=0), rhs, mine, preferred_element_type=F32, recipe=recipe)
            return jax.lax.psum(jnp.roll(y, begin, axis=0), "e")

        return moe.step_of(product, lhs, rhs, dy)

    mesh = jax.make_mesh((8,), ("e",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (P(), P("e"), P(), P()), "out_specs": (P(), P(), P("e"))}
    got = jax.jit(jax.shard_map(local, mesh=mesh, **specs, check_vma=True))(lhs, rhs, sizes, dy)
    wanted = moe.ragged_dot(lhs, rhs, np.asarray(sizes), dy)
    for g, w, bound in zip(got, wanted, (5e-4, 1e-2, 2e-3) if recipe is None else (ABOVE, ABOVE, 2e-3), strict=True):
        assert relative_error(g, w) < bound


@pytest.mark.filterwarnings("ignore:jax_deepgemm lowers for cuda")
@pytest.mark.parametrize("recipe", [None, moe.FP8])
def test_export(recipe):
    lhs, rhs, dy = arrays()
    args = lhs, rhs, jnp.asarray(moe.SIZES["rest"]), dy
    function = jax.jit(functools.partial(step, recipe=recipe))
    jax.export.export(function, platforms=("cpu", "cuda"))(*args)
    # Of an export for both XLA's compiler for CPUs fails, in the references of the grouped GEMMs.
    again = jax.export.deserialize(jax.export.export(function, platforms=("cpu",))(*args).serialize())
    for g, w in zip(again.call(*args), step(*args, recipe=recipe), strict=True):
        np.testing.assert_array_equal(np.asarray(g, np.float32), np.asarray(w, np.float32))


@pytest.mark.parametrize("m, k, n, g", [(0, 16, 8, 3), (5, 0, 8, 3), (5, 16, 0, 3), (5, 16, 8, 0)])
@pytest.mark.parametrize("recipe", [None, moe.FP8])
def test_empty(m, k, n, g, recipe):
    lhs, rhs, dy = (jnp.ones(s, BF16) for s in ((m, k), (g, k, n), (m, n)))
    sizes = jnp.full(g, 1, jnp.int32)
    for got, wanted in zip(
        step(lhs, rhs, sizes, dy, recipe=recipe), moe.ragged_dot(lhs, rhs, np.asarray(sizes), dy), strict=True
    ):
        np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=1e-2)


def test_out_sharding_is_jax_s():
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2], axis_types=(AxisType.Explicit,))
    lhs, rhs, sizes = (np.asarray(v) for v in (jnp.ones((8, 16), BF16), jnp.ones((2, 16, 8), BF16), jnp.array([3, 4])))
    with jax.set_mesh(mesh):
        got = ragged_dot(*map(jnp.asarray, (lhs, rhs, sizes)), out_sharding=P("x"))
    assert got.sharding.spec[0] == "x"
    np.testing.assert_array_equal(np.asarray(got, np.float32)[:, 0], [16] * 7 + [0])
    with pytest.raises(ValueError, match="`out_sharding` must be None with a recipe"):
        ragged_dot(lhs, rhs, sizes, out_sharding=P(), recipe=((1, 128), (128, 128)))
