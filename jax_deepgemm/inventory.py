"""Every public operation with a small problem of it, and how that would run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import jax_deepgemm
from jax_deepgemm import checks
from jax_deepgemm.calls import calls
from jax_deepgemm.checks import Quantized
from jax_deepgemm.lowering import launch_of
from jax_deepgemm.target import Target

_BLOCKS, _BY_ROWS = ((1, 128), (128, 128)), ((1, 128), (1, 128))  # recipes
_LAYOUTS = ("nt", "nn", "tn", "tt")
_M, _N, _K, _G, _TOP = 64, 128, 256, 4, 2  # rows, columns, what is summed, groups, experts of a token


@dataclasses.dataclass(frozen=True)
class Problem:
    """Operands, of which shapes and dtypes count, and static arguments."""

    operands: tuple[Any, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _array(dtype: Any, *shape: int) -> Any:  # to be traced in the place of a jax.Array
    return jax.ShapeDtypeStruct(shape, dtype)


_bf16, _int32 = functools.partial(_array, jnp.bfloat16), functools.partial(_array, jnp.int32)


def _fp8(*shape: int, rows: int = 1) -> Any:
    return Quantized(_array(jnp.float8_e4m3fn, *shape), _array(jnp.float32, *checks.scale_shape(shape, (rows, 128))))


def _fp4(*shape: int) -> Any:
    return Quantized(_array(jnp.float4_e2m1fn, *shape), _array(jnp.float8_e8m0fnu, *checks.scale_shape(shape, (1, 32))))


_blocks = functools.partial(_fp8, rows=128)
_KINDS = {"fp8": (_fp8, _blocks), "fp8_fp4": (_fp8, _fp4), "bf16": (_bf16, _bf16)}  # of A, and of B


def _turned(x: Any) -> Any:
    """With the last two dimensions the other way round, as are those of its scale."""
    return jax.tree.map(lambda v: _array(v.dtype, *v.shape[:-2], v.shape[-1], v.shape[-2]), x)


def _laid_out(layout: str, a: Any, b: Any) -> tuple[Any, Any]:
    return a if layout[0] == "n" else _turned(a), b if layout[1] == "t" else _turned(b)


def _gemms() -> dict[str, Problem]:
    found = {}
    for kind, (a, b) in _KINDS.items():
        for layout in _LAYOUTS:
            found[f"{kind}_gemm_{layout}"] = Problem(_laid_out(layout, a(_M, _K), b(_N, _K)))
    for layout in _LAYOUTS:
        operands = _laid_out(layout, _fp8(_M, _K), _fp8(_N, _K))
        found[f"fp8_gemm_{layout} (1D1D)"] = Problem(operands, {"recipe": _BY_ROWS})
    for kind, (a, b) in _KINDS.items():
        for layout in ("nt", "nn"):
            operands = _laid_out(layout, a(_M, _K), b(_G, _N, _K))
            found[f"m_grouped_{kind}_gemm_{layout}_contiguous"] = Problem((*operands, _int32(_M)))
        operands = a(_G, _M, _K), b(_G, _N, _K), _int32(_G)
        found[f"m_grouped_{kind}_gemm_nt_masked"] = Problem(operands, {"expected_m": _M})
    return found


def _moe(first: Any, second: Any, **options: Any) -> Problem:
    weights = first(_G, 2 * _N, _K), second(_G, _K, _N)
    return Problem((_X, _int32(_M, _TOP), _array(jnp.float32, _M, _TOP), *weights), options)


_X, _W = _bf16(_M, _K), _bf16(_N, _K)
_RAGGED = Problem((_X, _bf16(_G, _K, _N), _int32(_G)))
_PERMUTATION = jax_deepgemm.MoePermutation(_int32(_M, _TOP), _int32(_G), _int32(_G))
# By the name of the function; what stands behind it tells several problems of one apart.
PROBLEMS = {
    **_gemms(),
    "fp8_gemm_nt_skip_head_mid": Problem((_fp8(_M, _K), _blocks(_N, _K)), {"head_splits": (64, 16, 64)}),
    "k_grouped_bf16_gemm_tn_contiguous": Problem((_bf16(_K, _M), _bf16(_K, _N), _int32(_G))),
    "k_grouped_fp8_gemm_tn_contiguous": Problem((_fp8(_M, _K), _fp8(_N, _K), _int32(_G))),
    "ragged_dot": _RAGGED,
    "ragged_dot (FP8)": dataclasses.replace(_RAGGED, options={"recipe": _BLOCKS}),
    "fp8_linear": Problem((_X, _W)),
    "fp8_dot_general": Problem((_X, _bf16(_K, _N)), {"dimension_numbers": (((1,), (0,)), ((), ()))}),
    "moe_mlp": _moe(_bf16, _bf16),
    "moe_mlp (FP8)": _moe(_bf16, _bf16, recipe=_BLOCKS),
    "moe_mlp (FP8 weights)": _moe(_blocks, _blocks),
    "moe_mlp (FP4 weights)": _moe(_fp4, _fp4),
    "moe_permute": Problem((_X, _int32(_M, _TOP)), {"num_experts": _G}),
    "moe_unpermute": Problem((_bf16(_M * _TOP, _K), _PERMUTATION)),
    "per_token_cast_to_fp8": Problem((_X,)),
    "per_block_cast_to_fp8": Problem((_W,)),
    "per_channel_cast_to_fp8": Problem((_bf16(_K, _M),)),
    "k_grouped_cast_to_fp8": Problem((_bf16(_K, _M), _int32(_G))),
    "per_token_cast_to_fp4": Problem((_W,)),
    "cast_back_from_fp8": Problem((_fp8(_M, _K),)),
    "cast_back_from_fp4": Problem((_fp4(_N, _K),)),
}


def runs_as(target: Target | None, obstacle: str | None) -> dict[str, str]:
    """How each operation runs: as kernels for `target`, or by reference, always if there is an `obstacle`, a reason.

    Each is traced, which finds the operations of ours that it is made of, and lowering decides about these.
    """
    found = {}
    for name, problem in PROBLEMS.items():
        function = functools.partial(getattr(jax_deepgemm, name.split()[0]), **problem.options)
        parts = list(calls(jax.make_jaxpr(function)(*problem.operands).jaxpr))
        native = [not obstacle and launch_of(c.op, *c.avals(), dict(c.params), target, c.settings)[0] for c in parts]
        if not parts:
            found[name] = "XLA: no kernel of its own yet"
        elif all(native):
            found[name] = "native kernel" if len(parts) == 1 else f"{len(parts)} native kernels"
        else:
            lacking = {part.op.name: None for part, launch in zip(parts, native, strict=True) if not launch}
            found[name] = f"reference: {obstacle or 'no kernel takes ' + ', '.join(lacking)}"
    return found
