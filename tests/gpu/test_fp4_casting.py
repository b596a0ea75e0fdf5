"""The cast to FP4, to the bit what its reference computes on a CPU. Results are written over other values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import (
    cast_back_from_fp4,
    fp8_fp4_gemm_nt,
    per_token_cast_to_fp4,
    per_token_cast_to_fp8,
)
from tests.fp4 import TIES
from tests.gpu.casts import casts_to_fp4, check_fp4, spoiled, values
from tests.gpu.native import hlo, launches, native
from tests.gpu.problems import same_bits

pytestmark = pytest.mark.gpu

# Ends inside tiles, scale blocks, and memory accesses of every width.
SIZES = ((1, 2), (1, 7168), (3, 30), (5, 32), (33, 160), (77, 416), (130, 1000), (128, 256), (257, 1002), (640, 516))
DTYPES = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])


@DTYPES
@pytest.mark.parametrize("shape", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_bits(shape, dtype):
    check_fp4(values(shape, dtype))


@DTYPES
def test_values_that_are_not_finite(dtype):
    check_fp4(spoiled(values((300, 600), dtype)))


@DTYPES
def test_ties_are_rounded_to_even(dtype):
    x = np.resize(TIES, (20, 640)).astype(dtype)
    check_fp4(x)
    data, scale = per_token_cast_to_fp4(jnp.asarray(x))
    assert (np.asarray(scale) == 1).all()
    wanted = [6, 0, 1, 1, 2, 2, 4, 4, 0, -1, -1, -4]
    np.testing.assert_array_equal(np.asarray(data).astype(np.float32)[0, : len(wanted)], wanted)


def test_every_mantissa_times_every_other():
    """Products and reciprocals are rounded as on a CPU: of bfloat16 all, down to where FP4 ends; many of float32."""
    mantissas, powers = 1 + np.arange(128) / 128, 2.0 ** np.arange(0, -6, -1)
    rows = [np.minimum(a, np.append(mantissas[1:] * p, a)) for a in mantissas for p in powers]
    check_fp4(np.asarray(rows).astype(jnp.bfloat16))
    check_fp4(np.random.default_rng(2).standard_normal((4096, 1024)).astype(np.float32))


@pytest.mark.parametrize("shape", [(0, 128), (3, 0), (0, 0)])
def test_empty_matrices_launch_nothing(shape):
    x = jnp.zeros(shape, jnp.bfloat16)
    got = native(casts_to_fp4, x, calls=0)(x)
    assert got[0].data.shape == shape


def test_an_odd_k_runs_by_reference():
    """Where rows share bytes. XLA may round a reciprocal in another way."""
    x = values((40, 33), jnp.float32)
    pair = native(per_token_cast_to_fp4, x, calls=0)(jnp.asarray(x))
    with jax.default_device(jax.devices("cpu")[0]):
        wanted = per_token_cast_to_fp4(jnp.asarray(x))
    np.testing.assert_allclose(np.asarray(pair.scale), np.asarray(wanted.scale), rtol=2**-22)
    assert np.mean(np.asarray(pair.data) != np.asarray(wanted.data)) < 1e-2


@pytest.mark.parametrize("gran_k", [32, 128])
@pytest.mark.parametrize("use_ue8m0", [False, True])
def test_there_and_back_in_one_program(use_ue8m0, gran_k):
    """XLA must not leave out both."""
    x = values((40, 200), jnp.float32)

    def there_and_back(x):
        return cast_back_from_fp4(per_token_cast_to_fp4(x, use_ue8m0=use_ue8m0, gran_k=gran_k), gran_k=gran_k)

    got = native(there_and_back, x)(jnp.asarray(x))
    with jax.default_device(jax.devices("cpu")[0]):
        wanted = there_and_back(jnp.asarray(x))
    np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))


def test_offsets_beyond_32_bits():
    """The last rows of a matrix of more than 2^32 elements."""
    rows, columns = 2**21 + 8, 2048

    @jax.jit
    def ends():
        x = jnp.zeros((rows, columns), jnp.bfloat16).at[-1].set(3.5).at[-8].set(7)
        data, scale = per_token_cast_to_fp4(x)
        wide = data.astype(jnp.float32)
        return wide[-8:], scale[-8:], jnp.any(wide[:-8]), jnp.max(scale[:-8])

    wide, scale, others, largest = ends()
    assert (np.asarray(wide) == np.array([6, 0, 0, 0, 0, 0, 0, 6])[:, None]).all()
    assert (np.asarray(scale[-1]) == np.float32(3.5) * np.float32(1 / 6)).all()
    assert not others and largest == np.float32(1e-4) * np.float32(1 / 6)


def test_vmap_is_one_launch():
    x = np.stack([values((77, 416), jnp.bfloat16, seed) for seed in range(3)])
    got = native(jax.vmap(per_token_cast_to_fp4), x)(jnp.asarray(x))
    for i in range(3):
        for mine, wanted in zip(got, per_token_cast_to_fp4(jax.device_put(x[i], jax.devices("cpu")[0])), strict=True):
            assert same_bits(np.asarray(mine)[i], wanted)


def test_what_a_gemm_makes_of_it_in_one_program():
    """As of the pair that a CPU makes, with nothing between the kernels."""
    x, w = values((256, 1024), jnp.bfloat16), values((384, 1024), jnp.bfloat16, 1)
    x, w = (np.clip(v.astype(np.float32), -1e3, 1e3).astype(jnp.bfloat16) for v in (x, w))

    def function(x, w):
        return fp8_fp4_gemm_nt(per_token_cast_to_fp8(x), per_token_cast_to_fp4(w, use_ue8m0=True))

    compiled = jax.jit(function).lower(x, w).compile()
    assert launches(compiled) == 3
    assert " copy(" not in hlo(compiled) and "transpose(" not in hlo(compiled) and "fusion(" not in hlo(compiled)
    cpu = jax.devices("cpu")[0]
    a = per_token_cast_to_fp8(jax.device_put(x, cpu))
    b = per_token_cast_to_fp4(jax.device_put(w, cpu), use_ue8m0=True)
    a, b = jax.device_put((a, b), jax.devices()[0])
    assert same_bits(compiled(jnp.asarray(x), jnp.asarray(w)), fp8_fp4_gemm_nt(a, b))
