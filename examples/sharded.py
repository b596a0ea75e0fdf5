"""A two-layer MLP in tensor parallelism: the first product gathers nothing, the second sums partial results.

On a machine with one device, run it as
XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu python examples/sharded.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jax_deepgemm as dg

devices = jax.device_count()
tokens, model, hidden = 64, 512, 128 * devices  # each device has whole blocks of 128
mesh = jax.make_mesh((devices,), ("model",))
keys = jax.random.split(jax.random.key(0), 3)


def weights(key: jax.Array, shape: tuple[int, int], spec: P) -> dg.Quantized:
    w = jax.random.normal(key, shape, jnp.bfloat16) / shape[1] ** 0.5
    return jax.device_put(dg.per_block_cast_to_fp8(w), NamedSharding(mesh, spec))


x = jax.device_put(jax.random.normal(keys[0], (tokens, model), jnp.bfloat16), NamedSharding(mesh, P()))
up = weights(keys[1], (hidden, model), P("model", None))  # N is sharded
down = weights(keys[2], (model, hidden), P(None, "model"))  # K is sharded


@jax.jit
def mlp(x: jax.Array) -> jax.Array:
    h = jax.nn.silu(dg.fp8_gemm_nt(dg.per_token_cast_to_fp8(x), up))
    return dg.fp8_gemm_nt(dg.per_token_cast_to_fp8(h), down)


program = mlp.lower(x).compile().as_text()
for collective in ("all-gather", "all-reduce"):
    print(f"{collective}: {collective in program}")
assert "all-gather" not in program
print(f"{mlp(x).shape} on {devices} devices, sharded {mlp(x).sharding.spec}")
