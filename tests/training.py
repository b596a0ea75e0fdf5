"""A small network trained from the same start on the same batches, whatever its linear layers are."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jax_deepgemm import fp8_linear
from tests.deviceless import OPTIMISED

STEPS, BATCH, INPUTS, HIDDEN, OUTPUTS = 200, 256, 16, 144, 24
RATE, DECAY = 5e-3, (0.9, 0.99)


def network(linear, weights, x):
    *hidden, last = weights
    for w in hidden:
        x = jax.nn.gelu(linear(x, w))
    return linear(x, last).astype(jnp.float32)


def initial(key, scale=1.0):
    shapes = [(HIDDEN, INPUTS), (HIDDEN, HIDDEN), (OUTPUTS, HIDDEN)]
    keys = jax.random.split(key, len(shapes))
    return [scale * jax.random.normal(k, s) * (2 / s[1]) ** 0.5 for k, s in zip(keys, shapes, strict=True)]


@functools.partial(jax.jit, static_argnums=0, compiler_options=OPTIMISED)  # it runs for longer than it compiles
def train(linear):
    """Losses of all steps of Adam, on float32 weights and bfloat16 activations; the targets are another network's."""
    teacher = initial(jax.random.key(0))

    def loss(weights, x):
        wanted = network(lambda x, w: x @ w.T, teacher, x)
        return jnp.mean((network(linear, weights, x.astype(jnp.bfloat16)) - wanted) ** 2) / jnp.mean(wanted**2)

    def step(state, i):
        weights, means, squares = state
        value, gradient = jax.value_and_grad(loss)(weights, jax.random.normal(jax.random.key(100 + i), (BATCH, INPUTS)))
        means = jax.tree.map(lambda m, g: DECAY[0] * m + (1 - DECAY[0]) * g, means, gradient)
        squares = jax.tree.map(lambda s, g: DECAY[1] * s + (1 - DECAY[1]) * g**2, squares, gradient)
        lift = jnp.sqrt(1 - DECAY[1] ** (i + 1)) / (1 - DECAY[0] ** (i + 1))
        weights = jax.tree.map(lambda w, m, s: w - RATE * lift * m / (jnp.sqrt(s) + 1e-9), weights, means, squares)
        return (weights, means, squares), value

    start = initial(jax.random.key(1))
    zeros = [jnp.zeros_like(w) for w in start]
    return jax.lax.scan(step, (start, zeros, zeros), jnp.arange(STEPS))[1]


def bf16_linear(x, w):
    return x @ w.T.astype(x.dtype)


def losses_follow():
    """Asserts that training in FP8 learns, with losses near those of training in BF16."""
    fp8, bf16 = (np.asarray(train(linear)).reshape(-1, 20).mean(axis=1) for linear in (fp8_linear, bf16_linear))
    assert bf16[-1] < bf16[0] / 5
    assert fp8[-1] < fp8[0] / 5
    # The mean of every 20 steps. What the rounding itself adds does not shrink with the loss.
    assert (np.abs(fp8 - bf16) < 0.05 * bf16 + 0.002).all(), (fp8, bf16)
