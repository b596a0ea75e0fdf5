"""Sorting, permuting and summing the tokens of a mixture of experts, and the whole block, on the GPU."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import (
    cast_back_from_fp4,
    m_grouped_fp8_gemm_nt_contiguous,
    moe_mlp,
    moe_permute,
    moe_unpermute,
    per_block_cast_to_fp8,
    per_token_cast_to_fp4,
)
from jax_deepgemm.ops.m_grouped_fp8_gemm_swiglu import m_grouped_fp8_gemm_swiglu
from jax_deepgemm.ops.moe_rows import permute_rows, permute_rows_to_fp8, row_dots, sort_by_expert, unpermute_rows
from jax_deepgemm.ops.stacked_casting import quantise_stack
from jax_deepgemm.ops.swiglu import swiglu_to_fp8
from tests import m_grouped, moe
from tests.gpu.casts import differences, same_apart_from_nan
from tests.gpu.native import native
from tests.gpu.problems import all_same, same_bits
from tests.helpers import relative_error

pytestmark = pytest.mark.gpu

BF16, F16, F32 = jnp.bfloat16, jnp.float16, jnp.float32


def on_cpu(function, *args):
    return jax.jit(function)(*jax.device_put(args, jax.devices("cpu")[0]))


def check_bits(function, *args, calls=1):
    got, wanted = native(function, *args, calls=calls)(*args), on_cpu(function, *args)
    for i, (g, w) in enumerate(zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)):
        assert same_bits(g, w), f"result {i}: {differences(g, w)}"


# tokens, k, experts, least and greatest index of an expert
SORTS = [
    (1, 1, 1, 0, 0),
    (5, 3, 7, -2, 8),
    (128, 8, 32, 0, 31),
    (4096, 8, 32, 0, 31),
    (1000, 6, 256, -3, 299),
    (4096, 8, 1, 0, 0),
    (300, 7, 1024, 0, 1023),
    (4096, 8, 32, -(2**31), 2**31 - 1),
    (70000, 8, 64, -1, 63),
    (131072, 8, 17, 0, 17),
]


@pytest.mark.parametrize("tokens, top_k, experts, least, most", SORTS)
def test_sort(tokens, top_k, experts, least, most):
    idx = np.random.default_rng(0).integers(least, most, (tokens, top_k), endpoint=True, dtype=np.int32)
    check_bits(functools.partial(sort_by_expert, num_experts=experts), jnp.asarray(idx))


def test_sort_of_what_is_sorted():
    idx = jnp.asarray(np.repeat(np.arange(32, dtype=np.int32), 1024).reshape(4096, 8))
    check_bits(functools.partial(sort_by_expert, num_experts=32), idx)


ROWS = [(1, 1, 1, 1), (5, 3, 7, 33), (128, 8, 32, 7168), (300, 6, 20, 1000), (77, 9, 5, 2050), (64, 20, 4, 7000)]


def problem(tokens, top_k, experts, d, dtype):
    idx, weights = moe.routed(tokens, tokens, top_k, experts)
    rows = sort_by_expert(idx, experts)[0]
    x, y = (jnp.asarray(moe.normal(i, n, d), dtype) for i, n in enumerate((tokens, tokens * top_k)))
    return x, y, rows, weights


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_rows_are_copied_to_the_bit(case, dtype):
    x, _, rows, weights = problem(*case, dtype=dtype)
    check_bits(lambda x, r, w: (permute_rows(x, r), permute_rows(x, r, w)), x, rows, weights, calls=2)


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_rows_are_summed_and_multiplied(case, dtype):
    x, y, rows, weights = problem(*case, dtype=dtype)

    def function(x, y, r, w):
        return unpermute_rows(y, r), unpermute_rows(y, r, w), row_dots(x, y, r)

    got = native(function, x, y, rows, weights, calls=3)(x, y, rows, weights)
    exact = [np.asarray(v).astype(np.float64) for v in (x, y, weights)]
    place, known = np.maximum(np.asarray(rows), 0), np.asarray(rows) >= 0
    found = np.where(known[:, :, None], exact[1][place], 0)
    wanted = found.sum(1), (found * exact[2][:, :, None]).sum(1), np.einsum("td,tkd->tk", exact[0], found)
    for g, w, bound in zip(got, wanted, (2e-3 if dtype != F32 else 1e-6,) * 2 + (1e-5,), strict=True):
        if w.any():
            assert relative_error(g, w) < bound
        else:
            assert not np.asarray(g).any()


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("case", [(5, 3, 7, 16), (128, 8, 32, 7168), (300, 6, 20, 1008), (64, 20, 4, 4240)], ids=str)
def test_rows_are_quantised_and_copied_to_the_bit(case, dtype):
    x, _, rows, _ = problem(*case, dtype=dtype)
    check_bits(permute_rows_to_fp8, x, rows)


def test_not_finite():
    x, y, rows, weights = problem(40, 3, 5, 272, BF16)
    x, y = x.at[3, 5].set(jnp.nan).at[7, 200].set(jnp.inf), y.at[3, 5].set(jnp.nan)
    got, wanted = native(permute_rows_to_fp8, x, rows)(x, rows), on_cpu(permute_rows_to_fp8, x, rows)
    assert all(same_apart_from_nan(g, w) for g, w in zip(got, wanted, strict=True))
    check_bits(permute_rows, x, rows)
    got = np.asarray(native(unpermute_rows, y, rows, weights)(y, rows, weights)).astype(np.float32)
    (where,) = np.nonzero((np.asarray(rows) == 3).any(1))
    assert np.argwhere(np.isnan(got)).tolist() == [[t, 5] for t in where]


def test_rows_that_are_nonsense_touch_nothing_else():
    """Run under memcheck too: no access outside of the operands."""
    rows = jnp.asarray(np.random.default_rng(0).integers(-(2**31), 2**31 - 1, (8, 4)), jnp.int32)
    x, y = jnp.ones((8, 64), BF16), jnp.ones((32, 64), BF16)

    def function(x, y, r):
        return permute_rows(x, r), unpermute_rows(y, r), row_dots(x, y, r), permute_rows_to_fp8(x, r)

    _, total, dots, _ = native(function, x, y, rows, calls=4)(x, y, rows)
    assert not np.asarray(total).astype(np.float32).any() and not np.asarray(dots).any()


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("shape", [(1, 8), (33, 2048), (130, 136), (77, 1001)])
def test_swiglu(shape, dtype):
    h = jnp.asarray(np.random.default_rng(0).standard_normal((shape[0], 2 * shape[1])) * 3, dtype)
    data, scale = (np.asarray(v).astype(np.float64) for v in native(swiglu_to_fp8, h)(h))
    wanted = moe.swiglu(np.asarray(h).astype(np.float64))
    back = data * scale.repeat(128, 1)[:, : shape[1]]
    allowed = np.abs(wanted) * (2**-4 + 2**-7) + scale.repeat(128, 1)[:, : shape[1]] * 2.0**-9
    assert (np.abs(back - wanted) <= allowed).all()
    reference = on_cpu(swiglu_to_fp8, h)
    same = np.mean(data == np.asarray(reference.data).astype(np.float64))
    assert same > 0.98  # an exponential may be off by the last bit, and then a rounding


# Rows of each group, rows of none, columns of the result, K
GATED = [
    ((128, 256), 0, 128, 128),
    ((5, 0, 77, 1, 129, 400, 64, 65), 300, 256, 144),
    ((0, 0, 4000, 0), 96, 384, 7168),
    ((0, 0, 0), 500, 256, 400),
    (tuple(int(x) for x in np.random.default_rng(1).integers(0, 300, 200)), 700, 128, 272),
    ((1000,) * 8, 0, 1408, 2048),
]


@pytest.mark.parametrize("sizes, rest, n, k", GATED, ids=lambda value: str(value)[:24])
def test_gated_gemm_is_the_two_kernels_to_the_bit(sizes, rest, n, k):
    a, b = m_grouped.operands(max(sum(sizes) + rest, 128 * len(sizes)), 2 * n, k, len(sizes))
    ends = jnp.asarray(m_grouped.psum_of(sizes))

    def two(a, b, ends):
        return swiglu_to_fp8(m_grouped_fp8_gemm_nt_contiguous(a, b, ends, use_psum_layout=True))

    def one(a, b, ends):
        return m_grouped_fp8_gemm_swiglu(a, b, ends, jnp.dtype(BF16))

    run = native(one, a, b, ends)
    results = run.many(20, a, b, ends)
    wanted = native(two, a, b, ends, calls=2)(a, b, ends)
    for g, w in zip(results[0], wanted, strict=True):
        assert same_bits(g, w), differences(g, w)
    assert all(all_same(same) for same in zip(*results, strict=True))


def test_gated_gemm_against_float64():
    sizes = (200, 0, 300, 77)
    a, b = m_grouped.operands(sum(sizes), 512, 1024, len(sizes))
    ends = jnp.asarray(m_grouped.psum_of(sizes))
    data, scale = native(lambda *v: m_grouped_fp8_gemm_swiglu(*v, jnp.dtype(BF16)), a, b, ends)(a, b, ends)
    h = m_grouped.oracle(*m_grouped.dequantised(a, b), m_grouped.index_of(sizes, 0))
    back = np.asarray(data).astype(np.float64) * np.asarray(scale, np.float64).repeat(128, 1)
    assert 1e-3 < relative_error(back, moe.swiglu(h)) < 0.04


def test_gated_gemm_of_nonsense_sizes():
    """Ends that fall, are negative or lie beyond the rows: each as the GEMM without a gate takes it."""
    ends = jnp.asarray([70, -5, 2**31 - 1, 60, 400, -(2**31)], jnp.int32)
    a, b = m_grouped.operands(800, 256, 256, 6)
    run = native(lambda *v: m_grouped_fp8_gemm_swiglu(*v, jnp.dtype(BF16)), a, b, ends)
    two = native(
        lambda a, b, e: swiglu_to_fp8(m_grouped_fp8_gemm_nt_contiguous(a, b, e, use_psum_layout=True)),
        a,
        b,
        ends,
        calls=2,
    )
    assert all(same_bits(g, w) for g, w in zip(run(a, b, ends), two(a, b, ends), strict=True))


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("straight, turned", [(True, True), (True, False), (False, True)])
def test_stacks(dtype, straight, turned):
    w = jnp.asarray(moe.normal(0, 3, 256, 400), dtype)
    check_bits(functools.partial(quantise_stack, straight=straight, turned=turned), w)


def block(x, weights, idx):
    y, permutation = moe_permute(x, idx, 20)
    return moe_unpermute(jnp.tanh(y), permutation, weights)


def test_gradients_and_repeats():
    idx, weights = moe.routed(0, 300, 6, 20)
    x, dy = (jnp.asarray(np.random.default_rng(i).standard_normal((300, 1000)), F32) for i in range(2))

    def step(x, weights, idx, dy):
        return moe.step_of(functools.partial(block, idx=idx), x, weights, dy)

    run = native(step, x, weights, idx, dy, calls=6)
    for g, w in zip(run(x, weights, idx, dy), on_cpu(step, x, weights, idx, dy), strict=True):
        assert relative_error(g, np.asarray(w).astype(np.float64)) < 1e-5
    for results in zip(*run.many(50, x, weights, idx, dy), strict=True):
        assert all_same(results)


T, H, INNER, G, TOP_K = 300, 512, 384, 6, 3


def block_arrays():
    keys = jax.random.split(jax.random.key(1), 4)
    shapes = ((T, H), (G, 2 * INNER, H), (G, H, INNER), (T, H))
    scales = (1.0, H**-0.5, INNER**-0.5, 1.0)
    x, w13, w2, dy = ((jax.random.normal(k, s) * f).astype(BF16) for k, s, f in zip(keys, shapes, scales, strict=True))
    return x, *moe.routed(0, T, TOP_K, G), w13, w2, dy


@pytest.mark.parametrize("recipe", [None, moe.FP8])
def test_moe_mlp(recipe):
    x, idx, weights, w13, w2, dy = block_arrays()

    def step(x, idx, weights, w13, w2, dy):
        return moe.step_of(lambda x, w, w13, w2: moe_mlp(x, idx, w, w13, w2, recipe=recipe), x, weights, w13, w2, dy)

    got = native(step, x, idx, weights, w13, w2, dy, calls=None)(x, idx, weights, w13, w2, dy)

    def in_float32(idx, *given):
        return moe.step_of(lambda x, w, *ws: moe.moe_mlp(x, idx, w, *ws), *(v.astype(F32) for v in given))

    # XLA tries out ways to multiply on a GPU, for minutes where other tests use it.
    wanted = on_cpu(in_float32, idx, x, weights, w13, w2, dy)
    for g, w in zip(got, wanted, strict=True):
        assert relative_error(g, np.asarray(w).astype(np.float64)) < (1e-2 if recipe is None else 0.1)


def test_moe_mlp_of_quantised_weights():
    x, idx, weights, w13, w2, _ = block_arrays()
    pairs = jax.jit(lambda *w: [jax.vmap(per_block_cast_to_fp8)(v) for v in w])(w13, w2)
    run = native(moe_mlp, x, idx, weights, *pairs, calls=5)
    results = run.many(20, x, idx, weights, *pairs)
    with jax.default_matmul_precision("highest"):
        wanted = moe.moe_mlp(x, idx, weights, w13, w2)
    assert 0.01 < relative_error(results[0], np.asarray(wanted).astype(np.float64)) < 0.1
    assert all_same(results)


@pytest.mark.parametrize("use_ue8m0, gran_k", [(True, 32), (False, 32), (False, 128)])
def test_moe_mlp_of_fp4_weights(use_ue8m0, gran_k):
    x, idx, weights, w13, w2, _ = block_arrays()

    def cast(w):
        return jax.vmap(lambda v: per_token_cast_to_fp4(v, use_ue8m0=use_ue8m0, gran_k=gran_k))(w)

    pairs = jax.jit(lambda *w: [cast(v) for v in w])(w13, w2)
    run = native(moe_mlp, x, idx, weights, *pairs, calls=6)
    results = run.many(20, x, idx, weights, *pairs)
    wide = [jax.vmap(lambda *p: cast_back_from_fp4(p, gran_k=gran_k))(*pair) for pair in pairs]
    with jax.default_matmul_precision("highest"):
        wanted = moe.moe_mlp(x, idx, weights, *wide)
    assert 0.01 < relative_error(results[0], np.asarray(wanted).astype(np.float64)) < 0.06
    assert all_same(results)
