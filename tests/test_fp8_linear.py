"""fp8_linear: values, gradients, transformations."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_deepgemm import fp8_linear, per_block_cast_to_fp8, per_token_cast_to_fp8
from tests.helpers import assert_close, dequantised, relative_error
from tests.linear import ABOVE, BELOW, KEYS, SIZES, arrays, check, emulated, exact, step, step_of
from tests.sharded import BOTH, GATHER, SUM, mapped, mesh_of, put, run


@pytest.mark.parametrize("m, n, k", SIZES)
def test_against_float64_of_the_same_roundings(m, n, k):
    x, w, dy = arrays(m, n, k)
    check(step(x, w, dy), emulated(x, w, dy))


@pytest.mark.parametrize("m, n, k", SIZES[:2])
def test_against_float64(m, n, k):
    x, w, dy = arrays(m, n, k)
    for got, wanted in zip(step(x, w, dy), exact(x, w, dy), strict=True):
        assert BELOW < relative_error(got, wanted) < ABOVE


@pytest.mark.parametrize(
    "x_dtype, w_dtype, out_dtype",
    [
        (jnp.bfloat16, jnp.bfloat16, None),
        (jnp.bfloat16, jnp.float32, None),
        (jnp.float32, jnp.bfloat16, None),
        (jnp.bfloat16, jnp.bfloat16, jnp.float32),
        (jnp.float32, jnp.float32, jnp.bfloat16),
    ],
)
def test_dtypes(x_dtype, w_dtype, out_dtype):
    y_dtype = x_dtype if out_dtype is None else out_dtype
    x, w, dy = arrays(40, 136, 272, (x_dtype, w_dtype, y_dtype))
    got = step(x, w, dy, out_dtype=out_dtype)
    assert [v.dtype for v in got] == [y_dtype, x_dtype, w_dtype]
    check(got, emulated(x, w, dy))


def test_the_bounds_catch_wrong_results():
    x, w, dy = arrays(*SIZES[1])
    for wanted in emulated(x, w, dy):
        for wrong in (0 * wanted, np.roll(wanted, 1, axis=1), 1.01 * wanted):
            assert relative_error(wrong, wanted) > 5e-3


def test_leading_dimensions():
    x, w, dy = arrays(24, 136, 256)
    flat = step(x, w, dy)
    for leading in [(2, 3, 4), (24, 1)]:
        got = step(x.reshape(*leading, -1), w, dy.reshape(*leading, -1))
        for g, wanted in zip(got, flat, strict=True):
            np.testing.assert_array_equal(np.asarray(g).reshape(wanted.shape), np.asarray(wanted))
    assert_close(fp8_linear(x[3], w), np.asarray(flat[0][3]))


@pytest.mark.parametrize("m, n, k", [(0, 32, 64), (8, 0, 64), (8, 32, 0), (0, 0, 0)])
def test_empty(m, n, k):
    for got, wanted in zip(step(*arrays(m, n, k)), exact(*arrays(m, n, k)), strict=True):
        np.testing.assert_array_equal(np.asarray(got), wanted)


def test_small_gradients_lose_nothing():
    """A power of two passes through, though the casts count magnitudes under 1e-4 as 1e-4."""
    x, w, dy = arrays(40, 136, 272)
    _, dx, dw = step(x, w, dy)
    for shrink in (2.0**-20, 2.0**-36):
        _, small_dx, small_dw = step(x, w, dy * shrink)
        np.testing.assert_array_equal(np.asarray(small_dx), np.asarray(dx) * shrink)
        np.testing.assert_array_equal(np.asarray(small_dw), np.asarray(dw) * shrink)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_stay_in_their_rows(bad):
    x, w, _ = arrays(40, 136, 272)
    y = np.asarray(fp8_linear(x.at[5, 200].set(bad), w))
    assert np.isnan(y[5]).all() and np.isfinite(np.delete(y, 5, axis=0)).all()


# --- weights that are quantised already ------------------------------------------------------------------------------


def test_quantised_weights():
    x, w, dy = arrays(24, 10, 200)  # which are padded
    pair = per_block_cast_to_fp8(w)
    y, dx, _ = step(x, w, dy)
    for quantised in (pair, tuple(pair)):
        got, pull = jax.jit(functools.partial(jax.vjp, lambda x, quantised=quantised: fp8_linear(x, quantised)))(x)
        check((got, *pull(dy)), (np.asarray(y), np.asarray(dx)))
    e8m0 = per_block_cast_to_fp8(w, use_ue8m0=True)
    check([fp8_linear(x, e8m0)], [dequantised(per_token_cast_to_fp8(x), (1, 128)) @ dequantised(e8m0, (128, 128)).T])


def test_quantised_weights_have_no_gradient():
    x, w, _ = arrays(24, 136, 272)
    pair = per_block_cast_to_fp8(w)

    def loss(x, pair):
        return fp8_linear(x, pair).sum()

    for function in (loss, jax.jit(loss), jax.checkpoint(loss)):
        with pytest.raises(
            NotImplementedError, match=r"no gradient of weights that are quantised already: use jax.lax.stop_gradient"
        ):
            jax.grad(function, (0, 1))(x, pair)
    stopped = jax.jit(jax.grad(lambda x, pair: loss(x, jax.lax.stop_gradient(pair)), (0, 1)))
    dx, dw = stopped(x, pair)
    assert_close(dx, np.asarray(jax.grad(loss)(x, pair)))
    assert not np.asarray(dw.scale).any()


# --- errors ----------------------------------------------------------------------------------------------------------

X, W = jnp.ones((4, 64)), jnp.ones((32, 64))


@pytest.mark.parametrize(
    "x, w, options, error, message",
    [
        (X.astype(int), W, {}, TypeError, r"`x` must be bfloat16 or float32 of shape \(\.\.\., K\), got int32\[4,64\]"),
        (X.astype(jnp.float16), W, {}, TypeError, r"`x` must be .*, got float16\[4,64\]"),
        (X[0, 0], W, {}, ValueError, r"`x` must be .*, got float32\[\]"),
        ([1.0], W, {}, TypeError, r"`x` must be .*, got list"),
        (X, W[0], {}, ValueError, r"`w` must be bfloat16 or float32 of shape \(N, K\), got float32\[64\]"),
        (X, W[:, :32], {}, ValueError, r"`w` must be of shape \(N, 64\) with the K of `x`, got float32\[32,32\]"),
        (X, (W, W), {}, TypeError, r"`w` must be float8_e4m3fn of shape \(N, K\)"),
        (X, W, {"out_dtype": jnp.float16}, TypeError, "`out_dtype` must be bfloat16, float32 or None, got float16"),
        (X, W, {"out_dtype": "nonsense"}, TypeError, "`out_dtype` must be bfloat16, float32 or None, got 'nonsense'"),
    ],
)  # fmt: skip
def test_errors(x, w, options, error, message):
    with pytest.raises(error, match=message):
        fp8_linear(x, w, **options)


def test_second_and_forward_derivatives_are_refused():
    def loss(x):
        return (fp8_linear(x, W) ** 2).sum()

    with pytest.raises(NotImplementedError, match="first derivatives only"):
        jax.grad(lambda x: jax.grad(loss)(x).sum())(X)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(loss, (X,), (X,))


# --- transformations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transformed", [lambda f: f, jax.jit, lambda f: jax.jit(jax.checkpoint(f))])
def test_eager_jit_and_remat(transformed):
    x, w, dy = arrays(40, 136, 272)
    y, pull = jax.vjp(transformed(fp8_linear), x, w)
    for got, wanted in zip((y, *pull(dy)), step(x, w, dy), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap(axes):
    x, w, dy = arrays(2 * 40, 2 * 128, 272)
    x = x.reshape(2, 40, 272) if axes[0] == 0 else x[:40]
    w = w.reshape(2, 128, 272) if axes[1] == 0 else w[:128]
    dys = dy.reshape(2, 40, 2, 128)[:, :, 0]
    got = jax.jit(functools.partial(step_of, jax.vmap(fp8_linear, axes)))(x, w, dys)
    each = [step(x[i] if axes[0] == 0 else x, w[i] if axes[1] == 0 else w, dys[i]) for i in range(2)]
    y, dx, dw = (np.stack([np.asarray(e[j]).astype(np.float64) for e in each]) for j in range(3))
    check(got, (y, dx if axes[0] == 0 else dx.sum(0), dw if axes[1] == 0 else dw.sum(0)))
    check(jax.jit(jax.vmap(step, (*axes, 0)))(x, w, dys), (y, dx, dw))  # the backward pass too


def test_scan_over_layers():
    x, _, _ = arrays(24, 1, 64)
    ws = jax.random.normal(KEYS[1], (3, 64, 64)) / 8

    def loop(x, ws):
        for w in ws:
            x = jnp.tanh(fp8_linear(x, w))
        return x.sum()

    def scanned(x, ws):
        body = jax.checkpoint(lambda x, w: (jnp.tanh(fp8_linear(x, w)), None))
        return jax.lax.scan(body, x, ws)[0].sum()

    got, wanted = (jax.jit(jax.grad(f, (0, 1)))(x, ws) for f in (scanned, loop))
    for g, w in zip(got, wanted, strict=True):
        assert relative_error(g, np.asarray(w)) < 1e-3


def test_export_of_a_gradient_with_symbolic_rows():
    x, w, _ = arrays(40, 136, 272)
    m, *_ = jax.export.symbolic_shape("m")

    def gradient(x):
        return jax.grad(lambda w: fp8_linear(x, w).astype(jnp.float32).sum())(w)

    exported = jax.export.export(jax.jit(gradient), platforms=("cpu",))(jax.ShapeDtypeStruct((m, 272), x.dtype))
    assert_close(exported.call(x), np.asarray(gradient(x)))


def test_export_with_symbolic_rows():
    x, w, _ = arrays(40, 136, 272)
    m, *_ = jax.export.symbolic_shape("m")
    described = jax.ShapeDtypeStruct((2, m, 272), x.dtype)
    exported = jax.export.export(jax.jit(fp8_linear), platforms=("cpu",))(described, w)
    x = x.reshape(2, 20, 272)
    assert_close(exported.call(x, w), np.asarray(fp8_linear(x, w)))


# --- several devices -------------------------------------------------------------------------------------------------


TOKENS, N, K = 1024, 512, 256
# name: leading dimensions of x, shardings of x, w and dy on a mesh of 4 x 2, collectives of a forward and backward pass
SHARDED = {
    "data": ((TOKENS,), (P("x"), P(), P("x")), SUM),
    "data and N": ((TOKENS,), (P("x"), P("y"), P("x", "y")), SUM),
    "data and K": ((TOKENS,), (P("x", "y"), P(None, "y"), P("x")), SUM),
    "data and weights by the same axis": ((TOKENS,), (P("x"), P("x"), P("x")), GATHER | SUM),
    "shards that cut blocks": ((TOKENS,), (P(("x", "y")), P(None, ("x", "y")), P(("x", "y"))), None),
    "blocks that devices do not divide": ((1536,), (P(("x", "y")), P(), P(("x", "y"))), None),
    "leading dimensions": ((8, 128), (P("x"), P("y"), P("x", None, "y")), SUM),
    "an inner leading dimension": ((4, 256), (P(None, "x"), P(), P(None, "x")), None),
}


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_jit(name, kind):
    leading, specs, collectives = SHARDED[name]
    x, w, dy = arrays(math.prod(leading), N, K)
    args = x.reshape(*leading, K), w, dy.reshape(*leading, N)
    mesh = mesh_of(kind, 4, 2)
    got, found = run(step, *(put(v, mesh, s) for v, s in zip(args, specs, strict=True)))
    assert collectives in (None, found)
    for g, wanted, spec in zip(got, step(x, w, dy), (specs[2], *specs[:2]), strict=True):
        assert relative_error(g, np.asarray(wanted).reshape(g.shape)) < 1e-5
        if kind == AxisType.Explicit:
            assert g.sharding.is_equivalent_to(NamedSharding(mesh, spec), g.ndim)


@pytest.mark.parametrize("kind", BOTH)
def test_sharded_sizes_that_are_padded(kind):
    args = arrays(24, 40, 72)
    specs = P("x", "y"), P(None, "y"), P("x")
    results, _ = run(step, *(put(v, mesh_of(kind, 4, 2), s) for v, s in zip(args, specs, strict=True)))
    for got, wanted in zip(results, step(*args), strict=True):
        assert relative_error(got, np.asarray(wanted)) < 1e-5


# What the devices share has the sum of their gradients, in float32 even where the gradient is bfloat16.
MAPPED = {
    "data": (P("x"), P(), P("x")),
    "data over both": (P(("x", "y")), P(), P(("x", "y"))),
    "N": (P(), P("y"), P(None, "y")),
    "data and N": (P("x"), P("y"), P("x", "y")),
}


@pytest.mark.parametrize(
    "name, dtype, check_vma",
    [(name, jnp.float32, True) for name in MAPPED]
    + [("data and N", jnp.bfloat16, True), ("data and N", jnp.float32, False)],
)
def test_gradient_of_shard_map(name, dtype, check_vma):
    x, w, dy = arrays(TOKENS, N, K, (dtype,) * 3)
    of_x, of_w, of_y = MAPPED[name]
    mesh = mesh_of(AxisType.Auto, 4, 2)
    shared = jax.shard_map(fp8_linear, mesh=mesh, in_specs=(of_x, of_w), out_specs=of_y, check_vma=check_vma)
    got = jax.jit(functools.partial(step_of, shared))(x, w, dy)
    check(got, emulated(x, w, dy))


@pytest.mark.parametrize("name", MAPPED)
def test_gradient_in_shard_map(name):
    x, w, dy = arrays(TOKENS, N, K)
    specs = MAPPED[name]
    check(mapped(step, specs, (specs[2], *specs[:2]))(x, w, dy), emulated(x, w, dy))


def test_scan_with_remat_in_shard_map():
    x = jax.random.normal(KEYS[0], (1024, 128))
    ws = jax.random.normal(KEYS[1], (2, 128, 128)) / 12

    def loss(x, ws):
        body = jax.checkpoint(lambda x, w: (jnp.tanh(fp8_linear(x, w)), None))
        return jax.lax.scan(body, x, ws)[0].sum()

    def local(x, ws):
        return jax.grad(loss, (0, 1))(x, ws)

    shared = jax.shard_map(local, mesh=mesh_of(AxisType.Auto, 8), in_specs=(P("x"), P()), out_specs=(P("x"), P()))
    for got, wanted in zip(jax.jit(shared)(x, ws), jax.jit(local)(x, ws), strict=True):
        assert relative_error(got, np.asarray(wanted)) < 1e-3
