"""fp8_dot_general, alone and inside Flax."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_deepgemm import fp8_dot_general, fp8_linear
from tests.helpers import assert_close, relative_error
from tests.linear import DIMS, PLAIN, einsum


def normal(*shape, seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


@pytest.mark.parametrize("name", DIMS)
def test_dimension_numbers(name):
    lhs_shape, rhs_shape, dims = DIMS[name]
    lhs, rhs = normal(*lhs_shape), normal(*rhs_shape, seed=1)
    product = functools.partial(fp8_dot_general, dimension_numbers=dims)
    plain = functools.partial(jax.lax.dot_general, dimension_numbers=dims)
    wanted = jax.eval_shape(plain, lhs, rhs)
    dy = normal(*wanted.shape, seed=2)

    @functools.partial(jax.jit, static_argnums=0)
    def step(function):
        y, pull = jax.vjp(function, lhs, rhs)
        return y, pull(dy)

    (y, gradients), (_, exact) = step(product), step(plain)
    assert (y.shape, y.dtype) == (wanted.shape, wanted.dtype)
    # One number of a vector product may be off by chance, but not by more than each rounding can be.
    bound = 0.05 if y.size > 1 else 0.125 * float(jnp.linalg.norm(lhs) * jnp.linalg.norm(rhs) / abs(plain(lhs, rhs)))
    assert 0 < relative_error(y, einsum(lhs, rhs, dims)) < bound
    for got, expected in zip(gradients, exact, strict=True):
        assert 0 < relative_error(got, np.asarray(expected)) < 0.07  # 5 %, and for a vector product a little chance


def test_it_is_fp8_linear():
    x, w = normal(20, 72), normal(40, 72, seed=1)
    got, wanted = jax.jit(lambda x, w: (fp8_dot_general(x, w.T, PLAIN), fp8_linear(x, w)))(x, w)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))


@pytest.mark.parametrize("preferred", [None, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_result_dtypes(dtype, preferred):
    lhs, rhs = normal(20, 72, dtype=dtype), normal(72, 40, seed=1, dtype=dtype)
    y = fp8_dot_general(lhs, rhs, PLAIN, preferred_element_type=preferred)
    assert y.dtype == (preferred or dtype)
    assert_close(y, np.asarray(fp8_linear(lhs, rhs.T, out_dtype=jnp.float32)))


F16, BF16, F32, I32 = jnp.float16, jnp.bfloat16, jnp.float32, jnp.int32


@pytest.mark.parametrize(
    "dtype, sizes, options",
    [
        (F16, (20, 72, 40), {}),
        (I32, (20, 72, 40), {}),
        (F32, (20, 15, 40), {}),
        (F32, (20, 0, 40), {}),
        (BF16, (20, 72, 40), {"preferred_element_type": F16}),
        (F32, (20, 72, 40), {"precision": "highest"}),
        (F32, (20, 72, 40), {"precision": (jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGH)}),
        (F32, (20, 72, 40), {"precision": jax.lax.DotAlgorithmPreset.F32_F32_F32}),
    ],
)
def test_what_is_left_to_jax(dtype, sizes, options):
    m, k, n = sizes
    args = (10 * normal(m, k)).astype(dtype), (10 * normal(k, n, seed=1)).astype(dtype), PLAIN
    got, wanted = (f(*args, **options) for f in (fp8_dot_general, jax.lax.dot_general))
    assert got.dtype == wanted.dtype
    np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))


@pytest.mark.parametrize("precision", [None, "default", jax.lax.Precision.DEFAULT, (jax.lax.Precision.DEFAULT,) * 2])
def test_default_precisions_are_fp8(precision):
    lhs, rhs = normal(20, 72), normal(72, 40, seed=1)
    assert relative_error(fp8_dot_general(lhs, rhs, PLAIN, precision), np.asarray(lhs @ rhs)) > 0.01


def test_an_outer_product_is_left_to_jax():
    lhs, rhs = normal(20), normal(40, seed=1)
    np.testing.assert_array_equal(fp8_dot_general(lhs, rhs, (((), ()), ((), ()))), jnp.outer(lhs, rhs))


def test_wrong_arguments_raise_what_jax_raises():
    lhs, rhs = normal(20, 72), normal(71, 40)
    with pytest.raises(TypeError) as theirs:
        jax.lax.dot_general(lhs, rhs, PLAIN)
    with pytest.raises(TypeError) as ours:
        fp8_dot_general(lhs, rhs, PLAIN)
    assert str(ours.value).splitlines()[0] == str(theirs.value).splitlines()[0]


def test_explicit_shardings():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    x, kernel = normal(8, 128, 256), normal(256, 4, 128, seed=1)
    dims = (((2,), (0,)), ((), ()))
    wanted = fp8_dot_general(x, kernel, dims)
    sharded = jax.device_put(x, NamedSharding(mesh, P("x"))), jax.device_put(kernel, NamedSharding(mesh, P(None, "y")))
    y = jax.jit(lambda *args: fp8_dot_general(*args, dims))(*sharded)
    assert y.sharding.spec == P("x", None, "y", None)
    assert relative_error(y, np.asarray(wanted)) < 1e-5
    out = NamedSharding(mesh, P("x"))
    y = jax.jit(lambda *args: fp8_dot_general(*args, dims, out_sharding=out))(*sharded)
    assert y.sharding.is_equivalent_to(out, 4)
    assert relative_error(y, np.asarray(wanted)) < 1e-5


# --- Flax ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_flax_linen_dense(dtype):
    linen = pytest.importorskip("flax.linen")
    x = normal(4, 5, 72)
    dense = linen.Dense(40, dtype=dtype, dot_general=fp8_dot_general)
    variables = dense.init(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    y, pull = jax.vjp(dense.apply, variables, x)
    wanted, pull_wanted = jax.vjp(lambda kernel, x: fp8_linear(x.astype(dtype), kernel.astype(dtype).T), kernel, x)
    assert y.dtype == dtype
    gradients = pull(y)
    for got, expected in zip(
        (y, gradients[0]["params"]["kernel"], gradients[1]), (wanted, *pull_wanted(y)), strict=True
    ):
        assert_close(got, np.asarray(expected))


def test_flax_nnx_linear():
    nnx = pytest.importorskip("flax.nnx")
    x = normal(4, 5, 72)
    layer = nnx.Linear(72, 40, dot_general=fp8_dot_general, rngs=nnx.Rngs(0))
    kernel = layer.kernel[...]
    wanted, pull = jax.vjp(lambda kernel: fp8_linear(x, kernel.T), kernel)
    assert_close(layer(x), np.asarray(wanted))
    gradient = nnx.grad(lambda layer: (layer(x) ** 2).sum() / 2)(layer)
    assert_close(gradient.kernel[...], np.asarray(pull(wanted)[0]))


def test_equinox_keeps_weights_as_fp8_linear_takes_them():
    equinox = pytest.importorskip("equinox")
    layer = equinox.nn.Linear(72, 40, use_bias=False, key=jax.random.key(0))
    x = normal(20, 72)
    assert relative_error(fp8_linear(x, layer.weight), np.asarray(jax.vmap(layer)(x))) < 0.05
