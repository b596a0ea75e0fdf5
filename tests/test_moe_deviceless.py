"""What XLA makes of mixtures of experts for GPUs that are not there."""

from __future__ import annotations

import functools
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp

from jax_deepgemm import moe_mlp, moe_permute, moe_unpermute, ragged_dot
from tests import moe
from tests.deviceless import LAUNCH, computations, moves, opcode, sharding

BF16, F32, FP8 = jnp.bfloat16, jnp.float32, jnp.float8_e4m3fn
T, K, H, INNER, G = 256, 8, 1024, 512, 4


def aval(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def compiled(function: Any, *args: Any) -> str:
    on = sharding("h100")
    text = jax.jit(function, in_shardings=on, out_shardings=on).lower(*args).compile().as_text()
    assert text is not None
    return text


def kernels(program: str) -> Counter[str]:
    """How often each kernel of ours is launched."""
    calls = [line for line in program.splitlines() if LAUNCH in line]
    return Counter(re.findall(r'kernel = "(\w+)"', "\n".join(calls)))


def work(program: str) -> set[str]:
    return {opcode(i) for i in computations(program)["ENTRY"]} - {"parameter", "bitcast", "get-tuple-element", "tuple"}


X, IDX, WEIGHTS = aval(BF16, T, H), aval(jnp.int32, T, K), aval(F32, T, K)
QUANTISED = (
    (aval(FP8, G, 2 * INNER, H), aval(F32, G, 2 * INNER // 128, H // 128)),
    (aval(FP8, G, H, INNER), aval(F32, G, H // 128, INNER // 128)),
)


def test_permuting_there_and_back_is_a_kernel_each() -> None:
    def function(x: jax.Array, idx: jax.Array, weights: jax.Array) -> jax.Array:
        y, permutation = moe_permute(x, idx, G)
        return moe_unpermute(y, permutation, weights)

    program = compiled(function, X, IDX, WEIGHTS)
    assert kernels(program) == {"sm90_moe_sort": 1, "sm90_moe_permute": 1, "sm90_moe_unpermute": 1}
    assert work(program) == {"custom-call"}


def test_gradients_of_permuting_are_a_kernel_each() -> None:
    def function(x: jax.Array, idx: jax.Array, weights: jax.Array, dy: jax.Array) -> Any:
        def block(x: jax.Array, weights: jax.Array) -> jax.Array:
            y, permutation = moe_permute(x, idx, G)
            return moe_unpermute(y, permutation, weights)

        return moe.step_of(block, x, weights, dy)

    program = compiled(function, X, IDX, WEIGHTS, X)
    assert kernels(program) == {
        "sm90_moe_sort": 1,
        "sm90_moe_permute": 2,
        "sm90_moe_unpermute": 2,
        "sm90_moe_row_dots": 1,
    }
    assert work(program) == {"custom-call"}


def test_fp8_block_is_five_kernels_and_nothing_between() -> None:
    program = compiled(moe_mlp, X, IDX, WEIGHTS, *QUANTISED)
    assert kernels(program) == {
        "sm90_moe_sort": 1,
        "sm90_moe_permute_fp8": 1,
        "sm90_m_grouped_fp8_gemm_swiglu": 1,
        "sm90_m_grouped_fp8_gemm_1d2d": 1,
        "sm90_moe_unpermute": 1,
    }
    assert work(program) == {"custom-call"}


def test_fp8_block_of_few_tokens_is_six_kernels() -> None:
    program = compiled(moe_mlp, aval(BF16, 32, H), aval(jnp.int32, 32, K), aval(F32, 32, K), *QUANTISED)
    found = kernels(program)
    assert found["sm90_m_grouped_fp8_gemm_1d2d"] == 2 and found["sm90_cast_fp8"] == 1 and found.total() == 6
    assert work(program) == {"custom-call"}


def test_fp8_ragged_dot_copies_nothing() -> None:
    function = functools.partial(ragged_dot, recipe=moe.FP8)
    args = aval(BF16, 512, H), aval(BF16, G, H, INNER), aval(jnp.int32, G)
    program = compiled(function, *args)
    assert kernels(program)["sm90_cast_fp8"] == 2
    assert moves(program) == []


def test_fp8_training_copies_nothing() -> None:
    def step(lhs: jax.Array, rhs: jax.Array, sizes: jax.Array, dy: jax.Array) -> Any:
        return moe.step_of(lambda a, b: ragged_dot(a, b, sizes, recipe=moe.FP8), lhs, rhs, dy)

    args = aval(BF16, 512, H), aval(BF16, G, H, INNER), aval(jnp.int32, G), aval(BF16, 512, INNER)
    program = compiled(step, *args)
    assert kernels(program)["sm90_cast_fp8"] == 3
    assert moves(program) == []
