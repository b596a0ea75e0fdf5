"""moe_permute and moe_unpermute on the CPU: values, derivatives, transformations, errors."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from jax_deepgemm import MoePermutation, moe_permute, moe_unpermute, per_token_cast_to_fp8
from jax_deepgemm.ops.moe_rows import permute_rows_to_fp8, row_dots
from tests import moe
from tests.helpers import assert_close

CASES = [(1, 1, 1, 1), (5, 3, 7, 33), (50, 4, 6, 40), (64, 8, 300, 16), (9, 2, 1, 8)]  # tokens, k, experts, D


def problem(tokens, top_k, experts, d, dtype=jnp.float32):
    idx, weights = moe.routed(tokens, tokens, top_k, experts)
    return jnp.asarray(moe.normal(d, tokens, d), dtype), idx, weights


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_are_sorted_by_expert_and_stable(case):
    x, idx, _ = problem(*case)
    y, permutation = moe_permute(x, idx, case[2])
    flat, rows = np.asarray(idx).ravel(), np.asarray(permutation.rows).ravel()
    known = (flat >= 0) & (flat < case[2])
    np.testing.assert_array_equal(rows >= 0, known)
    places = np.where(known, rows, ~rows)
    order = np.argsort(np.where(known, flat, case[2]), kind="stable")
    np.testing.assert_array_equal(places[order], np.arange(flat.size))
    np.testing.assert_array_equal(permutation.group_sizes, np.bincount(flat[known], minlength=case[2]))
    np.testing.assert_array_equal(permutation.group_ends, np.cumsum(permutation.group_sizes))
    wanted = np.where(known[order, None], np.asarray(x)[order // case[1]], 0)
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_there_and_back(case, dtype, weighted):
    x, idx, weights = problem(*case, dtype=dtype)
    y, permutation = moe_permute(x, idx, case[2])
    back = moe_unpermute(y, permutation, weights if weighted else None)
    assert back.dtype == dtype
    share = np.where((np.asarray(idx) >= 0) & (np.asarray(idx) < case[2]), np.asarray(weights) if weighted else 1, 0)
    wanted = share.sum(1, keepdims=True) * np.asarray(x).astype(np.float64)
    np.testing.assert_allclose(np.asarray(back).astype(np.float64), wanted, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("tokens, top_k", [(3, 0), (0, 2)])
def test_gradients_without_copies_in_x64(tokens, top_k):
    x, idx, weights = jnp.ones((tokens, 8)), jnp.zeros((tokens, top_k), jnp.int32), jnp.ones((tokens, top_k))
    with jax.enable_x64(True):
        dx, dw = jax.grad(lambda x, w: moe_unpermute(*moe_permute(x, idx, 2), w).sum(), (0, 1))(x, weights)
    assert (dx.dtype, dw.dtype, dw.shape) == (jnp.float32, jnp.float32, (tokens, top_k))
    assert not dx.any()


def test_sums_are_rounded_once():
    idx = jnp.zeros((1, 256), jnp.int32)
    y, permutation = moe_permute(jnp.ones((1, 8), jnp.bfloat16), idx, 1)
    np.testing.assert_array_equal(moe_unpermute(y, permutation, jnp.full((1, 256), 1 + 2**-7)).astype(np.float32), 258)


def block(x, weights, idx, experts):
    y, permutation = moe_permute(x, idx, experts)
    return moe_unpermute(jnp.tanh(y), permutation, weights)


def test_derivatives_of_both_modes_and_of_second_order():
    x, idx, weights = problem(20, 3, 5, 9)
    function = functools.partial(block, idx=idx, experts=5)
    check_grads(function, (x / 4, weights), order=2, modes=("fwd", "rev"), atol=2e-2, rtol=2e-2)
    rows = moe_permute(x, idx, 5)[1].rows
    y = jax.random.normal(jax.random.key(0), (60, 9))
    check_grads(lambda x, y: row_dots(x, y, rows), (x, y), order=2, modes=("fwd", "rev"), atol=2e-2, rtol=2e-2)


def test_gradients_against_float64():
    x, idx, weights = problem(50, 4, 6, 40)
    dy = jnp.asarray(moe.normal(9, 50, 40), jnp.float32)
    got = moe.step_of(functools.partial(block, idx=idx, experts=6), x, weights, dy)
    x, weights, dy = (np.asarray(v).astype(np.float64) for v in (x, weights, dy))
    known = (np.asarray(idx) >= 0) & (np.asarray(idx) < 6)
    share = np.where(known, weights, 0).sum(1, keepdims=True)
    assert_close(got[0], share * np.tanh(x))
    assert_close(got[1], share * dy / np.cosh(x) ** 2)
    assert_close(got[2], np.where(known, (dy * np.tanh(x)).sum(1, keepdims=True), 0))


@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0)])
def test_vmap(axes):
    x, idx, weights = problem(20, 3, 5, 9)
    many = jnp.stack([x, 2 * x]), jnp.stack([weights, -weights]), jnp.stack([idx, idx[::-1]])
    args = [m if axis == 0 else m[0] for m, axis in zip(many, axes, strict=True)]
    got = jax.jit(jax.vmap(functools.partial(block, experts=5), axes))(*args)
    for i in range(2):
        one = [m[i] if axis == 0 else m for m, axis in zip(args, axes, strict=True)]
        np.testing.assert_allclose(got[i], block(*one, experts=5), rtol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_columns_stay_where_they_are(kind):
    x, idx, weights = problem(20, 3, 5, 64)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    sharded = jax.device_put(x, NamedSharding(mesh, P(None, "x")))
    others = [jax.device_put(v, NamedSharding(mesh, P())) for v in (weights, idx)]
    function = jax.jit(functools.partial(block, experts=5))
    assert "all-gather" not in str(function.lower(sharded, *others).compile().as_text())
    np.testing.assert_allclose(function(sharded, *others), block(x, weights, idx, 5), rtol=1e-6)


def test_tokens_in_shard_map():
    x, idx, weights = problem(64, 3, 5, 16)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        functools.partial(block, experts=5), mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=True
    )
    np.testing.assert_allclose(mapped(x, weights, idx), block(x, weights, idx, 5), rtol=1e-6)
    # Tokens that all devices have: JAX sums their gradient.
    shared = jax.shard_map(
        lambda x, w, i: jax.lax.psum(block(x, w, i, 5), "x"),
        mesh=mesh,
        in_specs=(P(), P("x"), P("x")),
        out_specs=P(),
        check_vma=True,
    )
    some = x[:8]
    got = jax.grad(lambda x: jnp.sum(shared(x, weights, idx) ** 2))(some)
    wanted = jax.grad(
        lambda x: jnp.sum(sum(block(x, weights[i : i + 8], idx[i : i + 8], 5) for i in range(0, 64, 8)) ** 2)
    )(some)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_export_and_jit_carry_the_permutation():
    x, idx, weights = problem(20, 3, 5, 9)
    there = jax.jit(lambda x, i: moe_permute(x, i, 5))
    y, permutation = jax.export.deserialize(jax.export.export(there)(x, idx).serialize()).call(x, idx)
    assert isinstance(permutation, MoePermutation)
    back = jax.export.export(jax.jit(moe_unpermute))(y, permutation, weights)
    got = jax.export.deserialize(back.serialize()).call(y, permutation, weights)
    np.testing.assert_array_equal(got, moe_unpermute(y, permutation, weights))


def test_quantised_copies_are_copies_quantised():
    x, idx, _ = problem(30, 3, 5, 272, dtype=jnp.bfloat16)
    y, permutation = moe_permute(x, idx, 5)
    got, wanted = permute_rows_to_fp8(x, permutation.rows), per_token_cast_to_fp8(y)
    for g, w in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(g).view(np.uint8), np.asarray(w).view(np.uint8))


@pytest.mark.parametrize("tokens, top_k, d, experts", [(0, 2, 8, 3), (4, 0, 8, 3), (4, 2, 0, 3), (4, 2, 8, 0)])
def test_empty(tokens, top_k, d, experts):
    x, idx = jnp.ones((tokens, d)), jnp.zeros((tokens, top_k), jnp.int32)
    y, permutation = moe_permute(x, idx, experts)
    assert y.shape == (tokens * top_k, d) and permutation.group_sizes.shape == (experts,)
    wanted = top_k if experts else 0
    np.testing.assert_array_equal(moe_unpermute(y, permutation), np.full((tokens, d), wanted))


def test_wide_and_narrow_indices():
    x, idx, _ = problem(20, 3, 5, 9)
    for dtype in (np.int8, np.uint8, np.int64, np.uint32):
        given = np.asarray(idx).astype(dtype)
        np.testing.assert_array_equal(moe_permute(x, jnp.asarray(given), 5)[0], moe_permute(x, idx, 5)[0])
    _, permutation = moe_permute(x[:1], jnp.asarray([[2**32 - 1, 2**31]], jnp.uint32), 5)
    assert not permutation.group_sizes.any()


X, IDX = jnp.zeros((4, 8)), jnp.zeros((4, 2), jnp.int32)
BAD: Any = IDX


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: moe_permute(X[0], IDX, 3),
            ValueError,
            "`x` must be bfloat16 or float16 or float32 of shape (T, D), got float32[8]",
        ),
        (
            lambda: moe_permute(X, IDX.astype(jnp.float32), 3),
            TypeError,
            "`topk_idx` must be integers of shape (4, k), got float32[4,2]",
        ),
        (
            lambda: moe_permute(X, IDX[:3], 3),
            ValueError,
            "`topk_idx` must be integers of shape (4, k), got int32[3,2]",
        ),
        (lambda: moe_permute(X, IDX, -1), ValueError, "`num_experts` must be a number of experts, got -1"),
        (
            lambda: moe_unpermute(X, moe_permute(X, IDX, 3)[1]),
            ValueError,
            "`y` must be of shape (8, D), a row for each copy, got float32[4,8]",
        ),
        (lambda: moe_unpermute(X, BAD), TypeError, "`permutation` must be a MoePermutation, got int32[4,2]"),
        (
            lambda: moe_unpermute(*moe_permute(X, IDX, 3), jnp.ones((4, 3))),
            ValueError,
            "`topk_weights` must be bfloat16 or float16 or float32 of shape (4, 2), got float32[4,3]",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
