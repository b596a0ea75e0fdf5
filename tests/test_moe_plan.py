"""Launches that sort, copy, quantise and sum tokens: golden ones, what has none, and that each kernel compiles well."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jax_deepgemm.config import Config
from jax_deepgemm.launch import Kernel, Launch
from jax_deepgemm.ops import casting_plan, moe_plan
from jax_deepgemm.target import H100, Target
from tests.golden import Aval
from tests.kernels import check_resources, threads_of_cast

BF16, F16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
I32, FP8 = np.dtype(np.int32), np.dtype(ml_dtypes.float8_e4m3fn)
DTYPES = (BF16, F16, F32)
TARGET: dict[str, Any] = {"target": H100, "config": Config()}


def sort(tokens: int, top_k: int, experts: int, **changed: Any) -> Launch | None:
    avals: Any = [Aval((tokens, top_k), I32)]
    return moe_plan.sort_plan(avals, [], {"num_experts": experts}, **TARGET | changed)


def moves(
    kind: str, tokens: int, top_k: int, d: int, dtype: Any = BF16, weighted: bool = False, **changed: Any
) -> Launch | None:
    """kind: "permute", "permute_fp8", "unpermute" or "row_dots"."""
    x, y, rows = Aval((tokens, d), dtype), Aval((tokens * top_k, d), dtype), Aval((tokens, top_k), I32)
    weights = [Aval((tokens, top_k), F32)] * weighted
    avals, results = {
        "permute": ([x, rows, *weights], [y]),
        "permute_fp8": ([x, rows], [Aval(y.shape, FP8)]),
        "unpermute": ([y, rows, *weights], [x]),
        "row_dots": ([x, y, rows], []),
    }[kind]
    return getattr(moe_plan, f"{kind}_plan")(avals, results, {"smallest_amax": 1e-4}, **TARGET | changed)


def swiglu(rows: int, columns: int, dtype: Any = BF16, **changed: Any) -> Launch | None:
    avals: Any = [Aval((rows, 2 * columns), dtype)]
    results: Any = [Aval((rows, columns), FP8)]
    return casting_plan.swiglu_plan(avals, results, {"smallest_amax": 1e-4}, **TARGET | changed)


def stack(shape: tuple[int, int, int], straight: bool, turned: bool, dtype: Any = BF16) -> Launch | None:
    avals: Any = [Aval(shape, dtype)]
    params = {"straight": (128, 128) if straight else None, "turned": (128, 128) if turned else None}
    return casting_plan.plan(avals, [], params | {"use_ue8m0": False, "smallest_amax": 1e-4}, **TARGET)


def shape_of(planned: Launch | None) -> tuple[int, int, int]:
    assert planned is not None
    return planned.grid[0], planned.block[0], planned.shared_memory


@pytest.mark.parametrize(
    "sizes, grid, shared",
    [((4096, 8, 32), 128, 8712), ((128, 8, 256), 32, 67848), ((1, 1, 1), 1, 528), ((131072, 8, 1024), 132, 73800)],
)
def test_golden_sorts(sizes: tuple[int, int, int], grid: int, shared: int) -> None:
    assert shape_of(sort(*sizes)) == (grid, 1024, shared)


def test_every_copy_is_placed_once() -> None:
    for count in (1, 31, 33, 132, 4224, 4225, 100_000):
        planned = sort(count, 1, 8)
        assert planned is not None
        copies: Any = planned.arguments[-1]
        assert (planned.grid[0] - 1) * copies.value < count <= planned.grid[0] * copies.value


GOLDEN = {
    ("permute", 4096, 8, 7168): (4096, 256, {"kAccessBytes": 16, "kVectors": 4}),
    ("permute", 128, 8, 4096): (128, 256, {"kAccessBytes": 16, "kVectors": 2}),
    ("permute", 128, 8, 33): (128, 256, {"kAccessBytes": 2, "kVectors": 1}),
    ("permute_fp8", 4096, 8, 7168): (8192, 224, {"kTopK": 8}),
    ("permute_fp8", 4096, 6, 2048): (4096, 128, {"kTopK": 6}),
    ("permute_fp8", 4096, 8, 144): (4096, 32, {"kTopK": 8}),
    ("unpermute", 4096, 8, 7168): (16384, 256, {"kAccessBytes": 16, "kAtOnce": 8}),
    ("row_dots", 4096, 8, 7168): (4096, 256, {"kAccessBytes": 16}),
    ("row_dots", 5, 3, 10): (2, 256, {"kAccessBytes": 4}),
}


@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_golden_moves(case: Any) -> None:
    grid, threads, template = GOLDEN[case]
    planned = moves(*case)
    assert shape_of(planned) == (grid, threads, 0)
    assert planned is not None and template.items() <= dict(planned.kernel.template).items()


def test_swiglu_and_stacks() -> None:
    planned = swiglu(32768, 2048)
    assert shape_of(planned) == (1024 * 16, 128, 0)
    assert planned is not None and dict(planned.kernel.template)["kGated"] is True
    planned = stack((32, 4096, 7168), True, True)
    assert planned is not None and planned.grid == (32 * 56, 32, 1)
    assert stack((65536, 128, 128), True, False) is None


def test_what_has_no_launch() -> None:
    other: dict[str, Any] = {"target": Target("sm_100a", 148, H100.smem_bytes)}
    assert sort(8, 2, 4, **other) is None and sort(0, 2, 4) is None
    assert sort(8, 2, 1025) is None and sort(2**18, 8, 4) is None
    for kind in ("permute", "permute_fp8", "unpermute", "row_dots"):
        assert moves(kind, 8, 2, 64) is not None
        assert moves(kind, 8, 2, 64, **other) is None
        assert moves(kind, 0, 2, 64) is moves(kind, 8, 2, 0) is moves(kind, 8, 0, 64) is None
        assert moves(kind, 8, 65, 64) is None
    assert moves("permute_fp8", 8, 2, 72) is None
    assert swiglu(8, 64, **other) is swiglu(0, 64) is swiglu(8, 0) is None


def kernels() -> list[Kernel]:
    planned = [sort(4096, 8, 32)]
    for dtype, (top_k, d) in itertools.product(DTYPES, ((8, 7168), (3, 33), (20, 2050), (1, 36))):
        planned += [moves("permute", 64, top_k, d, dtype, w) for w in (False, True)]
        planned += [moves("unpermute", 64, top_k, d, dtype, w) for w in (False, True)]
        planned += [moves("row_dots", 64, top_k, d, dtype), moves("permute_fp8", 64, top_k, 7168, dtype)]
    for dtype, columns in itertools.product(DTYPES, (2048, 132, 1001)):
        planned.append(swiglu(300, columns, dtype))
    for dtype, straight in itertools.product(DTYPES, (False, True)):
        planned += [stack((3, 256, 400), straight, True, dtype), stack((3, 250, 401), straight, True, dtype)]
    assert all(planned)
    return list({p.kernel: None for p in planned if p})


def test_kernels_use_no_local_memory() -> None:
    def threads(kernel: Kernel) -> tuple[int, int]:
        own = dict(kernel.template).get("kThreads")
        return (int(own), 0) if own else threads_of_cast(kernel)

    check_resources(kernels(), threads)
