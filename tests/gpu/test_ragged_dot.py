"""ragged_dot on the GPU, forward and back, against float64."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import ragged_dot
from tests import moe
from tests.gpu.native import native
from tests.helpers import assert_close, relative_error
from tests.linear import ABOVE

pytestmark = pytest.mark.gpu

BF16, F32 = jnp.bfloat16, jnp.float32
SIZES = {
    "mixed": (100, 0, 230, 7, 300, 1),
    "rest": (1, 0, 230, 77, 9, 0),
    "empty": (0,) * 6,
    "one": (0, 0, 700, 0, 0, 0),
    "beyond": (400, 100, 500, 600, 700, 2**31 - 1),
    "negative": (100, -5, 230, -(2**31), 9, -1),
}
M, G = 700, 6


def arrays(dtype, k, n):
    return [jnp.asarray(moe.normal(i, *s), dtype) for i, s in enumerate(((M, k), (G, k, n), (M, n)))]


def step(lhs, rhs, sizes, dy, **options):
    return moe.step_of(lambda a, b: ragged_dot(a, b, sizes, **options), lhs, rhs, dy)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(
    "recipe, dtype, k, n", [(None, BF16, 264, 392), (moe.FP8, BF16, 512, 384), (moe.FP8, F32, 72, 40)]
)
def test_against_float64(name, recipe, dtype, k, n):
    lhs, rhs, dy = arrays(dtype, k, n)
    sizes = jnp.asarray(SIZES[name], jnp.int32)
    got = native(functools.partial(step, recipe=recipe), lhs, rhs, sizes, dy, calls=None)(lhs, rhs, sizes, dy)
    for i, (g, wanted) in enumerate(zip(got, moe.ragged_dot(lhs, rhs, SIZES[name], dy), strict=True)):
        if not wanted.any():
            assert not np.asarray(g).any()
        elif recipe is None:
            assert_close(g, wanted)
        else:
            assert relative_error(g, wanted) < (ABOVE if i < 2 else 5e-3)
