"""fp8_linear and fp8_dot_general on the GPU: values and gradients against float64, and a training."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jax_deepgemm import fp8_dot_general, fp8_linear, per_block_cast_to_fp8
from tests import linear
from tests.gpu.native import native
from tests.gpu.problems import all_same
from tests.helpers import assert_close, dequantised, relative_error
from tests.training import losses_follow

pytestmark = pytest.mark.gpu

BF16, F32 = jnp.bfloat16, jnp.float32
SIZES = [*linear.SIZES, (300, 616, 1040), (256, 2112, 1024), (2048, 512, 768)]


def step(x, w, dy):
    return linear.step_of(fp8_linear, x, w, dy)


@pytest.mark.parametrize("m, n, k", SIZES)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_against_float64_of_the_same_roundings(m, n, k, dtype):
    args = linear.arrays(m, n, k, (dtype,) * 3)
    got = native(step, *args, calls=None)(*args)
    assert [v.dtype for v in got] == [dtype] * 3
    linear.check(got, linear.emulated(*args))


@pytest.mark.parametrize("m, n, k", [s for s in SIZES if min(s) >= 64])
def test_against_float64(m, n, k):
    args = linear.arrays(m, n, k)
    for got, wanted in zip(native(step, *args, calls=None)(*args), linear.exact(*args), strict=True):
        assert linear.BELOW < relative_error(got, wanted) < linear.ABOVE


def test_it_repeats_bitwise():
    args = linear.arrays(300, 616, 1040, (BF16,) * 3)
    for results in zip(*native(step, *args, calls=None).many(20, *args), strict=True):
        assert all_same(results)


def test_quantised_weights():
    x, w, dy = linear.arrays(77, 136, 200, (BF16,) * 3)  # which are padded
    pair = per_block_cast_to_fp8(w)

    def both(x, pair, dy):
        y, pull = jax.vjp(lambda x: fp8_linear(x, pair), x)
        return y, *pull(dy)

    got = native(both, x, pair, dy, calls=4)(x, pair, dy)  # two casts, two products
    linear.check(got, linear.emulated(x, w, dy)[:2])
    e8m0 = per_block_cast_to_fp8(w, use_ue8m0=True)
    a = linear.rounded(x, w, dy)[0]
    assert_close(
        native(fp8_linear, x, e8m0, calls=2)(x, e8m0), dequantised(a, (1, 128)) @ dequantised(e8m0, (128, 128)).T
    )


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap(axes):
    x, w, dy = linear.arrays(2 * 40, 2 * 128, 272, (BF16,) * 3)
    x = x.reshape(2, 40, 272) if axes[0] == 0 else x[:40]
    w = w.reshape(2, 128, 272) if axes[1] == 0 else w[:128]
    dys = dy.reshape(2, 40, 2, 128)[:, :, 0]
    got = native(jax.vmap(step, (*axes, 0)), x, w, dys, calls=None)(x, w, dys)
    each = [linear.emulated(x[i] if axes[0] == 0 else x, w[i] if axes[1] == 0 else w, dys[i]) for i in range(2)]
    linear.check(got, [np.stack(values) for values in zip(*each, strict=True)])


def test_scan_with_remat():
    x, ws = linear.arrays(256, 1, 256)[0], jax.random.normal(linear.KEYS[1], (3, 256, 256)) / 16

    def scanned(x, ws):
        body = jax.checkpoint(lambda x, w: (jnp.tanh(fp8_linear(x, w)), None))
        return jax.lax.scan(body, x, ws)[0].sum()

    def loop(x, ws):
        for w in ws:
            x = jnp.tanh(fp8_linear(x, w))
        return x.sum()

    got, wanted = (native(jax.grad(f, (0, 1)), x, ws, calls=None)(x, ws) for f in (scanned, loop))
    for g, w in zip(got, wanted, strict=True):
        assert relative_error(g, np.asarray(w).astype(np.float64)) < 1e-3


def test_shard_map():
    args = linear.arrays(256, 384, 272, (BF16,) * 3)
    mesh = jax.make_mesh((1,), ("x",), devices=jax.devices()[:1], axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(P("x"), P(), P("x")), out_specs=(P("x"), P("x"), P()))
    linear.check(jax.jit(mapped)(*args), linear.emulated(*args))


@pytest.mark.parametrize("m, n, k", [(0, 32, 64), (8, 0, 64), (8, 32, 0)])
def test_empty(m, n, k):
    args = linear.arrays(m, n, k)
    for got, wanted in zip(jax.jit(step)(*args), linear.exact(*args), strict=True):
        np.testing.assert_array_equal(np.asarray(got), wanted)


@pytest.mark.parametrize("name", linear.DIMS)
def test_dot_general(name):
    lhs_shape, rhs_shape, dims = linear.DIMS[name]
    lhs, rhs = (jax.random.normal(key, s) for key, s in zip(linear.KEYS, (lhs_shape, rhs_shape), strict=False))
    product = functools.partial(fp8_dot_general, dimension_numbers=dims)
    y = native(product, lhs, rhs, calls=None)(lhs, rhs)
    on_cpu = jax.device_put((lhs, rhs), jax.devices("cpu")[0])
    # The same roundings, so what a vector product loses by chance it loses there too.
    assert relative_error(y, np.asarray(product(*on_cpu)).astype(np.float64)) < 1e-3
    if y.size > 1:
        assert 0 < relative_error(y, linear.einsum(lhs, rhs, dims)) < 0.05


def test_the_loss_of_a_training_follows_that_of_bf16():
    losses_follow()
