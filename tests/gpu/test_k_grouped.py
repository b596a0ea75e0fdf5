"""The k-grouped GEMMs and their cast on a GPU: any sizes, neighbours, repeats, graphs. Results are written over NaN."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import (
    GemmConfig1d1d,
    k_grouped_bf16_gemm_tn_contiguous,
    k_grouped_cast_to_fp8,
    k_grouped_fp8_gemm_tn_contiguous,
    set_num_sms,
)
from jax_deepgemm.heuristics.k_grouped_config import KGroupedBf16Config
from tests.gpu.casts import same_apart_from_nan, values
from tests.gpu.configurations import name
from tests.gpu.native import native
from tests.helpers import assert_close
from tests.k_grouped import SIZES, bounds, matrices, oracle, quantised_oracle, sizes

pytestmark = pytest.mark.gpu

F32, BF16 = jnp.float32, jnp.bfloat16
KINDS = pytest.mark.parametrize("kind", ["fp8", "bf16"])
EVERY = pytest.mark.parametrize("ks, k", [(s, k) for s, k in SIZES.values() if k and s], ids=str)
CONFIGURATIONS = (
    KGroupedBf16Config(64, 64),
    KGroupedBf16Config(64, 256, eager=True),
    KGroupedBf16Config(128, 256),
    KGroupedBf16Config(192, 192),
    KGroupedBf16Config(192, 64, group=1),
    GemmConfig1d1d(64, 64, ahead=2),
    GemmConfig1d1d(64, 160, ahead=1),
    GemmConfig1d1d(128, 96, ahead=2),
    GemmConfig1d1d(128, 128, ahead=1),
    GemmConfig1d1d(128, 192),
    GemmConfig1d1d(256, 128, ahead=1),
)
# What was wrong in other kernels: a descriptor rewritten while it was in use, clusters over two groups.
REPORTED = [(256, 128, 128, 256), (128, 256), (384, 256)]


def given(kind: str, m: int, n: int, ks: Any, k: int) -> tuple[list[Any], np.ndarray]:
    """Operands of the GEMM, and its float64 oracle."""
    a, b = matrices(m, n, k)
    if kind == "bf16":
        return [a, b], oracle(a, b, ks)
    pairs = [jax.device_get(k_grouped_cast_to_fp8(x, sizes(ks))) for x in (a, b)]
    return [jax.device_put(p) for p in pairs], quantised_oracle(*pairs, ks, k)


def gemm(kind: str) -> Any:
    return k_grouped_bf16_gemm_tn_contiguous if kind == "bf16" else k_grouped_fp8_gemm_tn_contiguous


def kind_of(config: Any) -> str:
    return "bf16" if isinstance(config, KGroupedBf16Config) else "fp8"


cast = jax.jit(k_grouped_cast_to_fp8)


def check(d: Any, wanted: np.ndarray) -> None:
    for mine, right in zip(np.asarray(d), wanted, strict=True):
        if right.any():
            assert_close(mine, right)
        else:
            assert not np.any(mine)


@KINDS
@EVERY
def test_sizes(kind, ks, k):
    operands, wanted = given(kind, 136, 264, ks, k)
    c = jax.random.normal(jax.random.key(1), wanted.shape)
    config: Any = KGroupedBf16Config(128, 256) if kind == "bf16" else GemmConfig1d1d(256, 128, ahead=1)

    def four_ways(a, b, ks, c, narrow):
        run = functools.partial(gemm(kind), config=config)
        return run(a, b, ks), run(a, b, ks, out_dtype=BF16), run(a, b, ks, c), run(a, b, ks, narrow, out_dtype=BF16)

    args = *operands, sizes(ks), c, c.astype(BF16)
    plain, narrow, added, narrow_added = native(four_ways, *args, calls=4)(*args)
    check(plain, wanted)
    check(narrow, wanted)
    check(added, wanted + np.asarray(c, np.float64))
    check(narrow_added, wanted + np.asarray(c.astype(BF16), np.float64))


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=name)
def test_configuration(config):
    """With an SM for every tile; and with so few that each CTA walks many groups."""
    kind, ks = kind_of(config), (77, 0, 300, 5, 128)
    operands, wanted = given(kind, 296, 616, ks, 600)
    run = functools.partial(gemm(kind), config=config)

    def both(a, b, ks):
        with set_num_sms(3):
            few = run(a, b, ks)
        return run(a, b, ks), few

    args = *operands, sizes(ks)
    for d in native(both, *args, calls=2)(*args):
        check(d, wanted)


@KINDS
@pytest.mark.parametrize("ks", [(77, 300, 5), (16, 128, 1, 63, 65), (3, 2, 1, 5)], ids=str)
def test_neighbours_stay_out(kind, ks):
    """NaN in one group, and in the rows of none, reaches no other."""
    k = sum(ks) + 50
    given_operands, wanted = given(kind, 136, 264, ks, k)
    run = native(gemm(kind), *given_operands, sizes(ks))
    for poisoned in range(len(ks)):
        a, b = (np.array(x) for x in matrices(136, 264, k))
        start, end = bounds(ks, k)[poisoned]
        for x in (a, b):
            x[start:end] = x[sum(ks) :] = np.nan
        operands = [jnp.asarray(x) for x in (a, b)]
        if kind == "fp8":
            operands = [cast(x, sizes(ks)) for x in operands]
        d = run(*operands, sizes(ks))
        assert np.isnan(np.asarray(d[poisoned])).all()
        check(np.delete(np.asarray(d), poisoned, 0), np.delete(wanted, poisoned, 0))


@KINDS
@pytest.mark.parametrize("m, n", [(192, 3072), (1408, 1408)])
@pytest.mark.parametrize("ks", REPORTED, ids=str)
def test_the_same_bits_every_time(kind, m, n, ks):
    operands, wanted = given(kind, m, n, ks, sum(ks))
    first = native(gemm(kind), *operands, sizes(ks))(*operands, sizes(ks))
    check(first, wanted)

    @jax.jit
    def different(first, a, b, ks):
        bits = (jax.lax.bitcast_convert_type(x, jnp.int32) for x in (first, gemm(kind)(a, b, ks)))
        return jnp.sum(jnp.not_equal(*bits))

    found = [different(first, *operands, sizes(ks)) for _ in range(2000)]
    assert not np.any(jnp.stack(found))


@KINDS
def test_256_groups_of_one_row(kind):
    ks = (1,) * 256
    operands, wanted = given(kind, 264, 520, ks, 256)
    d = native(gemm(kind), *operands, sizes(ks))(*operands, sizes(ks))
    check(d, wanted)


@KINDS
def test_a_result_of_more_than_2_31_elements(kind):
    ks = (3, 40, 0, 7) * 10
    operands, wanted = given(kind, 8, 8, ks, 500)
    repeats = (1, 1000) if kind == "bf16" else (1000, 1)
    a, b = jax.tree.map(lambda x: jnp.tile(x, repeats), operands)
    d = jax.jit(gemm(kind))(a, b, sizes(ks))  # NaN for all of it would come from the host
    assert d.size > 2**31
    for part in (d[:, :8, :8], d[:, -8:, -8:], d[:, 4000:4008, :8]):
        check(part, wanted)


@KINDS
def test_sizes_change_between_replays(kind):
    """One program, a command buffer of five launches or more, for whatever sizes."""
    a, b = matrices(136, 264, 500)

    def five(a, b, ks):
        operands = (a, b) if kind == "bf16" else tuple(k_grouped_cast_to_fp8(x, ks) for x in (a, b))
        d = gemm(kind)(*operands, ks)
        for _ in range(4):
            d = gemm(kind)(*operands, ks, d)
        return d

    run = jax.jit(five)
    for ks in ((100, 200, 100, 100), (0, 500, 0, 0), (1, 2, 3, 4), (130, 0, 370, 9), (-4, 2**31 - 1, 7, 8)) * 2:
        wanted = 5 * oracle(a, b, ks)
        for mine, right in zip(np.asarray(run(a, b, sizes(ks))), wanted, strict=True):
            error = np.linalg.norm(mine - right) / max(np.linalg.norm(right), 1)
            assert error < (1e-5 if kind == "bf16" else 0.05)


def check_cast(ks, k, columns, dtype):
    x = jnp.asarray(values((k, columns), dtype))

    def both(x, ks):
        return k_grouped_cast_to_fp8(x, ks), k_grouped_cast_to_fp8(x, ks, use_ue8m0=True)

    got = native(both, x, sizes(ks), calls=2)(x, sizes(ks))
    wanted = jax.jit(both)(*jax.device_put((x, sizes(ks)), jax.devices("cpu")[0]))
    for mine, right in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert same_apart_from_nan(mine, right)


@EVERY
def test_the_cast_has_the_bits_of_the_reference(ks, k):
    check_cast(ks, max(k, 8), 264, BF16)


@pytest.mark.parametrize("dtype", [BF16, jnp.float16, F32])
def test_the_cast_of_every_dtype_and_of_odd_columns(dtype):
    check_cast((77, 0, 300, 5, 128), 600, 77, dtype)
