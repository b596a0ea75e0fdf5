"""vmap of GEMMs whose operands are all batched: one launch, against float64. Results go over NaN."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import fp8_gemm_nt, fp8_linear, per_block_cast_to_fp8, set_num_sms
from tests import linear
from tests.bf16 import GEMMS, matrices, oracle
from tests.gpu.native import native
from tests.helpers import BLOCKS, RECIPES, assert_close, operands
from tests.helpers import oracle as fp8_oracle
from tests.test_transforms import stack

pytestmark = pytest.mark.gpu

BF16, F32 = jnp.bfloat16, jnp.float32
# Batch, M, N, K: fewer rows than a tile has, many small ones, tiles that end inside, many tiles.
SIZES = [(2, 8, 8, 16), (3, 80, 264, 328), (130, 16, 136, 80), (5, 304, 616, 1040), (4, 1024, 512, 144)]


def given(layout, batch, m, n, k):
    pairs = [matrices(layout, m, n, k, seed=s) for s in range(batch)]
    wanted = np.stack([oracle(layout, *p) for p in pairs])
    a, b = (stack(x) for x in zip(*pairs, strict=True))
    return a, b, jax.random.normal(jax.random.key(0), wanted.shape), wanted


@pytest.mark.parametrize("layout", GEMMS)
@pytest.mark.parametrize("batch, m, n, k", SIZES)
def test_bf16(layout, batch, m, n, k):
    a, b, c, wanted = given(layout, batch, m, n, k)

    def three_ways(a, b, c):
        gemm = GEMMS[layout]
        return gemm(a, b), gemm(a, b, out_dtype=F32), gemm(a, b, c=c, out_dtype=F32)

    # Only the k-grouped kernel, that of tn, adds C itself. Elsewhere XLA does, to the product in FP32 that is there.
    calls = 3 if layout == "tn" else 2
    narrow, wide, added = native(jax.vmap(three_ways), a, b, c, calls=calls)(a, b, c)
    assert_close(narrow, wanted)
    assert_close(wide, wanted)
    assert_close(added, wanted + np.asarray(c, np.float64))


@RECIPES
@pytest.mark.parametrize("batch, m, n, k", [(2, 1, 8, 128), (3, 77, 264, 384), (130, 5, 136, 128), (4, 1024, 512, 256)])
def test_fp8(recipe, batch, m, n, k):
    pairs = [operands(m, n, k, seed=s, recipe=recipe) for s in range(batch)]
    wanted = np.stack([fp8_oracle(*p, recipe=recipe) for p in pairs])
    a, b = (stack(x) for x in zip(*pairs, strict=True))
    c = jax.random.normal(jax.random.key(0), wanted.shape)

    def three_ways(a, b, c):
        gemm = functools.partial(fp8_gemm_nt, recipe=recipe)
        return gemm(a, b), gemm(a, b, out_dtype=F32), gemm(a, b, c=c, out_dtype=F32)

    for num_sms in (132, 3):
        with set_num_sms(num_sms):
            run = native(jax.vmap(three_ways), a, b, c, calls=2 if recipe == BLOCKS else 3)
        narrow, wide, added = run(a, b, c)
        assert_close(narrow, wanted)
        assert_close(wide, wanted)
        assert_close(added, wanted + np.asarray(c, np.float64))


def test_nan_stays_in_its_problem():
    a, b, _, wanted = given("nt", 3, 80, 264, 328)
    for layout in ("nt", "nn", "tn"):
        x = a if layout[0] == "n" else a.swapaxes(1, 2)
        y = b if layout[1] == "t" else b.swapaxes(1, 2)
        d = native(jax.vmap(GEMMS[layout]), x, y)(x.at[1].set(jnp.nan), y)
        assert np.isnan(np.asarray(d[1], np.float32)).all()
        assert_close(d[::2], wanted[::2])


@pytest.mark.parametrize("layout", ["nt", "nn", "tn"])
def test_gradients(layout):
    """Three launches, whichever comes first, vmap or the gradient."""
    a, b, c, _ = given(layout, 3, 80, 264, 328)
    dy = c.astype(BF16)
    one = functools.partial(linear.step_of, GEMMS[layout])
    on_cpu = jax.device_put((a, b, dy), jax.devices("cpu")[0])
    wanted = [one(*(x[i] for x in on_cpu)) for i in range(3)]
    for step in (functools.partial(linear.step_of, jax.vmap(GEMMS[layout])), jax.vmap(one)):
        for got, *each in zip(native(step, a, b, dy, calls=3)(a, b, dy), *wanted, strict=True):
            assert_close(got, np.stack([np.asarray(x) for x in each]).astype(np.float64))


def test_a_step_of_linear_layers():
    """Three casts, three products."""
    sets = [linear.arrays(256, 384, 512, (BF16,) * 3) for _ in range(3)]
    x, w, dy = (jnp.stack([2.0**i * v[::-1] if i else v for i, v in enumerate(vs)]) for vs in zip(*sets, strict=True))
    step = jax.vmap(functools.partial(linear.step_of, fp8_linear))
    got = native(step, x, w, dy, calls=6)(x, w, dy)
    each = itertools.starmap(linear.emulated, zip(x, w, dy, strict=True))
    linear.check(got, [np.stack(values) for values in zip(*each, strict=True)])


@pytest.mark.parametrize("n", [256, 200])
def test_casts_of_a_batch_of_weights(n):
    w = jax.random.normal(jax.random.key(1), (3, n, 272))
    got = native(jax.vmap(per_block_cast_to_fp8), w)(w)
    for i in range(3):
        for mine, alone in zip(got, per_block_cast_to_fp8(w[i]), strict=True):
            np.testing.assert_array_equal(np.asarray(mine[i]), np.asarray(alone))
