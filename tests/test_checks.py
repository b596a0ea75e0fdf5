"""Errors at tracing name the argument, what it must be, and what it is: static arguments of all public functions."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_deepgemm
from jax_deepgemm import checks, inventory

SEVERAL = jnp.ones(3)
PAIRS = ((SEVERAL, SEVERAL), (SEVERAL, SEVERAL))
NO_NUMBERS = [SEVERAL, np.ones(3), 2.5, True, "128", -1, 2**70]
NO_DTYPES = [SEVERAL, np.float32(1), "wide", None, 4, PAIRS, object]
NO_FLAGS = [SEVERAL, [True], "yes", None, 2]
WRONG: dict[str, list[Any]] = {
    "recipe": [SEVERAL, PAIRS, np.int64(128), "1D1D", ((1, 128), (1, 64)), [[1, 128], [1, 128]]],
    "block": [SEVERAL, PAIRS[0], 128, [1, 128], (1, 0), (1, True), (1, 2**40)],
    "gran_k": NO_NUMBERS,
    "expected_m": [*NO_NUMBERS, None],
    "num_experts": [*NO_NUMBERS, None],
    "head_splits": [SEVERAL, PAIRS, (64, 16), (64, 16, 7), "64", None],
    "out_dtype": NO_DTYPES,
    "dtype": NO_DTYPES,
    "use_ue8m0": NO_FLAGS,
    "use_psum_layout": NO_FLAGS,
    "config": [SEVERAL, "128x128", 5],
    "out_sharding": [SEVERAL, "x", (), {}],
    "dimension_numbers": [None],
}
FREE = {"fp8_linear": {"out_dtype": None}}  # what may be None there


def zeros(operands: Any) -> Any:
    return jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), operands)


@pytest.mark.parametrize("name", inventory.PROBLEMS)
def test_static_arguments(name):
    problem, function = inventory.PROBLEMS[name], getattr(jax_deepgemm, name.split()[0])
    signature = inspect.signature(function)
    given = signature.bind(*zeros(problem.operands), **problem.options).arguments
    for argument in signature.parameters.keys() & WRONG:
        for wrong in WRONG[argument]:
            if wrong is None and argument in FREE.get(name, {}):
                continue
            with pytest.raises((TypeError, ValueError)) as caught:
                jax.eval_shape(functools.partial(function, **{**given, argument: wrong}))
            assert str(caught.value).startswith(f"`{argument}` must be "), (argument, wrong)


X, IDX = jnp.zeros((4, 128), jnp.bfloat16), jnp.zeros((4, 2), jnp.int32)
FP8, RAGGED = jax_deepgemm.per_token_cast_to_fp8(X), jnp.zeros((2, 128, 128), jnp.bfloat16)
EITHER = "((1, 128), (128, 128)) or ((1, 128), (1, 128)) or None"


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: jax.jit(lambda recipe: jax_deepgemm.fp8_gemm_nt(FP8, FP8, recipe=recipe))(((1, 128), (1, 128))),
            ValueError,
            f"`recipe` must be {EITHER}, got ((int32[], int32[]), (int32[], int32[]))",
        ),
        (
            lambda: jax_deepgemm.per_token_cast_to_fp4(X, gran_k=jnp.arange(3)),  # type: ignore[arg-type]
            ValueError,
            "`gran_k` must be 32 or 128, got int32[3]",
        ),
        (
            lambda: jax_deepgemm.cast_back_from_fp8(FP8, dtype="bfloat17"),
            TypeError,
            "`dtype` must be a dtype of numbers, got 'bfloat17'",
        ),
        (
            lambda: jax_deepgemm.moe_mlp(X, IDX, IDX.astype(jnp.float32), RAGGED, (RAGGED, RAGGED)),
            TypeError,
            "`w2` must be an array, as `w13` is, got tuple",
        ),
        (
            lambda: jax_deepgemm.ragged_dot(X, RAGGED, jnp.ones(2), recipe=((1, 128), (128, 128))),
            TypeError,
            "`group_sizes` must be integers of shape (G), got float32[2]",
        ),
        (
            lambda: jax_deepgemm.set_cache_folder(b"/tmp"),  # type: ignore[arg-type]
            TypeError,
            "`folder` must be a path or None, got b'/tmp'",
        ),
        (
            lambda: jax_deepgemm.set_pdl("off"),  # type: ignore[arg-type]
            TypeError,
            "`enabled` must be True or False, got 'off'",
        ),
        (
            lambda: jax_deepgemm.Target("sm_90a", 132, "228 KB"),  # type: ignore[arg-type]
            TypeError,
            "`smem_bytes` must be a positive integer, got '228 KB'",
        ),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_what_is_taken_for_static():
    assert checks.integer("n", np.int8(3), "a number", 0) == 3
    assert checks.flag("f", np.bool_(True)) is True and checks.flag("f", 0) is False
    assert checks.one_of("r", (np.int64(1), 2), [(1, 2)], "(1, 2)") == (1, 2)
    assert checks.dtype("d", "bfloat16", [jnp.bfloat16], "bfloat16") == checks.numeric_dtype("d", jnp.bfloat16)
