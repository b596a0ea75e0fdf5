"""Launches of the casts to FP8: golden ones, what has none, and that each kernel compiles well."""

from __future__ import annotations

import itertools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jax_deepgemm.config import Config
from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar
from jax_deepgemm.ops.casting_plan import GRANULARITIES, MAX_EXTENT, plan
from jax_deepgemm.target import H100, Target
from tests.cases import CASTS
from tests.golden import Aval
from tests.kernels import check_resources, threads_of_cast

TOKEN, BLOCK, CHANNEL = (1, 128), (128, 128), (128, 1)
DTYPES = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32))
SUPPORTED = (
    *((((1, g)), None) for g in GRANULARITIES),
    (BLOCK, None),
    (None, CHANNEL),
    (None, BLOCK),
    (TOKEN, CHANNEL),
    (BLOCK, BLOCK),
)


def launch(
    shape: tuple[int, int],
    straight: Any = TOKEN,
    turned: Any = None,
    *,
    dtype: Any = DTYPES[0],
    use_ue8m0: bool = False,
    target: Target = H100,
    pdl: bool = True,
) -> Launch | None:
    params = {"straight": straight, "turned": turned, "use_ue8m0": use_ue8m0, "smallest_amax": 1e-4}
    return plan([Aval(shape, np.dtype(dtype))], [], params, target, Config(pdl=pdl))


# Shape, blocks -> grid, threads, elements of an access to `x` and to turned data.
GOLDEN = {
    ((8192, 7168), TOKEN, None): (256 * 56, 128, 8, 1),
    ((8192, 7168), BLOCK, None): (64 * 56, 512, 8, 1),
    ((8192, 7168), None, CHANNEL): (64 * 56, 256, 8, 16),
    ((8192, 7168), TOKEN, CHANNEL): (64 * 56, 256, 8, 16),
    ((1, 7168), TOKEN, None): (56, 128, 8, 1),
    ((128, 7168), TOKEN, None): (4 * 56, 128, 8, 1),
    ((128, 7168), (1, 32), None): (4 * 56, 128, 8, 1),
    ((129, 1002), None, CHANNEL): (2 * 8, 512, 2, 1),
    ((132, 1001), BLOCK, BLOCK): (2 * 8, 512, 1, 4),
}


@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_golden_launches(case: Any) -> None:
    planned = launch(*case)
    assert planned is not None
    template = dict(planned.kernel.template)
    assert (planned.grid[0], planned.block[0], template["kLoad"], template["kStore"]) == GOLDEN[case]
    assert planned.grid[1:] == planned.block[1:] == (1, 1) and planned.shared_memory == 0
    straight, turned = case[1:]
    assert template["kStraight"] is (straight is not None) and template["kTurned"] is (turned is not None)
    assert template["kBlock"] is (BLOCK in (straight, turned))


def test_arguments() -> None:
    for straight, turned, results in ((TOKEN, None, [1, 2, 1, 2]), (TOKEN, CHANNEL, [1, 2, 3, 4])):
        planned = launch((300, 200), straight, turned)
        assert planned is not None
        sizes = (Scalar(300, "uint32"), Scalar(200, "uint32"), Scalar(1e-4, "float32"))
        assert planned.arguments == (Pointer(0), *map(Pointer, results), *sizes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_accesses_divide_their_rows(dtype: Any) -> None:
    for rows, columns in itertools.product(range(1, 70), repeat=2):
        planned = launch((rows, columns), None, CHANNEL, dtype=dtype)
        assert planned is not None
        template: Any = dict(planned.kernel.template)
        assert columns % template["kLoad"] == 0 and template["kLoad"] == math.gcd(columns, 16 // dtype.itemsize)
        assert rows % template["kStore"] == 0 and template["kStore"] == math.gcd(rows, 16)


def test_pdl_is_the_settings() -> None:
    for pdl in (False, True):
        planned = launch((8, 128), pdl=pdl)
        assert planned is not None and planned.pdl is pdl


@pytest.mark.parametrize("shape", [(0, 128), (3, 0), (2**31, 1), (1, 2**31)])
def test_empty_and_endless_matrices_have_no_launch(shape: tuple[int, int]) -> None:
    assert launch(shape) is None
    assert launch((MAX_EXTENT, 1)) is not None and launch((1, MAX_EXTENT)) is not None
    assert launch((MAX_EXTENT, MAX_EXTENT)) is None  # more CTAs than a grid has


@pytest.mark.parametrize(
    "straight, turned",
    [((1, 100), None), ((1, 256), None), ((16, 64), None), (None, (64, 1)), ((1, 64), CHANNEL), (BLOCK, CHANNEL)],
)
def test_other_blocks_have_no_launch(straight: Any, turned: Any) -> None:
    assert launch((256, 256), straight, turned) is None


def test_other_gpus_have_no_launch() -> None:
    assert launch((256, 256), target=Target("sm_100a", 148, H100.smem_bytes)) is None


def kernels() -> list[Kernel]:
    """Of every kind, dtype and width of access, with either dtype of scales in turns."""
    shapes = [(r, c) for r, c in itertools.product((256, 136, 100, 101), (256, 260, 130, 131))]
    shapes = [(case.m, case.k) for case in CASTS if case.op.endswith("fp8")] + shapes[:: 1 + len(shapes) // 8]
    found = {}
    for indices in itertools.product(*(range(len(each)) for each in (shapes, SUPPORTED, DTYPES))):
        shape, (straight, turned), dtype = (x[i] for x, i in zip((shapes, SUPPORTED, DTYPES), indices, strict=True))
        planned = launch(shape, straight, turned, dtype=dtype, use_ue8m0=sum(indices) % 2 > 0)
        assert planned is not None
        found[planned.kernel] = None
    return list(found)


def test_kernels_use_no_local_memory() -> None:
    check_resources(kernels(), threads_of_cast)
