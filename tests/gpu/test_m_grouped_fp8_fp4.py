"""The m-grouped GEMMs with FP4 weights against float64: sizes, layouts of every kind, configurations, scales.

Results go over NaN.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_deepgemm as jd
from jax_deepgemm import m_grouped_fp8_fp4_gemm_nn_contiguous as nn
from jax_deepgemm import m_grouped_fp8_fp4_gemm_nt_contiguous as nt
from jax_deepgemm import m_grouped_fp8_fp4_gemm_nt_masked as masked
from jax_deepgemm.heuristics.fp4_config import Fp4GemmConfig
from jax_deepgemm.heuristics.fp4_swapped_config import Fp4SwappedConfig
from tests import m_grouped
from tests.fp4 import BY_32, KINDS, in_bytes, weights
from tests.gpu.native import native
from tests.gpu.problems import all_same
from tests.gpu.test_m_grouped import FORMS, SIZES, check
from tests.helpers import assert_close

pytestmark = pytest.mark.gpu

SCALES = pytest.mark.parametrize("use_ue8m0, recipe", KINDS.values(), ids=KINDS)
CONFIGS = (
    Fp4GemmConfig(64, 64, stage_blocks=2),
    Fp4GemmConfig(64, 128, feed_groups=2, tile_scales=True),
    Fp4GemmConfig(128, 64, stage_blocks=2),
    Fp4GemmConfig(128, 128, tile_scales=True),
    Fp4GemmConfig(128, 128, split_k=2),
    Fp4GemmConfig(256, 128),
    Fp4GemmConfig(256, 128, tile_scales=True),
    Fp4SwappedConfig(64, 8, 4, scale_warps=3),
    Fp4SwappedConfig(64, 24, split_k=3, scale_warps=2),
    Fp4SwappedConfig(64, 64, 2, split_k=2),
    Fp4SwappedConfig(128, 40, 2, group=2),
    Fp4SwappedConfig(128, 128),
    Fp4SwappedConfig(192, 64, scale_warps=2),
    Fp4SwappedConfig(256, 32),
    Fp4SwappedConfig(256, 16, split_k=4),
)
EVERY_CONFIG = pytest.mark.parametrize("config", CONFIGS, ids=str)


@functools.cache
def problem(m, groups, n, k, use_ue8m0=True, recipe=BY_32):
    """Operands, and their float64 values. Whatever `n` is, tiles of a group run into the next group's weights."""
    a, b = m_grouped.operands(m, n, k, groups, "fp8_fp4", use_ue8m0=use_ue8m0, recipe=recipe)
    return a, b, *m_grouped.dequantised(a, b)


def layout_of(case, psum):
    sizes, rest = case
    index = m_grouped.index_of(sizes, rest)
    return index, jnp.asarray(m_grouped.psum_of(sizes) if psum else index)


@FORMS
@pytest.mark.parametrize("case", SIZES)
def test_sizes(psum, case):
    index, layout = layout_of(SIZES[case], psum)
    for kind, dtype in zip(KINDS.values(), (jnp.bfloat16, jnp.float32, jnp.bfloat16), strict=True):
        a, b, rows, values = problem(len(index), len(SIZES[case][0]), 264, 416, *kind)
        function = functools.partial(nt, use_psum_layout=psum, out_dtype=dtype, recipe=kind[1])
        check(native(function, a, b, layout)(a, b, layout), m_grouped.oracle(rows, values, index))


@EVERY_CONFIG
@FORMS
def test_configuration(config, psum):
    index, layout = layout_of(((5, 0, 77, 1, 129, 300), 30), psum)
    a, b, rows, values = problem(len(index), 6, 584, 1184)
    function = functools.partial(nt, use_psum_layout=psum, config=config)
    for num_sms in (132, 4):
        with jd.set_num_sms(num_sms):
            results = native(function, a, b, layout).many(5, a, b, layout)
        check(results[0], m_grouped.oracle(rows, values, index))
        assert all_same(results)


@EVERY_CONFIG
@SCALES
def test_scales(config, use_ue8m0, recipe):
    index, layout = layout_of(((40, 3, 0, 90), 5), True)
    a, b, rows, values = problem(len(index), 4, 264, 672, use_ue8m0, recipe)
    function = functools.partial(nt, use_psum_layout=True, config=config, recipe=recipe, out_dtype=jnp.float32)
    check(native(function, a, b, layout)(a, b, layout), m_grouped.oracle(rows, values, index))


