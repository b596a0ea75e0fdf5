"""What test_sanitizer.py runs under compute-sanitizer: a small problem by each kind of kernel.

With the argument `every-thread-arrives`, kernels are compiled so that racecheck can follow them (common/barrier.cuh).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_deepgemm
from jax_deepgemm import compile as compiler
from jax_deepgemm import (
    fp8_fp4_gemm_nt,
    k_grouped_bf16_gemm_tn_contiguous,
    k_grouped_cast_to_fp8,
    k_grouped_fp8_gemm_tn_contiguous,
    m_grouped_fp8_fp4_gemm_nt_contiguous,
    set_num_sms,
    set_target,
)
from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig
from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from jax_deepgemm.heuristics.fp4_config import Fp4GemmConfig
from jax_deepgemm.heuristics.fp4_swapped_config import Fp4SwappedConfig
from jax_deepgemm.heuristics.gemm_config import GemmConfig
from jax_deepgemm.heuristics.k_grouped_config import KGroupedBf16Config
from jax_deepgemm.heuristics.resident_config import ResidentConfig
from jax_deepgemm.target import H100, Target
from tests import fp4, helpers, k_grouped, m_grouped
from tests.gpu import casts, moe_cases, skip_head_mid
from tests.gpu.native import native
from tests.gpu.small import small
from tests.helpers import assert_close

# Rings of few stages go round often, and leave shared memory to the tool.
TARGET = dataclasses.replace(H100, smem_bytes=128 * 1024)
# What the largest tile with FP4 weights takes. Only memcheck has so much left.
FP4_TARGET = dataclasses.replace(H100, smem_bytes=160 * 1024)

BF16, F32 = jnp.bfloat16, jnp.float32

# (configuration, SMs, type of D; FP32 adds a C): more tiles than CTAs; they end inside tiles everywhere. Few, since the
# tools make an instruction a hundred: each kernel, and each way through it, once.
CASES: tuple[tuple[Any, int, Any], ...] = (
    (GemmConfig(128, 48, stage_blocks=2), 2, BF16),
    (GemmConfig(128, 64, ahead=2), 2, BF16),
    (GemmConfig(192, 48), 2, BF16),
    (GemmConfig(256, 112), 2, F32),
    (GemmConfig(128, 112, cluster_rows=2), 2, BF16),
    (GemmConfig(64, 48, split_k=3), 3, F32),
    (ResidentConfig(256), 2, BF16),
    (ResidentConfig(128), 2, F32),
    (GemmConfig(64, 16, swap=True, cluster_rows=2), 2, BF16),
    (GemmConfig(64, 8, swap=True, split_k=2, stage_blocks=2), 2, BF16),
    (GemmConfig1d1d(128, 64, ahead=2), 2, F32),
    (GemmConfig1d1d(64, 96), 2, BF16),
    (GemmConfig1d1d(64, 48, split_k=3), 3, F32),
    (Bf16GemmConfig(128, 48, stage_blocks=2), 2, F32),
    (Bf16GemmConfig(192, 176, layout="nn"), 2, BF16),
    (Bf16GemmConfig(128, 112, layout="tn", cluster_rows=2), 2, BF16),
    (Bf16GemmConfig(64, 24, layout="tt", swap=True, split_k=2), 2, F32),
)

# The same with a warp that stores.
STORE_WARP_CASES: tuple[tuple[Any, int, Any], ...] = (
    (GemmConfig(128, 64, ahead=2), 2, BF16),
    (GemmConfig(256, 48), 2, F32),
    (GemmConfig(128, 112, cluster_rows=2), 2, BF16),
    (Bf16GemmConfig(192, 176, layout="nn"), 2, BF16),
)

SKIP_HEAD_MID = (GemmConfig(128, 24, swap=True),)

# Scales by turns: those whose `tile_scales` is True have UE8M0.
FP4_CASES = (
    (Fp4GemmConfig(128, 64, decoded_stages=2, tile_scales=True), 2),
    (Fp4GemmConfig(64, 64, stage_blocks=2, decoded_stages=2), 2),
    (Fp4SwappedConfig(64, 16, 3), 2),
    (Fp4SwappedConfig(128, 24, split_k=2), 2),
)

LARGE_FP4_CASES = ((Fp4GemmConfig(256, 128, decoded_stages=2, tile_scales=True, cluster_rows=2), 2),)

# With layouts of five groups: by their ends, some of them none, and by rows.
M_GROUPED_FP4_CASES = (
    (Fp4GemmConfig(128, 64, decoded_stages=2, tile_scales=True), False),
    (Fp4GemmConfig(64, 64, stage_blocks=2, decoded_stages=2), True),
    (Fp4SwappedConfig(64, 16, 3), False),
    (Fp4SwappedConfig(128, 24, split_k=2), True),
)
LARGE_M_GROUPED_FP4_CASES = ((Fp4GemmConfig(256, 128, decoded_stages=2, tile_scales=True), False),)
ENDS = (20, -5, 2**31 - 1, 40, 60)

# Sizes that are nonsense, and some that end inside blocks. For racecheck they are whole: the warp that clears rows
# behind a group arrives by one lane.
K_GROUPED_SIZES = ((100, 2**31 - 1, -7, 60), (0, 16, 128, 89))
WHOLE_SIZES = ((128, 2**31 - 1, -7, 64), (0, 64, 128, 0))
K_GROUPED_CASES = (KGroupedBf16Config(128, 64), GemmConfig1d1d(128, 64, ahead=2), GemmConfig1d1d(64, 96))

# What the device says of groups of rows, nonsense in part: where they end, the group of each row, rows of each.
NONSENSE = (-1, 4, -(2**31), 2**31 - 1)
M_GROUPED_LAYOUTS = {
    "ends": (90, 40, 2**31 - 1, -(2**31)),
    "index": (*(0,) * 70, *NONSENSE, *(3, 1) * 9, *(2,) * 40),
    "masked": (-3, 1000, 2**31 - 1, 20),
}
M_GROUPED_CONFIGS = (
    GemmConfig(128, 64, cluster_columns=2),
    GemmConfig(128, 64, ahead=2),
    GemmConfig(64, 16, swap=True, split_k=2),
    Bf16GemmConfig(128, 48),
    Bf16GemmConfig(64, 64, layout="nn"),
    Bf16GemmConfig(64, 24, swap=True, split_k=2),
)
M_GROUPED_CASES = tuple(
    (config, form)
    for config, form in itertools.product(M_GROUPED_CONFIGS, M_GROUPED_LAYOUTS)
    if form != "masked" or getattr(config, "layout", "nt") == "nt"
)


STORE_WARP_M_GROUPED_CASES = (
    (GemmConfig(256, 64), "ends"),
    (GemmConfig(128, 64, cluster_columns=2), "index"),
    (GemmConfig(128, 64, ahead=2), "masked"),
    (Bf16GemmConfig(128, 48), "index"),
)


def main(*arguments: str) -> None:
    if "every-thread-arrives" in arguments:
        options = compiler._Job.options
        compiler._Job.options = lambda job: (*options(job), "-DEVERY_THREAD_ARRIVES")
    dense(CASES)
    with helpers.store_warps():
        dense(STORE_WARP_CASES)
        with_groups_of_rows(STORE_WARP_M_GROUPED_CASES)
    for config in SKIP_HEAD_MID:
        with set_target(TARGET), set_num_sms(2):
            skip_head_mid.run_and_check((64, 8, 32), config, m=77, heads=3, k=272)
        print(config, "is right, with free columns", flush=True)
    casts.check(casts.values((130, 140), BF16))
    casts.check_fp4(casts.values((130, 140), BF16))
    print("casts are right", flush=True)
    moe_cases.check()
    print("experts are right", flush=True)
    large = "large-tiles" in arguments
    with_fp4_weights(LARGE_FP4_CASES * large, FP4_TARGET)
    with_fp4_weights(FP4_CASES, TARGET)
    with_fp4_weights_of_groups(LARGE_M_GROUPED_FP4_CASES * large, FP4_TARGET)
    with_fp4_weights_of_groups(M_GROUPED_FP4_CASES, TARGET)
    with_groups_along_k(WHOLE_SIZES if "every-thread-arrives" in arguments else K_GROUPED_SIZES)
    with_groups_of_rows(M_GROUPED_CASES)


def dense(cases: tuple[tuple[Any, int, Any], ...]) -> None:
    for config, num_sms, dtype in cases:
        gemm, p = small(config)
        c = p.c(dtype) if dtype == F32 else None
        given = p.a, p.b, c
        with set_target(TARGET), set_num_sms(num_sms):
            run = native(
                lambda a, b, c, gemm=gemm, dtype=dtype: gemm(a, b, c=c, out_dtype=dtype), *given, config=config
            )
        p.check(run(*given), c)
        print(config, "is right", flush=True)


def with_groups_of_rows(cases: tuple[tuple[Any, str], ...]) -> None:
    m, groups, n, k = 132, 4, 136, 272
    a, b = m_grouped.operands(m, n, k, groups)
    values = m_grouped.dequantised(a, b)
    plain_a, plain_b = (jnp.asarray(x, BF16) for x in values)
    plain_values = [np.asarray(x, np.float64) for x in (plain_a, plain_b)]
    for config, form in cases:
        plain, order = isinstance(config, Bf16GemmConfig), getattr(config, "layout", "nt")
        x, w = (plain_a, plain_b.swapaxes(1, 2) if order == "nn" else plain_b) if plain else (a, b)
        rows, weights = plain_values if plain else values
        suffix = "masked" if form == "masked" else "contiguous"
        gemm = getattr(jax_deepgemm, f"m_grouped_{'bf16' if plain else 'fp8'}_gemm_{order}_{suffix}")
        said = np.array(M_GROUPED_LAYOUTS[form])
        options: Any = {"config": config}
        if form == "masked":
            x = jax.tree.map(lambda v: v.reshape(groups, m // groups, -1), x)
            options["expected_m"] = 20
            inside = np.arange(m // groups) < said[:, None]
            wanted = m_grouped.masked_oracle(rows.reshape(groups, m // groups, -1), weights, said)
        else:
            options["use_psum_layout"] = form == "ends"
            ends = np.maximum.accumulate(np.clip(said, 0, m))
            index = said
            if form == "ends":
                index = m_grouped.index_of(np.diff(ends, prepend=0), m - ends[-1])
            inside, wanted = np.full(m, True), m_grouped.oracle(rows, weights, index)
        layout = jnp.asarray(said, jnp.int32)
        with set_target(TARGET), set_num_sms(2):
            d = np.asarray(native(functools.partial(gemm, **options), x, w, layout)(x, w, layout))
        assert_close(d[inside], wanted[inside])
        print(config, "is right, of groups by", form, flush=True)


def with_groups_along_k(all_sizes: tuple[tuple[int, ...], ...]) -> None:
    k = 256
    x, y = k_grouped.matrices(136, 264, k)
    for config in K_GROUPED_CASES:
        plain = isinstance(config, KGroupedBf16Config)

        def run(x: Any, y: Any, ks: Any, config: Any = config, plain: bool = plain) -> Any:
            if plain:
                return k_grouped_bf16_gemm_tn_contiguous(x, y, ks, config=config)
            operands = (k_grouped_cast_to_fp8(v, ks) for v in (x, y))
            return k_grouped_fp8_gemm_tn_contiguous(*operands, ks, config=config)

        for sizes in all_sizes:
            ks = k_grouped.sizes(sizes)
            with set_target(TARGET), set_num_sms(2):
                d = native(run, x, y, ks, calls=1 if plain else 3)(x, y, ks)
            wanted = k_grouped.oracle(x, y, sizes)
            error = helpers.relative_error(d, wanted)
            assert error < (5e-4 if plain else 0.05), error
            print(config, "is right, with groups of", sizes, flush=True)


def with_fp4_weights(cases: tuple[tuple[Any, int], ...], target: Target) -> None:
    kinds = itertools.cycle(fp4.KINDS.values())
    for config, num_sms in cases:
        use_ue8m0, recipe = next(kinds)
        m = 300 if config.rows == 256 else 77  # a second row tile, where two CTAs share
        a, b = fp4.operands(m, 264, 416, use_ue8m0=use_ue8m0, recipe=recipe)
        with set_target(target), set_num_sms(num_sms):
            run = native(functools.partial(fp8_fp4_gemm_nt, recipe=recipe), a, b, config=config)
        assert_close(run(a, b), fp4.oracle(a, b, recipe=recipe))
        print(config, "is right", flush=True)


def with_fp4_weights_of_groups(cases: tuple[tuple[Any, bool], ...], target: Target) -> None:
    m = 77
    clamped = np.maximum.accumulate(np.clip(ENDS, 0, m))
    by_ends = m_grouped.index_of(np.diff(clamped, prepend=0), 0)
    by_rows = np.random.default_rng(0).integers(-2, 7, m).astype(np.int32)
    by_rows[:20] = 1
    for (config, psum), (use_ue8m0, recipe) in zip(cases, itertools.cycle(fp4.KINDS.values())):
        a, b = m_grouped.operands(m, 136, 416, len(ENDS), "fp8_fp4", use_ue8m0=use_ue8m0, recipe=recipe)
        layout = jnp.asarray(ENDS if psum else by_rows, jnp.int32)
        gemm = functools.partial(
            m_grouped_fp8_fp4_gemm_nt_contiguous, use_psum_layout=psum, recipe=recipe, config=config
        )
        with set_target(target), set_num_sms(2):
            run = native(gemm, a, b, layout)
        wanted = m_grouped.oracle(*m_grouped.dequantised(a, b), by_ends if psum else by_rows)
        assert_close(run(a, b, layout), wanted)
        print(config, "is right, with groups", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
