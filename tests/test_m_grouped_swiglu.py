"""The m-grouped FP8 GEMM whose result is gated and quantised: its reference, when it is taken, its launch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jax_deepgemm import Quantized, m_grouped_fp8_gemm_nt_contiguous
from jax_deepgemm.config import Config
from jax_deepgemm.launch import Launch
from jax_deepgemm.ops.m_grouped_fp8_gemm_swiglu import m_grouped_fp8_gemm_swiglu
from jax_deepgemm.ops.m_grouped_fp8_gemm_swiglu_plan import plan
from jax_deepgemm.ops.swiglu import swiglu_to_fp8
from jax_deepgemm.target import H100, Target
from tests import m_grouped
from tests.golden import Aval
from tests.kernels import check_resources, compile_layouts

BF16 = jnp.dtype(jnp.bfloat16)


@pytest.mark.parametrize("sizes, rest", [((130, 0, 170), 90), ((0, 0, 0), 384)])
def test_it_is_what_two_kernels_compute(sizes: tuple[int, ...], rest: int) -> None:
    a, b = m_grouped.operands(sum(sizes) + rest, 256, 144, len(sizes))
    ends = jnp.asarray(m_grouped.psum_of(sizes))
    got = jax.jit(m_grouped_fp8_gemm_swiglu, static_argnums=3)(a, b, ends, BF16)
    h = m_grouped_fp8_gemm_nt_contiguous(a, b, ends, use_psum_layout=True)
    for g, w in zip(got, swiglu_to_fp8(h), strict=True):
        np.testing.assert_array_equal(np.asarray(g, np.float32), np.asarray(w, np.float32))
    assert not np.asarray(got.data, np.float32)[sum(sizes) :].any()


def primitives(m: int, n: int, groups: int, dtype: Any) -> set[str]:
    aval = jax.ShapeDtypeStruct
    a = aval((m, 256), jnp.float8_e4m3fn), aval((m, 2), jnp.float32)
    b = aval((groups, n, 256), jnp.float8_e4m3fn), aval((groups, -(-n // 128), 2), jnp.float32)
    ends = aval((groups,), jnp.int32)

    def function(a: Any, b: Any, ends: Any) -> Any:
        return m_grouped_fp8_gemm_swiglu(Quantized(*a), Quantized(*b), ends, jnp.dtype(dtype))

    names = {equation.primitive.name for equation in jax.make_jaxpr(function)(a, b, ends).jaxpr.eqns}
    return {name.removeprefix("jax_deepgemm_") for name in names if name.startswith("jax_deepgemm_")}


def test_when_it_is_taken() -> None:
    two = {"m_grouped_fp8_gemm_nt_contiguous", "swiglu_to_fp8"}
    assert primitives(1024, 512, 8, BF16) == {"m_grouped_fp8_gemm_swiglu"}
    assert primitives(1023, 512, 8, BF16) == two  # few rows for tiles of 128
    assert primitives(1024, 384, 8, BF16) == two  # the gates end inside a scale
    assert primitives(1024, 512, 8, jnp.float32) == two


def launch(m: int, n: int, k: int, groups: int, **changed: Any) -> Launch | None:
    fp8, f32 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(np.float32)
    k_blocks = -(-k // 128)
    shapes = (m, k), (m, k_blocks), (groups, 2 * n, k), (groups, 2 * n // 128, k_blocks)
    operands: list[Any] = [Aval(shape, dtype) for shape, dtype in zip(shapes, (fp8, f32) * 2, strict=True)]
    ends: Any = Aval((groups,), np.dtype(np.int32))
    data: Any = Aval((m, n), fp8)
    return plan([*operands, ends], [data], {"smallest_amax": 1e-4}, changed.get("target", H100), Config())


LARGE, MANY = launch(32768, 2048, 7168, 32), launch(131072, 128, 144, 1000)


def test_golden_launches() -> None:
    assert LARGE is not None and MANY is not None
    assert (LARGE.grid, LARGE.block, LARGE.shared_memory) == ((132, 1, 1), (384, 1, 1), 217248 + 576)
    assert dict(LARGE.kernel.template) | {"kStages": 4, "kGroup": 16} == dict(LARGE.kernel.template)
    assert dict(MANY.kernel.template)["kStages"] == 3  # the table of groups takes the room


def test_what_has_no_launch() -> None:
    assert launch(32768, 2048, 7168, 1025) is None
    assert launch(32768, 2048 + 64, 7168, 4) is None
    assert launch(32768, 2048, 7160, 4) is None
    assert launch(0, 2048, 7168, 4) is None
    assert launch(32768, 2048, 7168, 4, target=Target("sm_100a", 148, H100.smem_bytes)) is None


def test_kernels_compile_well() -> None:
    planned = [p for p in (LARGE, MANY) if p is not None]
    check_resources([p.kernel for p in planned], lambda kernel: (384, 128 * (40 + 2 * 232)))
    expected = {p.kernel: p.shared_memory - (32 + 16 * (g + 1) + 16) for p, g in zip(planned, (32, 1000), strict=True)}
    compile_layouts(expected, lambda kernel, config: f"SwigluLayout<{config}>::kEnd")
