"""Launches of the cast to FP4: golden ones, what has none, and that each kernel compiles well."""

from __future__ import annotations

import itertools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jax_deepgemm.config import Config
from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar
from jax_deepgemm.ops.casting_plan import MAX_EXTENT
from jax_deepgemm.ops.fp4_casting_plan import plan
from jax_deepgemm.target import H100, Target
from tests.golden import Aval
from tests.kernels import check_resources

BF16, F16, F32 = DTYPES = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32))


def launch(
    shape: tuple[int, int],
    dtype: Any = BF16,
    gran_k: int = 32,
    *,
    use_ue8m0: bool = False,
    target: Target = H100,
    pdl: bool = True,
) -> Launch | None:
    params = {"gran_k": gran_k, "use_ue8m0": use_ue8m0}
    return plan([Aval(shape, dtype)], [], params, target, Config(pdl=pdl))


# Shape, dtype -> grid, elements of an access.
GOLDEN = {
    ((8192, 7168), BF16): (512 * 28, 8),
    ((4096, 4096), F32): (256 * 16, 4),
    ((128, 7168), F16): (8 * 28, 8),
    ((1, 7168), BF16): (28, 8),
    ((129, 1002), BF16): (9 * 4, 2),
    ((17, 132), F32): (2, 4),
    ((1, 2), BF16): (1, 2),
}


@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_golden_launches(case: Any) -> None:
    for gran_k, use_ue8m0 in itertools.product((32, 128), (False, True)):
        planned = launch(*case, gran_k, use_ue8m0=use_ue8m0)
        assert planned is not None
        template = dict(planned.kernel.template)
        assert (planned.grid, template["kLoad"]) == ((GOLDEN[case][0], 1, 1), GOLDEN[case][1])
        assert (planned.block, planned.shared_memory) == ((128, 1, 1), 0)
        assert (template["kScaleColumns"], template["Scale"]) == (gran_k, "u8" if use_ue8m0 else "float")
        sizes = (*(Scalar(size, "uint32") for size in case[0]), Scalar(1e-4, "float32"))
        assert planned.arguments == (Pointer(0), Pointer(1), Pointer(2), *sizes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_accesses_divide_their_rows(dtype: Any) -> None:
    for columns in range(2, 70, 2):
        planned = launch((3, columns), dtype)
        assert planned is not None
        assert dict(planned.kernel.template)["kLoad"] == math.gcd(columns, 16 // dtype.itemsize)


def test_pdl_is_the_settings() -> None:
    for pdl in (False, True):
        planned = launch((8, 128), pdl=pdl)
        assert planned is not None and planned.pdl is pdl


@pytest.mark.parametrize("shape", [(0, 128), (3, 0), (4, 33), (2**31, 2), (2, 2**31), (MAX_EXTENT, MAX_EXTENT)])
def test_what_has_no_launch(shape: tuple[int, int]) -> None:
    """Nothing, rows that share a byte, more than is counted, more CTAs than a grid has."""
    assert launch(shape) is None
    assert launch((MAX_EXTENT, 2)) is not None and launch((1, MAX_EXTENT)) is not None


def test_other_gpus_have_no_launch() -> None:
    assert launch((256, 256), target=Target("sm_100a", 148, H100.smem_bytes)) is None


def test_kernels_use_no_local_memory() -> None:
    """Of every dtype, granularity and width of access, with either dtype of scales in turns."""
    kernels: dict[Kernel, None] = {}
    for index, (columns, gran_k, dtype) in enumerate(itertools.product((256, 252, 250), (32, 128), DTYPES)):
        planned = launch((77, columns), dtype, gran_k, use_ue8m0=index % 2 > 0)
        assert planned is not None
        kernels[planned.kernel] = None
    check_resources(list(kernels), lambda kernel: (128, 0))
