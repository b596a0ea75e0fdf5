"""What the tests of linear layers share, on the CPU and on a GPU: operands, float64 results."""

from __future__ import annotations

import functools
import string

import jax
import jax.numpy as jnp
import numpy as np

from jax_deepgemm import fp8_linear
from tests.helpers import assert_close, dequantised, quantised

# float8_e4m3fn has 8 steps in a binade. Rounding to them is off by 1 / sqrt(12) of a step in the mean square, which is
# 2.65 % of values spread evenly over the logarithm; both operands are, independently, so a product of random matrices
# is off by sqrt(2) times that, 3.75 %. Under a third of that, nothing was rounded.
RECIPE_ERROR = 0.0375
BELOW, ABOVE = 0.3 * RECIPE_ERROR, 1.2 * RECIPE_ERROR
KEYS = list(jax.random.split(jax.random.key(7), 3))
ROW = (1, 128)
# On the borders of blocks, off them, and off the multiples of 16 too.
SIZES = [(128, 256, 384), (77, 136, 200), (1, 40, 272), (130, 10, 3)]


@functools.cache
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def arrays(m, n, k, dtypes=(jnp.float32,) * 3):
    """x, w and dy, whose magnitude differs from one 128 to the next, so that a misplaced scale shows."""
    shapes = ((m, k), (n, k), (m, n))

    def one(key, shape, dtype):
        rows, columns = (np.arange(size) // 128 for size in shape)
        return (jax.random.normal(key, shape) * 2.0 ** ((rows[:, None] + 2 * columns) % 5)).astype(dtype)

    return [one(*described) for described in zip(KEYS, shapes, dtypes, strict=True)]


def step_of(function, x, w, dy):
    """The product and both gradients."""
    y, pull = jax.vjp(function, x, w)
    return y, *pull(dy)


@functools.partial(jax.jit, static_argnames="out_dtype")  # compiles far less than without
def step(x, w, dy, out_dtype=None):
    return step_of(lambda x, w: fp8_linear(x, w, out_dtype=out_dtype), x, w, dy)


def exact(x, w, dy):
    x, w, dy = (np.asarray(v).astype(np.float64) for v in (x, w, dy))
    return x @ w.T, dy @ w, dy.T @ x


def rounded(x, w, dy):
    """The operands of the forward product, of dx and of dw."""
    x, w, dy = map(np.asarray, (x, w, dy))
    return quantised(x, ROW), quantised(w, (128, 128)), quantised(dy, ROW), quantised(dy.T, ROW), quantised(x.T, ROW)


def emulated(x, w, dy):
    """In float64, of the operands as the recipe rounds them."""
    blocks = ROW, (128, 128), ROW, ROW, ROW
    x, w, dy, dy_t, x_t = (dequantised(v, block) for v, block in zip(rounded(x, w, dy), blocks, strict=True))
    return x @ w.T, dy @ w, dy_t @ x_t.T


def check(got, wanted):
    for g, w in zip(got, wanted, strict=True):
        assert_close(g, w)


PLAIN = (((1,), (0,)), ((), ()))


def einsum(lhs, rhs, dims):
    """The float64 product, by numpy.einsum."""
    (lhs_summed, rhs_summed), (lhs_batch, rhs_batch) = dims
    names = iter(string.ascii_letters)
    left = [next(names) for _ in lhs.shape]
    right = [next(names) for _ in rhs.shape]
    for i, j in zip((*lhs_summed, *lhs_batch), (*rhs_summed, *rhs_batch), strict=True):
        right[j] = left[i]
    batch = [left[d] for d in lhs_batch]
    free = [n for d, n in enumerate(left) if d not in (*lhs_summed, *lhs_batch)]
    free += [n for d, n in enumerate(right) if d not in (*rhs_summed, *rhs_batch)]
    rule = f"{''.join(left)},{''.join(right)}->{''.join(batch + free)}"
    return np.einsum(rule, *(np.asarray(v).astype(np.float64) for v in (lhs, rhs)))


DIMS = {
    "x @ kernel": ((20, 72), (72, 40), PLAIN),
    "x @ w.T": ((20, 72), (40, 72), (((1,), (1,)), ((), ()))),
    "x.T @ kernel": ((72, 20), (72, 40), (((0,), (0,)), ((), ()))),
    "several free and summed": ((3, 8, 4, 16), (16, 5, 8, 4), (((1, 3), (2, 0)), ((), ()))),
    "vectors": ((72,), (72,), (((0,), (0,)), ((), ()))),
    "batches": ((8, 2, 64, 3), (64, 3, 16, 2), (((2,), (0,)), ((1, 3), (3, 1)))),
}
