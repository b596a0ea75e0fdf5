"""Runs kernels on the CPU: `emulated` for operations, `emulate` for one launch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jax_deepgemm import primitive
from jax_deepgemm.lowering import kernel_operands
from jax_deepgemm.op import Op
from jax_deepgemm.target import H100, Target
from tests.emulator.emulate import Changes, emulate

# Few processors, so that each has several tiles; rings of few stages, which go round often.
SMALL = dataclasses.replace(H100, num_sms=2, smem_bytes=128 * 1024)


@contextlib.contextmanager
def emulated(*, target: Target = SMALL, seed: int = 0, changes: Changes = ()) -> Iterator[list[str]]:
    """In the block every operation runs by its kernel's source, in an emulation; yields the names of kernels so far."""
    kernels: list[str] = []

    def jitted(which: Any, items: Any) -> Callable[..., Any]:
        params = dict(items)
        settings = params.pop("settings")
        del params["partitioned"]

        def call(*operands: Any) -> list[jax.Array]:
            op = primitive.OPS[which]
            avals = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
            results = list(op.abstract_eval(avals, **params))
            launch = op.plan(avals, results, params, settings.target or target, settings)
            assert launch is not None, f"no kernel takes {op.name}"
            kernels.append(launch.kernel.stem)
            return _run(op, launch, operands, avals, results, params, seed=seed, changes=changes)

        return call

    with jax.disable_jit(), mock.patch.object(primitive, "_jitted", jitted):
        yield kernels


def _run(
    op: Op, launch: Any, operands: Sequence[Any], avals: Any, results: Sequence[Any], params: Any, **keywords: Any
) -> list[jax.Array]:
    """With operands and results laid out in memory as the operation asks for it."""
    values, types, layouts, aliases = kernel_operands(op, operands, avals, params, lambda x: x)
    laid_out = [np.asarray(x).transpose(order) for x, order in zip(values, _orders(layouts, types), strict=True)]
    orders = _orders(op.result_layouts and op.result_layouts(avals, params), results)
    shapes = [_in_memory([r.shape[d] for d in order], r.dtype) for r, order in zip(results, orders, strict=True)]
    written = emulate(launch, laid_out, shapes, aliases=aliases or None, **keywords)
    values = [_unpacked(x, r.dtype) for x, r in zip(written, results, strict=True)]
    return [jnp.asarray(x.transpose(np.argsort(order))) for x, order in zip(values, orders, strict=True)]


def _in_memory(shape: Sequence[int], dtype: Any) -> tuple[Sequence[int], Any]:
    """Shape and dtype of an array as a GPU has it: FP4 two to a byte."""
    return ((*shape[:-1], shape[-1] // 2), np.uint8) if dtype == jnp.float4_e2m1fn else (shape, dtype)


def _unpacked(x: np.ndarray, dtype: Any) -> np.ndarray:
    if dtype != jnp.float4_e2m1fn:
        return x
    codes = np.stack([x & 15, x >> 4], axis=-1).reshape(*x.shape[:-1], -1)
    return codes.view(np.dtype(dtype))


def _orders(layouts: Any, arrays: Sequence[Any]) -> list[tuple[int, ...]]:
    """Of each array its dimensions from major to minor."""
    return [
        tuple(range(len(x.shape))) if layout is None else tuple(reversed(layout))
        for x, layout in zip(arrays, layouts or [None] * len(arrays), strict=True)
    ]
