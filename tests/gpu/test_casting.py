"""The casts to FP8, to the bit what their reference computes on a CPU. Results are written over NaN."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import fp8_gemm_nt, per_block_cast_to_fp8, per_channel_cast_to_fp8, per_token_cast_to_fp8
from tests.gpu.casts import BLOCKS, casts, check, spoiled, values
from tests.gpu.native import hlo, native
from tests.gpu.problems import same_bits

pytestmark = pytest.mark.gpu

# Ends inside tiles, scale blocks, and memory accesses of every width.
SIZES = ((1, 1), (1, 7168), (3, 7), (5, 128), (33, 136), (77, 1000), (128, 256), (130, 36), (257, 1002), (640, 400))
OTHER: tuple[dict[str, Any], ...] = ({"straight": (1, 32)}, {"straight": (1, 64)}, {"turned": (128, 128)})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("shape", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_bits(shape, dtype):
    check(values(shape, dtype))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_bits_of_other_blocks(dtype):
    check(values((257, 1000), dtype), OTHER)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_values_that_are_not_finite(dtype):
    check(spoiled(values((300, 600), dtype)), BLOCKS + OTHER)


def test_quotients_are_rounded_as_by_division():
    """Every mantissa of bfloat16 over every other, down to where FP8 ends; and many of float32."""
    mantissas, powers = 1 + np.arange(128) / 128, 2.0 ** np.arange(0, -18, -1)
    rows = [np.minimum(a, np.append(mantissas[1:] * p, a)) for a in mantissas for p in powers]
    check(np.asarray(rows).astype(jnp.bfloat16), [{"straight": (1, 128)}])
    check(np.random.default_rng(2).standard_normal((4096, 1024)).astype(np.float32), [{"straight": (1, 128)}])


@pytest.mark.parametrize("shape", [(0, 128), (3, 0), (0, 0)])
def test_empty_matrices_launch_nothing(shape):
    x = jnp.zeros(shape, jnp.bfloat16)
    got = native(lambda x: casts(x, BLOCKS), x, calls=0)(x)
    assert got[0][0].data.shape == shape


def test_offsets_beyond_32_bits():
    """The last rows of a matrix of more than 2^32 elements."""
    rows, columns = 2**21 + 8, 2048

    @jax.jit
    def ends():
        x = jnp.zeros((rows, columns), jnp.bfloat16).at[-1].set(3.5).at[-8].set(7)
        data, scale = per_token_cast_to_fp8(x)
        return data[-8:], scale[-8:], jnp.any(data[:-8].view(jnp.uint8)), jnp.max(scale[:-8])

    data, scale, others, largest = ends()
    assert (np.asarray(data).astype(np.float32) == np.array([448, 0, 0, 0, 0, 0, 0, 448])[:, None]).all()
    assert (np.asarray(scale[-1]) == np.float32(3.5) * np.float32(1 / 448)).all()
    assert not others and largest == np.float32(1e-4) * np.float32(1 / 448)


@pytest.mark.parametrize("cast", [per_token_cast_to_fp8, per_block_cast_to_fp8, per_channel_cast_to_fp8])
def test_vmap_is_one_launch(cast):
    x = np.stack([values((256, 384), jnp.bfloat16, seed) for seed in range(3)])
    given = jnp.asarray(x)
    got = native(jax.vmap(cast), given)(given)
    cpu = jax.devices("cpu")[0]
    for i in range(3):
        for g, w in zip(got, cast(jax.device_put(x[i], cpu)), strict=True):
            assert same_bits(g[i], w)


def test_nothing_between_cast_and_gemm():
    x, w = jnp.asarray(values((256, 1024), jnp.bfloat16)), jnp.asarray(values((384, 1024), jnp.bfloat16, 1))

    def function(x, w):
        return fp8_gemm_nt(per_token_cast_to_fp8(x), per_block_cast_to_fp8(w))

    compiled = jax.jit(function).lower(x, w).compile()
    assert " copy(" not in hlo(compiled) and "transpose(" not in hlo(compiled) and "fusion(" not in hlo(compiled)
