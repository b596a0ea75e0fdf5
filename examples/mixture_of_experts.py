"""A mixture of experts under jit: tokens sorted by expert, two grouped GEMMs in FP8, and a gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import jax_deepgemm as dg

FP8 = ((1, 128), (128, 128))
tokens, model, hidden, experts, top_k = 256, 512, 256, 8, 2
keys = jax.random.split(jax.random.key(0), 4)
x = jax.random.normal(keys[0], (tokens, model), jnp.bfloat16)
w13 = jax.random.normal(keys[1], (experts, 2 * hidden, model), jnp.bfloat16) * model**-0.5
w2 = jax.random.normal(keys[2], (experts, model, hidden), jnp.bfloat16) * hidden**-0.5
router = jax.random.normal(keys[3], (model, experts), jnp.bfloat16) * model**-0.5


def block(x: jax.Array, w13: jax.Array, w2: jax.Array, recipe: tuple | None) -> jax.Array:
    scores, topk_idx = jax.lax.top_k(jax.nn.softmax(jnp.dot(x, router)), top_k)
    return dg.moe_mlp(x, topk_idx, scores, w13, w2, recipe=recipe)


@jax.jit
def by_hand(x: jax.Array, topk_idx: jax.Array) -> jax.Array:
    """The parts that `moe_mlp` is made of."""
    rows, permutation = dg.moe_permute(x, topk_idx, experts)
    y = dg.ragged_dot(rows, jnp.swapaxes(w13, 1, 2), permutation.group_sizes)
    return dg.moe_unpermute(y, permutation)


run = jax.jit(block, static_argnames="recipe")
exact, quantised = (run(x, w13, w2, recipe).astype(jnp.float32) for recipe in (None, FP8))
error = jnp.linalg.norm(quantised - exact) / jnp.linalg.norm(exact)
print(f"relative error of FP8 against BF16: {error:.1%}")
assert error < 0.1

gradient = jax.jit(jax.grad(lambda w: jnp.sum(block(x, w, w2, FP8).astype(jnp.float32) ** 2)))(w13)
print(f"gradient of w13: {gradient.dtype}{list(gradient.shape)}")
print(by_hand(x, jax.lax.top_k(jnp.dot(x, router), top_k)[1]).shape)
