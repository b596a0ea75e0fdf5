"""Quantise two matrices and multiply them, under jit, on whatever device there is."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import jax_deepgemm as dg

keys = jax.random.split(jax.random.key(0))
x = jax.random.normal(keys[0], (128, 512), jnp.bfloat16)  # activations [M, K]
w = jax.random.normal(keys[1], (256, 512), jnp.bfloat16)  # weights [N, K]
weights = dg.per_block_cast_to_fp8(w)  # once: a scale for each 128 x 128 block


@jax.jit
def layer(x: jax.Array) -> jax.Array:
    return dg.fp8_gemm_nt(dg.per_token_cast_to_fp8(x), weights)  # bfloat16 [M, N]


exact = jnp.dot(x, w.T, preferred_element_type=jnp.float32)
error = jnp.linalg.norm(layer(x) - exact) / jnp.linalg.norm(exact)
print(f"relative error of FP8 against BF16: {error:.1%}")
assert error < 0.05