@EVERY_CONFIG
def test_scales_that_fold_in_some_groups(config):
    """Exponents of a group are alike in all of K, in blocks of 128, or nowhere; of others in rows only."""
    k, n = 672, 264
    random = np.random.default_rng(3)
    exponents = np.stack(
        [
            np.full((n, k // 32), 120),
            np.repeat(random.integers(100, 140, (n, 6)), 4, axis=1)[:, : k // 32],
            random.integers(100, 140, (n, k // 32)),
            np.where(np.arange(n)[:, None] == 200, random.integers(100, 140, (n, k // 32)), 121),
        ]
    )
    index, layout = layout_of(((40, 30, 70, 90), 5), True)
    a, b, *_ = problem(len(index), 4, n, k)
    b = b._replace(scale=weights(np.zeros((4, n, k), np.uint8), exponents.astype(np.uint8)).scale)
    wanted = m_grouped.oracle(*m_grouped.dequantised(a, b), index)
    function = functools.partial(nt, use_psum_layout=True, config=config, out_dtype=jnp.float32)
    d = np.asarray(native(function, a, b, layout)(a, b, layout)).astype(np.float64)
    for g in range(4):  # each column by itself, since they differ by orders of magnitude
        got, expected = d[index == g], wanted[index == g]
        assert (np.linalg.norm(got - expected, axis=0) < 1e-3 * np.linalg.norm(expected, axis=0)).all(), g
    assert not d[index < 0].any()


@pytest.mark.parametrize("config", [None, CONFIGS[3], CONFIGS[7], CONFIGS[13]], ids=str)
def test_index_of_any_order_and_of_no_group(config):
    random = np.random.default_rng(1)
    a, b, rows, values = problem(1500, 6, 264, 416)
    function = native(functools.partial(nt, config=config), a, b, jnp.zeros(1500, jnp.int32))
    for low, high in ((-2, 8), (-(2**31), 2**31)):
        index = random.integers(low, high, 1500).astype(np.int32)
        check(function(a, b, jnp.asarray(index)), m_grouped.oracle(rows, values, index))


@pytest.mark.parametrize("config", [None, CONFIGS[3], CONFIGS[4], CONFIGS[7], CONFIGS[14]], ids=str)
def test_one_program_for_all_sizes(config):
    """Of ends that are none as well, and of no rows at all."""
    a, b, rows, values = problem(700, 4, 264, 416)
    function = native(functools.partial(nt, use_psum_layout=True, config=config), a, b, jnp.zeros(4, jnp.int32))
    for ends in ((100, 300, 300, 700), (0, 0, 0, 0), (700,) * 4, (500, 300, 900, 2), (-5, 20, 2**31 - 1, -(2**31))):
        clamped = np.maximum.accumulate(np.clip(ends, 0, 700))
        index = m_grouped.index_of(np.diff(clamped, prepend=0), 700 - clamped[-1])
        check(function(a, b, jnp.asarray(ends, jnp.int32)), m_grouped.oracle(rows, values, index))


@pytest.mark.parametrize("expected_m", [1, 20, 40, 400])
def test_masked(expected_m):
    a, b, rows, values = problem(1600, 4, 264, 416)
    stacked = jax.tree.map(lambda x: x.reshape(4, 400, -1), a)
    compiled = native(lambda a, b, masked_m: masked(a, b, masked_m, expected_m), stacked, b, jnp.zeros(4, jnp.int32))
    for masked_m in ((0, 5, 400, 17), (0, 0, 0, 0), (-3, 1000, 400, 1), (2**31 - 1, -(2**31), 130, 256)):
        got = np.asarray(compiled(stacked, b, jnp.asarray(masked_m, jnp.int32)))
        inside = np.arange(400) < np.asarray(masked_m)[:, None]
        assert np.isnan(got[~inside].astype(np.float32)).all()  # untouched
        if inside.any():
            wanted = m_grouped.masked_oracle(rows.reshape(4, 400, -1), values, np.clip(masked_m, 0, 400))
            assert_close(got[inside], wanted[inside])


@pytest.mark.parametrize("packed", [False, True], ids=["float4", "uint8"])
def test_weights_with_n_contiguous(packed):
    index, layout = layout_of(((30, 0, 77, 50), 11), False)
    a, b, rows, values = problem(len(index), 4, 264, 416)
    b = jax.tree.map(lambda x: x.swapaxes(1, 2), b)
    b = in_bytes(b) if packed else b
    check(native(nn, a, b, layout)(a, b, layout), m_grouped.oracle(rows, values, index))


@pytest.mark.parametrize("config", [None, CONFIGS[1], CONFIGS[3], CONFIGS[7], CONFIGS[10]], ids=str)
def test_nan_stays_in_its_rows_and_groups(config):
    index, layout = layout_of(((30, 0, 77, 50), 11), True)
    a, b, rows, values = problem(len(index), 4, 264, 416)
    a, b = a._replace(scale=a.scale.at[40].set(jnp.nan)), b._replace(scale=b.scale.at[3, 5, 2].set(jnp.nan))
    function = functools.partial(nt, use_psum_layout=True, config=config)
    got = np.array(native(function, a, b, layout)(a, b, layout), np.float64)
    assert np.isnan(got[40]).all() and np.isnan(got[index == 3][:, 5]).all()
    wanted = m_grouped.oracle(rows, values, index)
    wanted[40], wanted[index == 3, 5] = 0, 0
    assert np.isnan(got).sum() == 264 + 50
    assert_close(jnp.asarray(np.nan_to_num(got), jnp.bfloat16), wanted)


def test_launches_in_a_row():
    """With the next kernel's prologue beside the last one's end, and layouts that a kernel before has computed."""
    a, b, rows, values = problem(700, 4, 264, 416)

    def function(a, b, sizes):
        return [nt(a, b, jnp.cumsum(sizes + i), use_psum_layout=True) for i in range(4)]

    sizes = jnp.array([60, 0, 200, 300], jnp.int32)
    with jd.set_pdl(True):
        results = native(function, a, b, sizes, calls=4)(a, b, sizes)
    for i, got in enumerate(results):
        ends = np.cumsum(np.asarray(sizes) + i)
        check(got, m_grouped.oracle(rows, values, m_grouped.index_of(np.diff(ends, prepend=0), 700 - ends[-1])))
