"""Every kernel's source on the CPU: what it computes, whatever order its threads run in. See `emulator/emulate.py`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import (
    fp8_fp4_gemm_nt,
    fp8_gemm_nt,
    k_grouped_bf16_gemm_tn_contiguous,
    k_grouped_cast_to_fp8,
    k_grouped_fp8_gemm_tn_contiguous,
    m_grouped_bf16_gemm_nn_contiguous,
    m_grouped_bf16_gemm_nt_contiguous,
    m_grouped_fp8_fp4_gemm_nt_contiguous,
    m_grouped_fp8_gemm_nt_contiguous,
    moe_mlp,
    per_block_cast_to_fp8,
    per_token_cast_to_fp4,
)
from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig
from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from jax_deepgemm.heuristics.fp4_config import Fp4GemmConfig
from jax_deepgemm.heuristics.fp4_swapped_config import Fp4SwappedConfig
from jax_deepgemm.heuristics.gemm_config import GemmConfig
from jax_deepgemm.heuristics.k_grouped_config import KGroupedBf16Config
from jax_deepgemm.heuristics.resident_config import ResidentConfig
from jax_deepgemm.ops.casting import quantise
from jax_deepgemm.ops.m_grouped_fp8_gemm_swiglu import m_grouped_fp8_gemm_swiglu
from jax_deepgemm.ops.moe_rows import permute_rows, row_dots, sort_by_expert, unpermute_rows
from jax_deepgemm.ops.swiglu import swiglu_to_fp8
from tests import bf16, fp4, helpers, k_grouped, m_grouped, moe
from tests.bf16 import GEMMS
from tests.emulator import SMALL, emulated
from tests.emulator.emulate import EmulationError
from tests.gpu import casts
from tests.gpu.problems import problem
from tests.gpu.small import small

BF16, F32 = jnp.bfloat16, jnp.float32
ROOMY = dataclasses.replace(SMALL, smem_bytes=230_000)  # as much shared memory as a Hopper processor has

# (configuration, type of D; FP32 adds a C): more tiles than CTAs; they end inside tiles everywhere.
DENSE = (
    (GemmConfig(128, 48, stage_blocks=2), BF16),
    (GemmConfig(128, 64, ahead=2), BF16),
    (GemmConfig(192, 48), BF16),
    (GemmConfig(256, 112), F32),
    (GemmConfig(128, 112, cluster_rows=2), BF16),
    (GemmConfig(64, 48, split_k=3), F32),
    (GemmConfig(64, 8, swap=True, split_k=2, stage_blocks=2), BF16),
    (ResidentConfig(256), BF16),
    (GemmConfig1d1d(128, 64, ahead=2), F32),
    (GemmConfig1d1d(64, 96), BF16),
    (GemmConfig1d1d(192, 96, ahead=1), F32),
    (Bf16GemmConfig(128, 48, eager=True), BF16),
    (Bf16GemmConfig(192, 176, layout="nn"), BF16),
    (Bf16GemmConfig(128, 112, layout="tn", cluster_rows=2), BF16),
    (Bf16GemmConfig(64, 24, layout="tt", swap=True, split_k=2), F32),
)


@pytest.mark.parametrize("config, dtype", DENSE, ids=str)
def test_dense(config: Any, dtype: Any) -> None:
    gemm, p = small(config)
    c = p.c(dtype) if dtype == F32 else None
    target = dataclasses.replace(SMALL, num_sms=max(2, config.cluster if isinstance(config, GemmConfig) else 1))
    with emulated(target=target) as kernels:
        d = gemm(p.a, p.b, c=c, out_dtype=dtype, config=config)
    assert len(kernels) == 1
    p.check(d, c)


STORE_WARPS = tuple((config, dtype) for config, dtype in DENSE if type(config) in (GemmConfig, Bf16GemmConfig))


@pytest.mark.parametrize("config, dtype", [case for case in STORE_WARPS if case[0].stores_by_tma], ids=str)
def test_dense_with_store_warps(config: Any, dtype: Any) -> None:
    with helpers.store_warps():
        test_dense(config, dtype)


@pytest.mark.parametrize("config", [GemmConfig(192, 48), GemmConfig1d1d(128, 64, ahead=2)], ids=str)
def test_tiles_that_lie_inside(config: GemmConfig) -> None:
    """Their scales are copied by 16 and 8 bytes, those of the last tiles by 4."""
    recipe = helpers.ROWS if isinstance(config, GemmConfig1d1d) else helpers.BLOCKS
    p = problem(264, 136, 400, recipe=recipe)
    with emulated():
        d = fp8_gemm_nt(p.a, p.b, recipe=recipe, config=config)
    p.check(d)


# Tiles that share A, of which the last has no columns; boxes of 32 rows, not all of a tile's.
M_GROUPED = (
    GemmConfig(256, 64),
    GemmConfig(128, 64, cluster_columns=2),
    GemmConfig(64, 16, swap=True),
    GemmConfig(64, 64, swap=True),
    GemmConfig(192, 48, cluster_columns=2),
    GemmConfig(64, 64, ahead=2),
)


@pytest.mark.parametrize("psum", [False, True])
@pytest.mark.parametrize("config", M_GROUPED, ids=str)
def test_m_grouped(config: GemmConfig, psum: bool) -> None:
    check_m_grouped(config, psum, seed=0)


@pytest.mark.parametrize("psum", [False, True])
@pytest.mark.parametrize("config", [*M_GROUPED[:2], GemmConfig(192, 48), GemmConfig(128, 96, ahead=2)], ids=str)
def test_m_grouped_with_store_warps(config: GemmConfig, psum: bool) -> None:
    with helpers.store_warps():
        check_m_grouped(config, psum, seed=1)


def check_m_grouped(config: GemmConfig, psum: bool, seed: int, changes: Any = ()) -> None:
    sizes, rest = (45, 0, 40, 1, 109), 30
    a, b = m_grouped.operands(sum(sizes) + rest, 136, 272, len(sizes))
    index = m_grouped.index_of(sizes, rest)
    layout = jnp.asarray(m_grouped.psum_of(sizes) if psum else index)
    with emulated(seed=seed, changes=changes, target=dataclasses.replace(SMALL, num_sms=5)):
        d = m_grouped_fp8_gemm_nt_contiguous(a, b, layout, use_psum_layout=psum, config=config)
    helpers.assert_close(d, m_grouped.oracle(*m_grouped.dequantised(a, b), index))


@pytest.mark.parametrize(
    "config",
    [GemmConfig1d1d(256, 128, ahead=1), GemmConfig1d1d(64, 96), KGroupedBf16Config(128, 64, eager=True)],
    ids=str,
)
def test_k_grouped(config: Any) -> None:
    """Groups without rows first, in tiles that lie inside and tiles that do not: shared memory begins as NaN."""
    ks, k = k_grouped.SIZES["neighbours"]
    operands: Any = k_grouped.matrices(136, 264, k)
    wanted, gemm = k_grouped.oracle(*operands, ks), k_grouped_bf16_gemm_tn_contiguous
    if isinstance(config, GemmConfig1d1d):
        gemm = k_grouped_fp8_gemm_tn_contiguous
        operands = [k_grouped_cast_to_fp8(x, k_grouped.sizes(ks)) for x in operands]
        wanted = k_grouped.quantised_oracle(*operands, ks, k)
    with emulated(target=ROOMY) as kernels:
        d = gemm(*operands, k_grouped.sizes(ks), config=config)
    assert len(kernels) == 1
    helpers.assert_close(d, wanted)
    assert not np.any(np.asarray(d)[np.array(ks) == 0])


@pytest.mark.parametrize("psum", [False, True])
@pytest.mark.parametrize("config", [Bf16GemmConfig(128, 48, layout="nn"), Bf16GemmConfig(64, 16, swap=True)], ids=str)
def test_m_grouped_bf16(config: Bf16GemmConfig, psum: bool) -> None:
    """Ends that fall, or lie outside; groups whose rows are scattered; NaN in the rows of none."""
    m, groups, random = 250, 5, np.random.default_rng(0)
    a, b = (random.standard_normal(shape).astype(jnp.bfloat16) for shape in ((m, 136), (groups, 136, 136)))
    layout, index = np.array([90, -5, 60, 220, 200]), np.repeat([0, 3, -1], [90, 130, 30])
    if not psum:
        layout = index = np.where(random.random(m) < 0.5, random.integers(-(2**31), 2**31, m), np.arange(m) // 40)
    wanted = m_grouped.oracle(a, b, index)
    a[(index < 0) | (index >= groups)] = np.nan
    gemm: Any = m_grouped_bf16_gemm_nt_contiguous
    if config.layout == "nn":
        gemm, b = m_grouped_bf16_gemm_nn_contiguous, b.swapaxes(1, 2)
    with emulated(target=ROOMY) as kernels:
        d = gemm(*map(jnp.asarray, (a, b, layout.astype(np.int32))), use_psum_layout=psum, config=config)
    assert kernels == ["sm90_m_grouped_bf16_gemm"]
    helpers.assert_close(d, wanted)


# Pairs of blocks of K, whose scales may wait for the tile's end; the other loop of many tokens; few tokens; the first
# once more, by two CTAs.
FP4_SHARED = Fp4GemmConfig(256, 128, tile_scales=True, cluster_rows=2)
FP4 = (
    Fp4GemmConfig(256, 128, tile_scales=True),
    Fp4GemmConfig(128, 64),
    Fp4SwappedConfig(64, 32, 2, split_k=2),
    Fp4SwappedConfig(192, 48),
    FP4_SHARED,
)


@pytest.mark.parametrize("config", FP4, ids=str)
def test_fp4(config: Fp4GemmConfig | Fp4SwappedConfig) -> None:
    a, b = fp4.operands(300, 264, 416)
    c = jnp.asarray(np.random.default_rng(1).standard_normal((300, 264)), F32)
    with emulated(target=ROOMY) as kernels:
        d = fp8_fp4_gemm_nt(a, b, c=c, out_dtype=F32, config=config)
    assert len(kernels) == 1
    helpers.assert_close(d, fp4.oracle(a, b, c))


@pytest.mark.parametrize("seed", range(2))
def test_fp4_of_few_tokens_goes_round_its_ring(seed: int) -> None:
    a, b = fp4.operands(20, 72, 2080)
    with emulated(seed=seed, target=dataclasses.replace(SMALL, smem_bytes=90_000)):
        d = fp8_fp4_gemm_nt(a, b, config=Fp4SwappedConfig(128, 24, scale_warps=2))
    helpers.assert_close(d, fp4.oracle(a, b))


# Blocks of K: 5.25; 9, with an odd number of row tiles; 1, with one row tile.
@pytest.mark.parametrize("m, k, num_sms", [(300, 672, 2), (700, 1152, 4), (100, 96, 2)])
@pytest.mark.parametrize("config", [FP4[0], FP4_SHARED], ids=str)
def test_fp4_whose_scales_fold_in_some_rows_of_weights(config: Fp4GemmConfig, m: int, k: int, num_sms: int) -> None:
    check_fp4_that_folds_in_part(config, m, k, num_sms)


def check_fp4_that_folds_in_part(config: Any, m: int, k: int, num_sms: int, seed: int = 0, changes: Any = ()) -> None:
    random = np.random.default_rng(2)
    n = 392
    exponents = np.repeat(random.integers(118, 124, (n, 1), np.uint8), k // 32, axis=1)
    exponents[: n // 2, 1::4] += 12  # more than one table of the decoder spans
    a, _ = fp4.operands(m, n, k)
    b = fp4.weights(random.integers(0, 16, (n, k), np.uint8), exponents)
    with emulated(seed=seed, changes=changes, target=dataclasses.replace(ROOMY, num_sms=num_sms)):
        d = np.asarray(fp8_fp4_gemm_nt(a, b, out_dtype=F32, config=config), np.float64)
    wanted = fp4.oracle(a, b)
    assert (np.linalg.norm(d - wanted, axis=0) < 1e-3 * np.linalg.norm(wanted, axis=0)).all()  # of small ones, too


# Many tokens; few in order; and by bytes that change places, copied by a warp, with scales by turns.
FP4_GROUPED = (
    (FP4[0], True),
    (FP4[0], False),
    (FP4[2], False),
    (Fp4SwappedConfig(64, 16, 2, split_k=2, scale_warps=2), True),
)


@pytest.mark.parametrize("config, psum", FP4_GROUPED, ids=str)
def test_m_grouped_fp4(config: Fp4GemmConfig | Fp4SwappedConfig, psum: bool) -> None:
    sizes, rest = (5, 0, 77, 1, 129, 300), 30
    index = m_grouped.index_of(sizes, rest)
    a, b = m_grouped.operands(len(index), 264, 416, len(sizes), "fp8_fp4")
    layout = jnp.asarray(m_grouped.psum_of(sizes) if psum else index)
    with emulated(target=ROOMY):
        d = m_grouped_fp8_fp4_gemm_nt_contiguous(a, b, layout, use_psum_layout=psum, config=config)
    helpers.assert_close(d, m_grouped.oracle(*m_grouped.dequantised(a, b), index))


@pytest.mark.parametrize("layout", ["tt", "nn", "tn", "rows"])
def test_batches(layout: str) -> None:
    """Groups that the launch itself names, operands in the order asked for; a C that is operand behind them."""
    batch, (m, n, k) = 3, (80, 136, 128)
    if layout == "rows":
        recipe = helpers.ROWS
        pairs: list[Any] = [helpers.operands(m, n, k, seed=s, recipe=recipe) for s in range(batch)]
        wanted = np.stack([helpers.oracle(*p, recipe=recipe) for p in pairs])
        gemm: Any = functools.partial(fp8_gemm_nt, recipe=recipe)
    else:
        pairs = [bf16.matrices(layout, m, n, k, seed=s) for s in range(batch)]
        wanted = np.stack([bf16.oracle(layout, *p) for p in pairs])
        gemm = GEMMS[layout]
    a, b = (m_grouped.stack(x) for x in zip(*pairs, strict=True))
    c = jnp.asarray(np.random.default_rng(0).standard_normal(wanted.shape), F32)
    with emulated(target=ROOMY) as kernels:
        d = jax.vmap(lambda a, b, c: gemm(a, b, c=c, out_dtype=F32))(a, b, c)
    assert len(kernels) == 1
    helpers.assert_close(d, wanted + np.asarray(c, np.float64))


@pytest.mark.parametrize("seed", range(3))
def test_gated_gemm_is_two_kernels_to_the_bit(seed: int) -> None:
    ends = jnp.asarray([5, -7, 82, 60, 300, 2**31 - 1], jnp.int32)
    a, b = m_grouped.operands(800, 512, 272, 6)
    wanted = swiglu_to_fp8(m_grouped_fp8_gemm_nt_contiguous(a, b, ends, use_psum_layout=True))
    with emulated(seed=seed, target=dataclasses.replace(SMALL, num_sms=3, smem_bytes=230_000)) as kernels:
        got = m_grouped_fp8_gemm_swiglu(a, b, ends, jnp.dtype(BF16))
    assert kernels == ["sm90_m_grouped_fp8_gemm_swiglu"]
    for g, w in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(g, np.float32), np.asarray(w, np.float32))


def test_a_block_of_experts() -> None:
    tokens, top_k, experts, h, inner = 200, 2, 3, 256, 128
    x = jnp.asarray(moe.normal(0, tokens, h), BF16)
    idx, weights = moe.routed(0, tokens, top_k, experts)
    w13, w2 = (
        m_grouped.stack([per_block_cast_to_fp8(jnp.asarray(moe.normal(g, *shape), BF16)) for g in range(experts)])
        for shape in ((2 * inner, h), (h, inner))
    )
    with emulated(target=dataclasses.replace(SMALL, smem_bytes=230_000)) as kernels:
        got = moe_mlp(x, idx, weights, w13, w2)
    assert len(kernels) == 5
    assert helpers.relative_error(got, np.asarray(moe_mlp(x, idx, weights, w13, w2)).astype(np.float64)) < 1e-3


@pytest.mark.parametrize("dtype, columns", [(BF16, 136), (jnp.float16, 1001), (F32, 36)])
def test_rows_of_experts(dtype: Any, columns: int) -> None:
    """Sorted, copied, summed back and multiplied; NaN in the rows of no expert reaches nobody."""
    tokens, top_k, experts = 33, 3, 5
    idx, weights = moe.routed(0, tokens, top_k, experts)
    with emulated(target=dataclasses.replace(SMALL, num_sms=3)) as kernels:
        rows, sizes, _ = sort_by_expert(idx, experts)
        x, y = (moe.normal(i, n, columns).astype(dtype) for i, n in enumerate((tokens, tokens * top_k)))
        y[int(np.sum(sizes)) :] = np.nan
        got = permute_rows(x, rows, weights), unpermute_rows(y, rows, weights), row_dots(x, y, rows)
    assert kernels == [f"sm90_moe_{name}" for name in ("sort", "permute", "unpermute", "row_dots")]
    for result, wanted in zip((rows, sizes), sort_by_expert(idx, experts), strict=False):
        np.testing.assert_array_equal(result, wanted)
    assert casts.same_apart_from_nan(got[0], permute_rows(x, rows, weights))
    x, y, weights = (np.asarray(v, np.float64) for v in (x, y, weights))
    found = np.where(np.asarray(rows)[:, :, None] >= 0, y[rows], 0)
    assert helpers.relative_error(got[1], (found * weights[:, :, None]).sum(1)) < 2e-3
    assert helpers.relative_error(got[2], np.einsum("td,tkd->tk", x, found)) < 1e-5


# Shape, dtype, what shares a scale, UE8M0.
FP8_CASTS = (
    ((1, 3), F32, casts.BLOCKS[3], True),
    ((33, 136), jnp.float16, casts.BLOCKS[0], False),
    ((130, 36), BF16, casts.BLOCKS[3], False),
    ((257, 130), BF16, casts.BLOCKS[4], True),
    ((77, 300), F32, casts.BLOCKS[1], False),
)


@pytest.mark.parametrize("shape, dtype, blocks, use_ue8m0", FP8_CASTS)
def test_cast_to_fp8_to_the_bit(shape: tuple[int, int], dtype: Any, blocks: Any, use_ue8m0: bool) -> None:
    x = jnp.asarray(casts.spoiled(casts.values(shape, dtype)))
    check_cast(functools.partial(quantise, use_ue8m0=use_ue8m0, **blocks), "sm90_cast_fp8", x)


@pytest.mark.parametrize("dtype, columns", [(BF16, 136), (F32, 77)])
@pytest.mark.parametrize("case", ["neighbours", "negative", "far beyond K"])
def test_k_grouped_cast_to_the_bit(case: str, dtype: Any, columns: int) -> None:
    ks, k = k_grouped.SIZES[case]
    x = jnp.asarray(casts.values((k, columns), dtype)).at[k_grouped.bounds(ks, k)[-1][1] :].set(jnp.nan)
    check_cast(k_grouped_cast_to_fp8, "sm90_k_grouped_cast_fp8", x, k_grouped.sizes(ks))


def check_cast(cast: Callable[..., Any], kernel: str, *args: jax.Array) -> None:
    with emulated() as kernels:
        got = cast(*args)
    assert kernels == [kernel]
    for result, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(cast(*args)), strict=True):
        assert casts.same_apart_from_nan(result, wanted), casts.differences(result, wanted)


# Shape, dtype, columns of a scale, UE8M0: accesses of every width, ends of tiles, scales and warps.
FP4_CASTS = (
    ((1, 2), BF16, 32, False),
    ((3, 30), jnp.float16, 128, True),
    ((33, 30), F32, 32, True),
    ((77, 160), BF16, 32, True),
    ((77, 416), jnp.float16, 32, False),
    ((3, 516), BF16, 128, False),
    ((130, 1000), F32, 128, False),
    ((130, 1000), BF16, 128, True),
)


@pytest.mark.parametrize("shape, dtype, gran_k, use_ue8m0", FP4_CASTS)
def test_cast_to_fp4_to_the_bit(shape: tuple[int, int], dtype: Any, gran_k: int, use_ue8m0: bool) -> None:
    x = casts.values(shape, dtype)
    if shape[0] > 2:
        x[1] = np.resize(fp4.TIES, shape[1])
        x[0, 0], x[-1, -1], x[-1, shape[1] // 2] = np.nan, np.inf, -np.inf
    cast = functools.partial(per_token_cast_to_fp4, gran_k=gran_k, use_ue8m0=use_ue8m0)
    check_cast(cast, "sm90_cast_fp4", jnp.asarray(x))


RELEASE = "if (j.value == kCount - 1 && !Scaling::kReadsLate) release_stage();"
ASKS = """\
                Barrier& full = shared.full(pipe.stage);
                if (!elected) continue;
                if constexpr (kTells)"""
SCALES = "        pass_turn(group);\n        wait_scales();\n"
FAULTS = {
    "a stage is given back before it is read": (
        ("common/fp8_gemm.cuh", f"wgmma_pin(product[j.value]);\n            {RELEASE}", "wgmma_pin(product[j.value]);"),
        ("common/fp8_gemm.cuh", SCALES, f"{SCALES}        release_stage();\n"),
    ),
    "the producer waits for the wrong phase": (
        ("common/fp8_producer.cuh", f"shared.empty(pipe.stage).wait(pipe.phase ^ 1);\n{ASKS}", ASKS.lstrip()),
    ),
    "nobody waits for scales": (("common/fp8_gemm.cuh", SCALES, "        pass_turn(group);\n"),),
    "boxes are written to while they are stored": (
        ("common/gemm_epilogue.cuh", "            tma_store_wait_read<kSlots - 1>();\n", ""),
    ),
}
FAULTS_OF_STORE_WARPS = {
    "boxes are written to while they are stored": (
        ("common/store_warp.cuh", "            unstaged(shared, group, slot).wait(turns.phase ^ 1);\n", ""),
    ),
    "boxes are stored before they are written": (
        ("common/store_warp.cuh", "                staged(shared, group, turns.stage).wait(turns.phase);\n", ""),
    ),
    "boxes are given back before they are read": (
        ("common/store_warp.cuh", "        tma_store_wait_read<0>();\n", ""),
    ),
}

SEND = "        share().send(shared.weights(stage), full);\n"
FP4_KERNEL = "kernels/sm90_fp8_fp4_gemm.cuh"
SLOW_MATH = (  # of the second CTA of a cluster
    "common/fp4_late_loop.cuh",
    "            wgmma_wait<0>();\n",
    "            for (u32 i = 0; cluster_rank() == 1 && i < 50; ++i) emu::dawdle();\n            wgmma_wait<0>();\n",
)
FAULTS_OF_SHARED_DECODING = {
    "a stage is written to once this CTA has read it": (
        SLOW_MATH,
        (FP4_KERNEL, "kMathWarps * kShares * kWarpArrivals", "kMathWarps * kWarpArrivals"),
        (FP4_KERNEL, "arrive_warp<kShares>(shared.empty(stage), lane)", "arrive_warp(shared.empty(stage), lane)"),
    ),
    "values are sent before they are there": (
        ("common/fp4_pair_feed.cuh", SEND, ""),
        ("common/fp4_pair_feed.cuh", "        if constexpr (kLate) {\n", f"{SEND}        if constexpr (kLate) {{\n"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_emulation_finds_faults(name: str) -> None:
    p = problem(250, 192, 1104)

    def run(seed: int) -> None:
        with emulated(seed=seed, changes=FAULTS[name]):
            p.check(fp8_gemm_nt(p.a, p.b, config=GemmConfig(128, 64)))

    assert found(run)


@pytest.mark.parametrize("name", FAULTS_OF_STORE_WARPS)
def test_the_emulation_finds_faults_of_store_warps(name: str) -> None:
    p = problem(300, 384, 128)

    def run(seed: int) -> None:
        with helpers.store_warps(), emulated(seed=seed, changes=FAULTS_OF_STORE_WARPS[name]):
            p.check(fp8_gemm_nt(p.a, p.b, config=GemmConfig(64, 64)))

    assert found(run)


@pytest.mark.parametrize("name", FAULTS_OF_SHARED_DECODING)
def test_the_emulation_finds_faults_of_shared_decoding(name: str) -> None:
    run = functools.partial(check_fp4_that_folds_in_part, FP4_SHARED, 300, 1152, 2)
    run(changes=(SLOW_MATH,))
    assert found(lambda seed: run(seed=seed, changes=FAULTS_OF_SHARED_DECODING[name]))


def found(run: Callable[[int], None]) -> bool:
    """Whether a fault shows in every order of threads."""
    caught = 0
    for seed in range(3):
        try:
            run(seed)
        except (EmulationError, AssertionError):
            caught += 1
    return caught == 3


LATE = (  # the second CTA of a cluster is long about its table
    "common/group_table.cuh",
    "    if (thread < 32) {  // a lane takes",
    "    for (u32 i = 0; cluster_rank() == 1 && i < 300; ++i) emu::dawdle();\n    if (thread < 32) {  // a lane takes",
)
UNSYNCED = (
    "kernels/sm90_m_grouped_fp8_gemm_1d2d.cuh",
    "        if constexpr (Gemm::kCluster > 1) cluster_sync();",
    "        //",
)


def test_tables_of_groups_are_made_before_others_load_over_them() -> None:
    run = functools.partial(check_m_grouped, M_GROUPED[1], True)
    for seed in range(2):
        run(seed=seed, changes=(LATE,))
    assert found(lambda seed: run(seed=seed, changes=(LATE, UNSYNCED)))
