"""Launches of batches of GEMMs, and what XLA makes of them for GPUs that are not there."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import H100, bf16_gemm_nt, fp8_gemm_nt, fp8_linear
from jax_deepgemm.config import Config
from jax_deepgemm.launch import Pointer, TensorMap
from jax_deepgemm.ops import batched_bf16_gemm, batched_fp8_gemm
from tests.bf16 import GEMMS
from tests.deviceless import LAUNCH, moves
from tests.helpers import BLOCKS, ROWS
from tests.kernels import check_resources
from tests.linear import step_of
from tests.test_deviceless import compiled

F32 = jnp.float32


def avals(layout, batch=3, m=64, n=256, k=128):
    shapes = (m, k) if layout[0] == "n" else (k, m), (n, k) if layout[1] == "t" else (k, n)
    return [jax.ShapeDtypeStruct((batch, *s), jnp.bfloat16) for s in shapes]


def fp8_avals(recipe, batch=3, m=64, n=256, k=256):
    pairs = ((m, k), (m, k // 128)), ((n, k), (n // recipe[1][0], k // 128))
    kinds = jnp.float8_e4m3fn, F32
    return [tuple(jax.ShapeDtypeStruct((batch, *s), d) for s, d in zip(shapes, kinds, strict=True)) for shapes in pairs]


def test_launches():
    """Every buffer is used, and the groups are what they are to be."""
    kinds = {"nt": "MaskedGroups", "nn": "PsumGroups", "tn": None, "tt": "MaskedGroups"}
    out = [jax.ShapeDtypeStruct((3, 64, 256), F32)]
    for layout, recipe in [*itertools.product(kinds, [None]), *itertools.product([None], (BLOCKS, ROWS))]:
        if recipe is None:
            how, operands = batched_bf16_gemm.BATCHED, avals(layout)
            params = {"layout": layout, "out_dtype": jnp.dtype(F32), "config": None}
        else:
            how, operands = batched_fp8_gemm.BATCHED, jax.tree.leaves(fp8_avals(recipe))
            params = {"recipe": recipe, "out_dtype": jnp.dtype(F32), "config": None}
        launch = how.plan(operands, out, params, H100, Config())
        used = {a.buffer for a in launch.arguments if isinstance(a, (Pointer, TensorMap))}
        assert used == set(range(len(operands) + 2))
        said = dict(launch.kernel.template)
        by_k = layout == "tn" or recipe == ROWS
        assert said.get("Groups") == (None if by_k else kinds.get(layout, "MaskedGroups"))
        ((position, groups),) = how.inserted(operands, params).items()
        assert position == len(operands)
        many = 128 if layout == "tn" else 256 if by_k else 64
        assert groups.tolist() == ([64, 128, 192] if layout == "nn" else [many, many, many + 1])
        # What `tune` finds is of the grouped kernel.
        second = how.ranked(operands, out, params, H100, Config())[1]
        tuned = how.plan(operands, out, params | {"config": second}, H100, Config())
        assert type(second) in how.configs and tuned.kernel != launch.kernel


def test_kernels_compile_without_spills():
    """Of the one kind of groups that no other operation has so: their ends, and how many rows are expected."""

    def threads_and_pool(kernel):
        return int(dict(kernel.template)["kMathGroups"]) * 128 + 128, 0

    params = {"layout": "nn", "out_dtype": jnp.dtype(jnp.bfloat16), "config": None}
    kernels = []
    for m in (16, 200, 2048):
        operands, out = avals("nn", 8, m, 1024, 512), [jax.ShapeDtypeStruct((8, m, 1024), jnp.bfloat16)]
        kernels.append(batched_bf16_gemm.BATCHED.plan(operands, out, params, H100, Config()).kernel)
    check_resources(kernels, threads_and_pool)


@pytest.mark.parametrize("layout", GEMMS)
def test_one_launch_and_nothing_moves(layout):
    program = compiled(jax.vmap(GEMMS[layout]), *avals(layout))
    assert program.count(LAUNCH) == 1 and "while" not in program
    assert len(moves(program)) == (layout == "tt")  # A is turned


def test_three_launches_forward_and_backward():
    """Whichever comes first, vmap or the gradient."""
    dy = jax.ShapeDtypeStruct((3, 64, 256), jnp.bfloat16)
    batched = jax.vmap(bf16_gemm_nt)
    for step in (functools.partial(step_of, batched), jax.vmap(functools.partial(step_of, bf16_gemm_nt))):
        program = compiled(step, *avals("nt"), dy)
        assert program.count(LAUNCH) == 3 and "while" not in program
        assert moves(program) == []


@pytest.mark.parametrize(
    "recipe, orders",
    [
        (BLOCKS, ((0, 1, 2), (2, 0, 1), (0, 1, 2), (0, 1, 2))),
        (ROWS, ((1, 0, 2), (0, 2, 1)) * 2),  # groups are of K
    ],
    ids=["blocks", "rows"],
)
def test_quantised_operands_are_taken_as_casts_write_them(recipe, orders):
    """orders: the batch, the rows and K from major to minor, of data and scale of A and of B."""

    def function(*leaves):
        a, a_scale, b, b_scale = (x.transpose(np.argsort(o)) for x, o in zip(leaves, orders, strict=True))
        return jax.vmap(lambda a, b: fp8_gemm_nt(a, b, recipe=recipe))((a, a_scale), (b, b_scale))

    lying = zip(jax.tree.leaves(fp8_avals(recipe)), orders, strict=True)
    program = compiled(function, *(jax.ShapeDtypeStruct([x.shape[i] for i in o], x.dtype) for x, o in lying))
    assert program.count(LAUNCH) == 1 and "while" not in program
    assert moves(program) == []


def test_a_step_of_linear_layers_is_six_launches():
    """Three casts and three products, between which nothing moves."""
    x, w, dy = (jax.ShapeDtypeStruct((3, *s), jnp.bfloat16) for s in ((256, 512), (1024, 512), (256, 1024)))
    program = compiled(jax.vmap(functools.partial(step_of, fp8_linear)), x, w, dy)
    assert program.count(LAUNCH) == 6 and "while" not in program
    assert moves(program) == []


def test_a_donated_c_becomes_the_result():
    """Gradients of weights are added in place."""
    a, b = avals("tn")
    c = jax.ShapeDtypeStruct((3, 64, 256), F32)
    program = compiled(jax.vmap(lambda a, b, c: GEMMS["tn"](a, b, c=c, out_dtype=F32)), a, b, c, donate=[2])
    assert program.count(LAUNCH) == 1 and moves(program) == []
