"""What the tests of mixtures of experts share, on the CPU and on a GPU: operands, float64 results."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

FP8 = ((1, 128), (128, 128))
# Group sizes of 70 rows: in one go, some without rows, all empty, one with everything, rows left over, nonsense.
SIZES = {
    "mixed": (10, 0, 23, 7, 30),
    "rest": (1, 0, 23, 7, 9),
    "empty": (0, 0, 0, 0, 0),
    "one": (0, 0, 70, 0, 0),
    "beyond": (40, 10, 50, 60, 70),
    "negative": (10, -5, 23, -(2**31), 9),
}


def normal(seed, *shape):
    """Normal values whose magnitude differs from one 128 to the next, so that a misplaced scale shows."""
    random = np.random.default_rng(seed)
    rows, columns = (np.arange(size) // 128 for size in shape[-2:])
    return random.standard_normal(shape) * 2.0 ** ((rows[:, None] + 2 * columns) % 5)


def bounded(sizes, rows):
    """Begin and end of each group: negative sizes count as 0, and what lies beyond `rows` is cut off."""
    ends = np.minimum(np.cumsum(np.maximum(np.asarray(sizes, np.int64), 0)), rows)
    return list(zip([0, *ends][:-1], ends, strict=True)) if len(ends) else []


def ragged_dot(lhs, rhs, sizes, dy):
    """The product [M, N] and both gradients, in float64."""
    lhs, rhs, dy = (np.asarray(v).astype(np.float64) for v in (lhs, rhs, dy))
    y, of_lhs, of_rhs = np.zeros(dy.shape), np.zeros(lhs.shape), np.zeros(rhs.shape)
    for g, (begin, end) in enumerate(bounded(sizes, len(lhs))):
        rows = slice(begin, end)
        y[rows], of_lhs[rows] = lhs[rows] @ rhs[g], dy[rows] @ rhs[g].T
        of_rhs[g] = lhs[rows].T @ dy[rows]
    return y, of_lhs, of_rhs


def step_of(function, *args):
    """The result of `function` of all arguments but the last, the cotangent, and the gradients."""
    *primals, dy = args
    y, pull = jax.vjp(function, *primals)
    return y, *pull(dy.astype(y.dtype))


def swiglu(h):
    gate, up = np.split(h, 2, axis=-1)
    return gate / (1 + np.exp(-gate)) * up


def routed(seed, tokens, top_k, experts):
    """Experts of tokens, some of them none, and weights."""
    random = np.random.default_rng(seed)
    idx = random.integers(-1, experts + 1, (tokens, top_k))
    return jnp.asarray(idx, jnp.int32), jnp.asarray(random.random((tokens, top_k)) + 0.1, jnp.float32)


def moe_mlp(x, idx, weights, w13, w2, dtype=jnp.float32):
    """In plain JAX, token by token of each expert, without any sorting, all in `dtype`."""
    x, weights, w13, w2 = (jnp.asarray(v, dtype) for v in (x, weights, w13, w2))
    out = jnp.zeros(x.shape, dtype)
    for g in range(w13.shape[0]):
        gate, up = jnp.split(x @ w13[g].T, 2, axis=1)
        share = jnp.sum(jnp.where(idx == g, weights, 0), axis=1, keepdims=True)
        out += share * ((jax.nn.silu(gate) * up) @ w2[g].T)
    return out
