"""The launches that sort tokens by expert, copy their rows there and sum them back: `cuda/kernels/sm90_moe_*.cuh`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar

if TYPE_CHECKING:
    from jax_deepgemm.config import Config
    from jax_deepgemm.op import Shaped
    from jax_deepgemm.target import Target

MOST_EXPERTS = 1024  # counted in shared memory
MOST_COPIES = 2**20  # each CTA of the sort reads all of them
_MOST_TOP_K = 64  # a copy's place is compile-time
_SORT_THREADS = 1024
_SORT_COUNTERS = 72 * 1024  # bytes
_ROW_THREADS = 256
_INPUTS = {"bfloat16": "bf16", "float16": "f16", "float32": "float"}


def sort_plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for the operand `experts`, or None where it is empty, or large enough for XLA's sort."""
    del out_avals
    count, groups = math.prod(avals[0].shape), params["num_experts"]
    if target.arch != "sm_90a" or not 0 < count <= MOST_COPIES or groups > MOST_EXPERTS:
        return None
    copies = _ceil_to(-(-count // target.num_sms), 32)
    counters = next(n for n in (32, 16, 8, 4) if 8 * n * (groups + 1) <= _SORT_COUNTERS)
    return Launch(
        kernel=Kernel("sm90_moe_sort", (("kThreads", _SORT_THREADS), ("kCopies", counters))),
        grid=(-(-count // copies), 1, 1),
        block=(_SORT_THREADS, 1, 1),
        shared_memory=8 * (groups + 1) * (counters + 1),
        pdl=config.pdl,
        arguments=(*map(Pointer, range(4)), *(Scalar(v, "uint32") for v in (count, groups, copies))),
    )


def permute_plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for the operands x, rows and, if there are any, weights."""
    x, rows, *weights = avals
    (y,) = out_avals
    if not _supported(target, x, rows, y.shape[0]):
        return None
    row_bytes, top_k = _row_bytes(x), rows.shape[1]
    access = _access(row_bytes)
    vectors = min(4, -(-row_bytes // access // _ROW_THREADS) or 1)
    pieces = -(-row_bytes // (access * vectors * _ROW_THREADS))
    if x.shape[0] * pieces >= 2**31:
        return None
    template: tuple[tuple[str, int | bool | str], ...] = (
        ("In", _INPUTS[np.dtype(x.dtype).name]),
        ("kThreads", _ROW_THREADS),
        ("kAccessBytes", access),
        ("kVectors", vectors),
        ("kTopK", top_k),
        ("kUnroll", min(top_k, 8)),
        ("kWeighted", bool(weights)),
    )
    operands = (0, 1, 2) if weights else (0, 1, 1)
    return Launch(
        kernel=Kernel("sm90_moe_permute", template),
        grid=(x.shape[0] * pieces, 1, 1),
        block=(_ROW_THREADS, 1, 1),
        pdl=config.pdl,
        arguments=(
            *map(Pointer, operands),
            Pointer(len(avals)),
            *(Scalar(v, "uint32") for v in (row_bytes, pieces, y.shape[0])),
        ),
    )


def permute_fp8_plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for the operands x and rows."""
    x, rows = avals
    columns = x.shape[1]
    if not _supported(target, x, rows, out_avals[0].shape[0]) or columns % 16:
        return None
    blocks = -(-columns // 128)
    pieces = -(-blocks // 32)
    threads = _ceil_to(-(-blocks // pieces) * 8, 32)
    if x.shape[0] * pieces >= 2**31:
        return None
    template: tuple[tuple[str, int | bool | str], ...] = (
        ("In", _INPUTS[np.dtype(x.dtype).name]),
        ("kThreads", threads),
        ("kTopK", rows.shape[1]),
        ("kUnroll", min(rows.shape[1], 8)),
    )
    return Launch(
        kernel=Kernel("sm90_moe_permute_fp8", template),
        grid=(x.shape[0] * pieces, 1, 1),
        block=(threads, 1, 1),
        pdl=config.pdl,
        arguments=(
            *map(Pointer, range(4)),
            *(Scalar(v, "uint32") for v in (columns, pieces, out_avals[0].shape[0])),
            Scalar(params["smallest_amax"], "float32"),
        ),
    )


def unpermute_plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for the operands y, rows and, if there are any, weights."""
    y, rows, *weights = avals
    (out,) = out_avals
    if not _supported(target, out, rows, y.shape[0]):
        return None
    row_bytes, top_k = _row_bytes(y), rows.shape[1]
    access = _access(row_bytes)
    pieces = -(-row_bytes // (access * _ROW_THREADS))
    if out.shape[0] * pieces >= 2**31:
        return None
    template: tuple[tuple[str, int | bool | str], ...] = (
        ("In", _INPUTS[np.dtype(y.dtype).name]),
        ("kThreads", _ROW_THREADS),
        ("kAccessBytes", access),
        ("kVectors", 1),
        ("kTopK", top_k),
        ("kAtOnce", min(top_k, 8)),
        ("kWeighted", bool(weights)),
    )
    operands = (0, 1, 2) if weights else (0, 1, 1)
    return Launch(
        kernel=Kernel("sm90_moe_unpermute", template),
        grid=(out.shape[0] * pieces, 1, 1),
        block=(_ROW_THREADS, 1, 1),
        pdl=config.pdl,
        arguments=(
            *map(Pointer, operands),
            Pointer(len(avals)),
            *(Scalar(v, "uint32") for v in (row_bytes, pieces, y.shape[0])),
        ),
    )


def row_dots_plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for the operands x, y and rows."""
    del out_avals
    x, y, rows = avals
    if not _supported(target, x, rows, y.shape[0]):
        return None
    copies, row_bytes = math.prod(rows.shape), _row_bytes(x)
    template: tuple[tuple[str, int | bool | str], ...] = (
        ("In", _INPUTS[np.dtype(x.dtype).name]),
        ("kThreads", _ROW_THREADS),
        ("kAccessBytes", _access(row_bytes)),
        ("kTopK", rows.shape[1]),
    )
    return Launch(
        kernel=Kernel("sm90_moe_row_dots", template),
        grid=(-(-copies // (_ROW_THREADS // 32)), 1, 1),
        block=(_ROW_THREADS, 1, 1),
        pdl=config.pdl,
        arguments=(*map(Pointer, range(4)), *(Scalar(v, "uint32") for v in (copies, row_bytes, y.shape[0]))),
    )


def _supported(target: Target, x: Shaped, rows: Shaped, sorted_rows: int) -> bool:
    """x: an array of tokens. Nothing is launched for empty ones, and rows and copies are counted in 31 bits."""
    tokens, columns = x.shape
    return (
        target.arch == "sm_90a"
        and np.dtype(x.dtype).name in _INPUTS
        and 0 not in (tokens, columns, rows.shape[1])
        and rows.shape[1] <= _MOST_TOP_K
        and max(math.prod(rows.shape), sorted_rows, _row_bytes(x)) < 2**31
    )


def _row_bytes(x: Shaped) -> int:
    return x.shape[1] * np.dtype(x.dtype).itemsize


def _access(row_bytes: int) -> int:
    """Bytes of one access: the largest power of two up to 16 that divides a row."""
    return min(16, row_bytes & -row_bytes)


def _ceil_to(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
