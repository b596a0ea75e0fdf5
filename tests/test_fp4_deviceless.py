"""What XLA makes of the GEMM with FP4 weights for a GPU that is not there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jax_deepgemm import cast_back_from_fp4, fp8_fp4_gemm_nt, per_token_cast_to_fp4, per_token_cast_to_fp8
from jax_deepgemm.ops.fp4_casting import packed
from tests.deviceless import LAUNCH, computations, moves, opcode
from tests.fp4 import GEMMS, KINDS
from tests.test_deviceless import compiled, shapes, turned

M, N, K = 256, 1024, 1024
DATA = jax.ShapeDtypeStruct((M, K), jnp.float8_e4m3fn)
TRANSPOSED = jax.ShapeDtypeStruct((K // 128, M), jnp.float32)  # A's scales with M fastest
FLOAT4, BYTES = jax.ShapeDtypeStruct((N, K), jnp.float4_e2m1fn), jax.ShapeDtypeStruct((N, K // 2), jnp.uint8)
C = jax.ShapeDtypeStruct((M, N), jnp.float32)


def scales(use_ue8m0, recipe, k=K):
    dtype = jnp.float8_e8m0fnu if use_ue8m0 else jnp.float32
    return jax.ShapeDtypeStruct((N, -(-k // recipe[1][1])), dtype)


@pytest.mark.parametrize("data", [FLOAT4, BYTES], ids=["float4", "uint8"])
@pytest.mark.parametrize("use_ue8m0, recipe", KINDS.values(), ids=KINDS)
def test_weights_are_taken_as_they_are(data, use_ue8m0, recipe):
    def function(a, a_scale, b, b_scale):
        return fp8_fp4_gemm_nt((a, a_scale.T), (b, b_scale), recipe=recipe)

    program = compiled(function, DATA, TRANSPOSED, data, scales(use_ue8m0, recipe))
    assert {opcode(i) for i in computations(program)["ENTRY"]} == {"parameter", "bitcast", "custom-call"}
    assert program.count(LAUNCH) == 1


def test_a_donated_c_becomes_the_result():
    def function(a, a_scale, b, b_scale, c):
        return fp8_fp4_gemm_nt((a, a_scale.T), (b, b_scale), c=c, out_dtype=jnp.float32)

    args = DATA, TRANSPOSED, FLOAT4, scales(*KINDS["ue8m0 by 32"]), C
    program = compiled(function, *args, donate=[4])
    assert program.count(LAUNCH) == 1 and moves(program) == []
    assert "output_to_operand_aliasing={{}: (4, {})}" in program


def test_nothing_is_moved_after_casts():
    def function(x, w):
        return fp8_fp4_gemm_nt(per_token_cast_to_fp8(x), per_token_cast_to_fp4(w, use_ue8m0=True))

    program = compiled(function, *(jax.ShapeDtypeStruct((r, K), jnp.bfloat16) for r in (M, N)))
    assert program.count('kernel = "sm90_fp8_fp4_gemm"') == 1 and program.count(LAUNCH) == 3
    entry = {opcode(i) for i in computations(program)["ENTRY"]}
    assert entry == {"parameter", "bitcast", "get-tuple-element", "custom-call"}


@pytest.mark.parametrize("use_ue8m0", [False, True])
@pytest.mark.parametrize("gran_k", [32, 128])
def test_the_cast_is_one_launch_that_writes_packed_data(gran_k, use_ue8m0):
    def function(x):
        data, scale = per_token_cast_to_fp4(x, gran_k=gran_k, use_ue8m0=use_ue8m0)
        return packed(data), scale

    program = compiled(function, jax.ShapeDtypeStruct((M, 1000), jnp.bfloat16))
    entry = [opcode(i) for i in computations(program)["ENTRY"]]
    assert entry.count("custom-call") == 1
    assert set(entry) == {"parameter", "bitcast", "get-tuple-element", "tuple", "custom-call"}
    assert "f4e2m1fn[256,1000]{1,0:E(4)}" in program and "u8[256,500]" in program


def test_casts_of_a_stack_are_one_launch():
    def function(w):
        return jax.vmap(per_token_cast_to_fp4)(w)

    program = compiled(function, jax.ShapeDtypeStruct((3, 77, 160), jnp.float32))
    assert program.count(LAUNCH) == 1 and moves(program) == []


def test_an_odd_k_is_cast_by_reference():
    program = compiled(per_token_cast_to_fp4, jax.ShapeDtypeStruct((M, 33), jnp.bfloat16))
    assert LAUNCH not in program


@pytest.mark.parametrize("data", [FLOAT4, BYTES], ids=["float4", "uint8"])
def test_weights_with_n_contiguous_are_transposed_once(data):
    """Packed as they are."""
    scale = turned(scales(*KINDS["ue8m0 by 32"]))
    shape = (K, N) if data is FLOAT4 else (K, N // 2)
    b = jax.ShapeDtypeStruct(shape, data.dtype), scale

    def function(a, a_scale, b):
        return GEMMS["nn"]((a, a_scale.T), b)

    program = compiled(function, DATA, TRANSPOSED, b)
    assert program.count(LAUNCH) == 1
    assert sorted(shapes(moves(program))) == ["f4e2m1fn[1024,1024]", "f8e8m0fnu[1024,32]"]


@pytest.mark.parametrize("k", [48, 272])
def test_k_that_is_no_multiple_of_32_runs_by_reference(k):
    a = tuple(jax.ShapeDtypeStruct((M, s), d) for s, d in ((k, jnp.float8_e4m3fn), (-(-k // 128), jnp.float32)))
    b = jax.ShapeDtypeStruct((N, k), jnp.float4_e2m1fn), scales(*KINDS["ue8m0 by 32"], k)
    assert "jax_deepgemm.launch" not in compiled(fp8_fp4_gemm_nt, a, b)


@pytest.mark.parametrize("k", [32, 288, 640])
def test_short_rows_of_scales_are_padded(k):
    a = tuple(jax.ShapeDtypeStruct((M, s), d) for s, d in ((k, jnp.float8_e4m3fn), (-(-k // 128), jnp.float32)))
    b = jax.ShapeDtypeStruct((N, k), jnp.float4_e2m1fn), scales(*KINDS["ue8m0 by 32"], k)
    program = compiled(fp8_fp4_gemm_nt, a, b)
    assert program.count(LAUNCH) == 1 and f"u8[1024,{-(-k // 512) * 16}]" in program


def test_casts_back():
    b = FLOAT4, scales(*KINDS["ue8m0 by 32"])
    assert "f32[1024,1024]" in compiled(lambda b: cast_back_from_fp4(b), b)
