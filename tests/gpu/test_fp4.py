"""The GEMM with FP4 weights: every kind of configuration, of scales and of sizes, on poisoned outputs."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import fp8_fp4_gemm_nt
from jax_deepgemm.heuristics.fp4_config import Fp4GemmConfig
from jax_deepgemm.heuristics.fp4_swapped_config import Fp4SwappedConfig
from tests.fp4 import GEMMS, KINDS, VALUES, in_bytes, operands, oracle, weights
from tests.gpu.configurations import name
from tests.gpu.native import native
from tests.gpu.problems import all_same
from tests.helpers import assert_close, laid_out, relative_error

pytestmark = pytest.mark.gpu

# Ends inside tiles, tasks, units of 256 of K and blocks of 128 in every direction.
M, N, K = 300, 616, 1184
CONFIGS = (
    Fp4GemmConfig(64, 32, stage_blocks=4),
    Fp4GemmConfig(64, 64, stage_blocks=2),
    Fp4GemmConfig(64, 128, feed_groups=2, tile_scales=True),
    Fp4GemmConfig(128, 64, stage_blocks=2),
    Fp4GemmConfig(128, 128, tile_scales=True),
    Fp4GemmConfig(128, 128, split_k=2),
    Fp4GemmConfig(256, 128),
    Fp4GemmConfig(256, 128, tile_scales=True),
    Fp4GemmConfig(256, 128, tile_scales=True, cluster_rows=2),
    Fp4SwappedConfig(64, 8, 4, scale_warps=3),
    Fp4SwappedConfig(64, 16, 3),
    Fp4SwappedConfig(64, 24, split_k=3, scale_warps=2),
    Fp4SwappedConfig(64, 64, 2, split_k=2),
    Fp4SwappedConfig(64, 128, 2),
    Fp4SwappedConfig(128, 40, 2, group=2),
    Fp4SwappedConfig(128, 128),
    Fp4SwappedConfig(192, 64, scale_warps=2),
    Fp4SwappedConfig(256, 16, split_k=4),
)


def described(config):
    """A pytest id."""
    if isinstance(config, Fp4SwappedConfig):
        return f"{config.rows}x{config.columns}-swap-groups{config.k_groups}-split{config.split_k}"
    return name(config) + "-late" * bool(config and config.tile_scales)


EVERY_CONFIG = pytest.mark.parametrize("config", [None, *CONFIGS], ids=described)
SCALES = pytest.mark.parametrize("use_ue8m0, recipe", KINDS.values(), ids=KINDS)


def run(a, b, config=None, **options):
    return native(functools.partial(fp8_fp4_gemm_nt, **options), a, b, config=config)(a, b)


@functools.cache
def problem(use_ue8m0, recipe):
    a, b = operands(M, N, K, use_ue8m0=use_ue8m0, recipe=recipe)
    return a, b, oracle(a, b, recipe=recipe)


@EVERY_CONFIG
@SCALES
def test_configurations(config, use_ue8m0, recipe):
    a, b, wanted = problem(use_ue8m0, recipe)
    c = jnp.asarray(np.random.default_rng(1).standard_normal((M, N)) * wanted.std(), jnp.float32)

    def both(a, b, c):
        return (
            fp8_fp4_gemm_nt(a, b, recipe=recipe),
            fp8_fp4_gemm_nt(a, b, c=c, out_dtype=jnp.float32, recipe=recipe),
        )

    narrow, wide = native(both, a, b, c, calls=2, config=config)(a, b, c)
    assert_close(narrow, wanted)
    assert_close(wide, wanted + np.asarray(c, np.float64))


@SCALES
@pytest.mark.parametrize("k", [32, 160, 416, 2048])
@pytest.mark.parametrize("m, n", [(1, 24), (3, 576), (77, 136), (129, 2112), (1000, 264)])
def test_odd_sizes(m, n, k, use_ue8m0, recipe):
    a, b = operands(m, n, k, use_ue8m0=use_ue8m0, recipe=recipe)
    assert_close(run(a, b, recipe=recipe, out_dtype=jnp.float32), oracle(a, b, recipe=recipe))


@pytest.mark.parametrize("k", [16, 48])
def test_k_of_16_runs_by_reference(k):
    a, b = operands(40, 136, k)
    d = native(functools.partial(fp8_fp4_gemm_nt, out_dtype=jnp.float32), a, b, calls=0)(a, b)
    assert_close(d, oracle(a, b))


@pytest.mark.parametrize("layout", GEMMS)
@pytest.mark.parametrize("packed", [False, True], ids=["float4", "uint8"])
def test_layouts(layout, packed):
    a, b = operands(40, 136, 416)
    given = laid_out(layout, a, b)
    given = given[0], in_bytes(given[1]) if packed else given[1]
    assert_close(native(GEMMS[layout], *given)(*given), oracle(a, b))


@pytest.mark.parametrize("m, n, k", [(0, 64, 128), (16, 0, 128), (16, 64, 0)])
def test_empty_problems_launch_nothing(m, n, k):
    a, b = operands(m, n, k)
    d = native(fp8_fp4_gemm_nt, a, b, calls=0)(a, b)
    assert d.shape == (m, n) and not jnp.any(d)


# --- scales of UE8M0 at the edges of their range -------------------------------------------------------------------

random = np.random.default_rng(3)
GROUPS = K // 32
EXPONENTS = {
    # In each row one group of four is larger, by less and by more than a table can carry.
    "every spread": 120 + (np.arange(GROUPS) % 4 == np.arange(N)[:, None] % 4) * (np.arange(N)[:, None] // 4 % 24),
    "lowest": random.integers(0, 14, (N, GROUPS)),
    "highest": random.integers(200, 215, (N, GROUPS)),
    "any": random.integers(70, 184, (N, GROUPS)),
    "one outlier in a tile": 120 + 30 * (np.arange(N * GROUPS) == 130 * GROUPS + 21).reshape(N, GROUPS),
}


@EVERY_CONFIG
@pytest.mark.parametrize("which", EXPONENTS)
def test_edges_of_scales(which, config):
    a, b, _ = problem(True, KINDS["ue8m0 by 32"][1])
    b = b._replace(scale=weights(np.zeros((N, K), np.uint8), EXPONENTS[which].astype(np.uint8)).scale)
    if which == "lowest":  # keeps the results normal numbers
        a = a._replace(scale=a.scale * 2.0**20)
    wanted = oracle(a, b)
    d = np.asarray(run(a, b, config, out_dtype=jnp.float32)).astype(np.float64)
    assert (np.linalg.norm(d - wanted, axis=0) < 1e-3 * np.linalg.norm(wanted, axis=0)).all()


@EVERY_CONFIG
def test_every_code_is_decoded_exactly(config):
    """A picks one value of B at a time, with tables of every exponent."""
    k, n = 256, 64
    codes = np.resize(np.arange(16, dtype=np.uint8), (n, k))
    codes = (codes + np.arange(n, dtype=np.uint8)[:, None]) % 16
    exponents = (100 + np.arange(n)[:, None] % 12 * (np.arange(k // 32) % 2)).astype(np.uint8)
    b = weights(codes, exponents)
    a, _ = operands(k, n, k)
    a = a._replace(data=jnp.eye(k).astype(jnp.float8_e4m3fn), scale=jnp.ones((k, k // 128)))
    wanted = VALUES[codes] * np.exp2(exponents.astype(np.float64) - 127).repeat(32, 1)
    np.testing.assert_array_equal(np.asarray(run(a, b, config, out_dtype=jnp.float32)), wanted.T)


@EVERY_CONFIG
@SCALES
def test_nan_stays_in_its_rows_and_columns(use_ue8m0, recipe, config):
    a, b, wanted = problem(use_ue8m0, recipe)
    spoiled = {
        "a": ((a._replace(data=a.data.at[257, 1183].set(jnp.nan)), b), np.s_[257, :]),
        "a's scale": ((a._replace(scale=a.scale.at[299, 9].set(jnp.nan)), b), np.s_[299, :]),
        "b's scale": ((a, b._replace(scale=b.scale.at[200, 5].set(jnp.nan))), np.s_[:, 200]),
        "b's last scale": ((a, b._replace(scale=b.scale.at[N - 1, -1].set(jnp.nan))), np.s_[:, N - 1]),
    }
    function = native(functools.partial(fp8_fp4_gemm_nt, recipe=recipe), a, b, config=config)
    for what, (pair, where) in spoiled.items():
        d = np.asarray(function(*pair)).astype(np.float64)
        assert np.isnan(d[where]).all(), what
        rest = np.ones(d.shape, bool)
        rest[where] = False
        assert relative_error(d[rest], wanted[rest]) < 2e-3, what


@EVERY_CONFIG
def test_repeats(config):
    a, b, _ = problem(True, KINDS["ue8m0 by 32"][1])
    assert all_same(native(fp8_fp4_gemm_nt, a, b, config=config).many(20, a, b))
