"""The m-grouped GEMMs against float64: sizes, layouts of every kind, configurations, graphs. Results go over NaN."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_deepgemm as jd
from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig
from jax_deepgemm.heuristics.gemm_config import GemmConfig
from tests import m_grouped
from tests.gpu.native import native
from tests.helpers import assert_close

pytestmark = pytest.mark.gpu

KINDS = pytest.mark.parametrize("kind", ["fp8", "bf16"])
FORMS = pytest.mark.parametrize("psum", [False, True], ids=["index", "psum"])
SIZES = {
    **m_grouped.SIZES,
    "256 of one row": ((1,) * 256, 0),
    "1000 of few": (tuple(int(x) for x in np.random.default_rng(1).integers(0, 4, 1000)), 7),
    "large": ((3000, 0, 700, 1), 90),
}
CONFIGS = (
    GemmConfig(128, 128, ahead=2),
    GemmConfig(256, 128),
    GemmConfig(256, 128, cluster_columns=2),
    GemmConfig(128, 64, cluster_columns=4),
    GemmConfig(192, 128),
    GemmConfig(192, 128, cluster_columns=2),
    GemmConfig(64, 128, ahead=2),
    GemmConfig(128, 192),
    GemmConfig(64, 48, stage_blocks=4),
    GemmConfig(128, 96, split_k=2),
    GemmConfig(64, 8, swap=True, stage_blocks=4),
    GemmConfig(128, 80, swap=True, stage_blocks=2),
    GemmConfig(128, 128, swap=True),
    GemmConfig(128, 64, swap=True, split_k=2),
    Bf16GemmConfig(128, 256),
    Bf16GemmConfig(192, 176),
    Bf16GemmConfig(192, 128, eager=True),
    Bf16GemmConfig(192, 192, layout="nn"),
    Bf16GemmConfig(64, 48, split_k=3),
    Bf16GemmConfig(64, 24, swap=True, stage_blocks=4),
    Bf16GemmConfig(128, 64, layout="nn", swap=True, split_k=2),
)
SPLIT = tuple(c for c in CONFIGS if c.split_k > 1)


def kind_and_order(config):
    return ("bf16", config.layout) if isinstance(config, Bf16GemmConfig) else ("fp8", "nt")


@functools.cache
def problem(kind, m, groups, n, k):
    """Operands, and their float64 values."""
    if kind == "fp8":
        a, b = m_grouped.operands(m, n, k, groups)
        return a, b, *m_grouped.dequantised(a, b)
    random = np.random.default_rng(0)
    a, b = (jnp.asarray(random.standard_normal(s, np.float32), jnp.bfloat16) for s in ((m, k), (groups, n, k)))
    return a, b, np.asarray(a, np.float64), np.asarray(b, np.float64)


def contiguous(kind, a, b, layout, order="nt", **keywords):
    if order == "nn":
        b = jax.tree.map(lambda x: x.swapaxes(1, 2), b)
    return getattr(jd, f"m_grouped_{kind}_gemm_{order}_contiguous")(a, b, layout, **keywords)


def check(got, wanted):
    if np.any(wanted):
        assert_close(got, wanted)
    assert not np.any(np.asarray(got)[~wanted.any(axis=-1)])  # exactly zero


@FORMS
@pytest.mark.parametrize("kind, order", [("fp8", "nt"), ("bf16", "nt"), ("bf16", "nn")])
@pytest.mark.parametrize("case", SIZES)
def test_sizes(kind, psum, order, case):
    sizes, rest = SIZES[case]
    index = m_grouped.index_of(sizes, rest)
    a, b, rows, weights = problem(kind, len(index), len(sizes), 264, 400)
    layout = jnp.asarray(m_grouped.psum_of(sizes) if psum else index)
    wanted = m_grouped.oracle(rows, weights, index)
    for dtype in (jnp.bfloat16, jnp.float32):
        function = functools.partial(contiguous, kind, order=order, use_psum_layout=psum, out_dtype=dtype)
        check(native(function, a, b, layout)(a, b, layout), wanted)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@FORMS
def test_configuration(config, psum):
    sizes, rest = (5, 0, 77, 1, 129, 300), 30
    kind, order = kind_and_order(config)
    index = m_grouped.index_of(sizes, rest)
    a, b, rows, weights = problem(kind, len(index), len(sizes), 584, 1040)
    layout = jnp.asarray(m_grouped.psum_of(sizes) if psum else index)
    function = functools.partial(contiguous, kind, order=order, use_psum_layout=psum, config=config)
    for num_sms in (132, 4):
        with jd.set_num_sms(num_sms):
            results = [native(function, a, b, layout)(a, b, layout) for _ in range(2)]
        check(results[0], m_grouped.oracle(rows, weights, index))
        first, second = (np.asarray(r).view(np.uint16) for r in results)
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("config", SPLIT, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_clusters_over_groups_of_every_few_tiles(config, groups):
    """A cluster splits K, and goes from a tile of one group to one of another: of 1, 2 or 3 row tiles each, the last of
    which has any number of rows. As many clusters as there are tiles, and two of them."""
    kind, order = kind_and_order(config)
    most = 3 * groups * config.tile_m
    a, b, rows, weights = problem(kind, most, groups, 3 * config.tile_n - 8, 720)
    function = functools.partial(contiguous, kind, order=order, use_psum_layout=True, config=config)
    runs = []
    for num_sms in (132, 2 * config.split_k):
        with jd.set_num_sms(num_sms):
            runs.append(native(function, a, b, jnp.zeros(groups, jnp.int32)))
    random = np.random.default_rng(groups)
    for tiles in itertools.product((1, 2, 3), repeat=groups):
        sizes = [(count - 1) * config.tile_m + random.integers(1, config.tile_m + 1) for count in tiles]
        index = m_grouped.index_of(sizes, most - sum(sizes))
        wanted = m_grouped.oracle(rows, weights, index)
        for run in runs:
            check(run(a, b, jnp.asarray(m_grouped.psum_of(sizes))), wanted)


@KINDS
def test_index_of_any_order_and_of_no_group(kind):
    random = np.random.default_rng(1)
    a, b, rows, weights = problem(kind, 1500, 6, 264, 400)
    function = native(functools.partial(contiguous, kind), a, b, jnp.zeros(1500, jnp.int32))
    for low, high in ((-2, 8), (-(2**31), 2**31)):
        index = random.integers(low, high, 1500).astype(np.int32)
        check(function(a, b, jnp.asarray(index)), m_grouped.oracle(rows, weights, index))


@KINDS
def test_one_program_for_all_sizes(kind):
    """Of ends that are none as well."""
    a, b, rows, weights = problem(kind, 700, 4, 264, 400)
    function = native(functools.partial(contiguous, kind, use_psum_layout=True), a, b, jnp.zeros(4, jnp.int32))
    for ends in ((100, 300, 300, 700), (0, 0, 0, 0), (700,) * 4, (500, 300, 900, 2), (-5, 20, 2**31 - 1, -(2**31))):
        clamped = np.maximum.accumulate(np.clip(ends, 0, 700))
        index = m_grouped.index_of(np.diff(clamped, prepend=0), 700 - clamped[-1])
        check(function(a, b, jnp.asarray(ends, jnp.int32)), m_grouped.oracle(rows, weights, index))


@KINDS
@pytest.mark.parametrize("expected_m", [1, 40, 400])
def test_masked(kind, expected_m):
    a, b, rows, weights = problem(kind, 1600, 4, 264, 400)
    stacked = jax.tree.map(lambda x: x.reshape(4, 400, -1), a)

    def function(a, b, masked_m):
        return getattr(jd, f"m_grouped_{kind}_gemm_nt_masked")(a, b, masked_m, expected_m)

    compiled = native(function, stacked, b, jnp.zeros(4, jnp.int32))
    for masked_m in ((0, 5, 400, 17), (0, 0, 0, 0), (-3, 1000, 400, 1), (2**31 - 1, -(2**31), 130, 256)):
        got = np.asarray(compiled(stacked, b, jnp.asarray(masked_m, jnp.int32)))
        wanted = m_grouped.masked_oracle(rows.reshape(4, 400, -1), weights, np.clip(masked_m, 0, 400))
        inside = np.arange(400) < np.asarray(masked_m)[:, None]
        if inside.any():
            assert_close(got[inside], wanted[inside])


@KINDS
def test_nan_stays_in_its_rows_and_groups(kind):
    sizes = (30, 0, 77, 50)
    index = m_grouped.index_of(sizes, 11)
    a, b, rows, weights = problem(kind, len(index), 4, 264, 400)
    if kind == "fp8":
        bad = jnp.full((), jnp.nan, jnp.float8_e4m3fn)
        a, b = jd.Quantized(a.data, a.scale.at[40].set(jnp.nan)), jd.Quantized(b.data.at[3, 5].set(bad), b.scale)
    else:
        a, b = a.at[40].set(jnp.nan), b.at[3, 5].set(jnp.nan)
    for order in ("nt", "nn"):
        function = functools.partial(contiguous, kind, order=order)
        got = np.array(native(function, a, b, jnp.asarray(index))(a, b, jnp.asarray(index)), np.float64)
        assert np.isnan(got[40]).all() and np.isnan(got[index == 3][:, 5]).all()
        wanted = m_grouped.oracle(rows, weights, index)
        wanted[40], wanted[index == 3, 5] = 0, 0
        assert np.isnan(got).sum() == 264 + 50
        assert_close(jnp.asarray(np.nan_to_num(got), jnp.bfloat16), wanted)
