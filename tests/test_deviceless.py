"""What XLA makes of the FP8 GEMMs for GPUs that are not there."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_deepgemm import (
    cast_back_from_fp8,
    fp8_gemm_nt,
    fp8_gemm_tn,
    fp8_gemm_tt,
    fp8_linear,
    per_block_cast_to_fp8,
    per_channel_cast_to_fp8,
    per_token_cast_to_fp8,
    warn,
)
from jax_deepgemm.ops.casting import quantise
from tests.deviceless import LAUNCH, OPTIMISED, commands, computations, devices, moves, opcode, sharding
from tests.helpers import GEMMS, ROWS

M, N, K = 256, 1024, 1024
X = jax.ShapeDtypeStruct((M, K), jnp.bfloat16)
A = tuple(jax.ShapeDtypeStruct(s, d) for s, d in (((M, K), jnp.float8_e4m3fn), ((M, K // 128), jnp.float32)))
B = tuple(jax.ShapeDtypeStruct(s, d) for s, d in (((N, K), jnp.float8_e4m3fn), ((N // 128, K // 128), jnp.float32)))
C = jax.ShapeDtypeStruct((M, N), jnp.bfloat16)
TRANSPOSED = jax.ShapeDtypeStruct((K // 128, M), jnp.float32)  # A's scales with M fastest


def compiled(
    function: Callable[..., Any],
    *args: Any,
    gpu: str = "h100",
    donate: Sequence[int] = (),
    options: dict[str, Any] | None = None,
) -> str:
    """The optimised program for one GPU."""
    on = sharding(gpu)
    jitted = jax.jit(function, in_shardings=on, out_shardings=on, donate_argnums=donate)
    return jitted.lower(*args).compile(OPTIMISED | (options or {})).as_text()


def with_c(a: Any, b: Any, c: jax.Array) -> jax.Array:
    return fp8_gemm_nt(a, b, c=c)


@pytest.mark.parametrize("use_ue8m0", [False, True])
def test_a_cast_and_a_product_are_two_launches_with_nothing_between(use_ue8m0: bool) -> None:
    def function(x: jax.Array, w: jax.Array) -> jax.Array:
        cast = functools.partial(per_token_cast_to_fp8, use_ue8m0=use_ue8m0)
        return fp8_gemm_nt(cast(x), per_block_cast_to_fp8(w))

    program = compiled(function, X, jax.ShapeDtypeStruct((N, K), jnp.bfloat16))
    assert program.count(LAUNCH) == 3
    assert moves(program) == []
    # The casts write the scales as the product reads them; but UE8M0 is widened first.
    entry = {opcode(i) for i in computations(program)["ENTRY"]} - {"parameter", "bitcast", "get-tuple-element"}
    assert entry == ({"custom-call", "fusion"} if use_ue8m0 else {"custom-call"})


def test_scales_kept_transposed_are_taken_as_they_are() -> None:
    def function(data: jax.Array, scale: jax.Array, b: Any) -> jax.Array:
        return fp8_gemm_nt((data, scale.T), b)

    program = compiled(function, A[0], TRANSPOSED, B)
    entry = [opcode(i) for i in computations(program)["ENTRY"]]
    assert sorted(entry) == ["bitcast", "custom-call", *["parameter"] * 4]


def test_row_major_scales_of_arguments_are_transposed_once() -> None:
    """And so this file's eye for moves is open."""
    program = compiled(fp8_gemm_nt, A, B)
    assert program.count(LAUNCH) == 1
    assert len(moves(program)) == 1


def turned(x: Any) -> Any:
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape[::-1], v.dtype), x)


A_DATA, A_SCALES, B_DATA, B_SCALES = "f8e4m3fn[256,1024]", "f32[8,256]", "f8e4m3fn[1024,1024]", "f32[8,8]"


@pytest.mark.parametrize(
    "layout, moved",
    [
        ("nn", [A_SCALES, B_SCALES, B_DATA]),
        ("tn", [A_DATA, B_SCALES, B_DATA]),  # A's scales already have M fastest
        ("tt", [A_DATA]),
    ],
)
def test_other_layouts_of_arguments_are_transposed_once(layout: str, moved: list[str]) -> None:
    a, b = A if layout[0] == "n" else turned(A), B if layout[1] == "t" else turned(B)
    program = compiled(GEMMS[layout], a, b)
    assert program.count(LAUNCH) == 1
    assert sorted(shapes(moves(program))) == sorted(moved)


def shapes(instructions: Sequence[str]) -> list[str]:
    """Of the result of each, without its layout."""
    found = [re.search(r" = (\w+\[[\d,]*\])", i) for i in instructions]
    assert all(found), instructions
    return [f[1] for f in found if f]


@pytest.mark.parametrize("function", [fp8_gemm_tn, fp8_gemm_tt])
def test_a_cast_in_the_same_jit_writes_k_contiguous(function: Callable[..., jax.Array]) -> None:
    """A cast of activations [K, M], along K: the kernel's operand is all that is written of that size."""

    def product(x: jax.Array, b: Any) -> jax.Array:
        return function(jax.tree.map(jnp.transpose, per_channel_cast_to_fp8(x)), b)

    b = turned(B) if function is fp8_gemm_tn else B
    program = compiled(product, turned(X), b)
    assert program.count(LAUNCH) == 2
    assert A_DATA not in shapes(moves(program)) and A_SCALES not in shapes(moves(program))
    assert "fusion" not in {opcode(i) for i in computations(program)["ENTRY"] if "[256,1024]" in i}


@pytest.mark.parametrize("block", [(128, 128), None])
def test_both_casts_at_once_are_one_launch_and_write_scales_as_products_read_them(block: Any) -> None:
    def function(x: jax.Array) -> Any:
        straight, turned = quantise(x, straight=block or (1, 128), turned=block or (128, 1))
        # Of single rows or columns, with these fastest: transposed, they are row-major results.
        return straight.data, turned.data, *(s if block else s.T for s in (straight.scale, turned.scale))

    program = compiled(function, X)
    assert program.count(LAUNCH) == 1
    assert {opcode(i) for i in computations(program)["ENTRY"]} <= {
        "parameter",
        "bitcast",
        "get-tuple-element",
        "custom-call",
        "tuple",
    }


B_BY_ROWS = (B[0], jax.ShapeDtypeStruct((N, K // 128), jnp.float32))


def test_scales_by_rows_of_arguments_are_transposed_once() -> None:
    program = compiled(lambda a, b: fp8_gemm_nt(a, b, recipe=ROWS), A, B_BY_ROWS)
    assert program.count(LAUNCH) == 1 and program.count("sm90_fp8_gemm_1d1d") >= 1
    assert sorted(shapes(moves(program))) == ["f32[8,1024]", "f32[8,256]"]


def test_scales_by_rows_are_taken_with_the_rows_fastest() -> None:
    def function(a: jax.Array, a_scale: jax.Array, b: jax.Array, b_scale: jax.Array, c: jax.Array) -> jax.Array:
        return fp8_gemm_nt((a, a_scale.T), (b, b_scale.T), c=c, recipe=ROWS, out_dtype=jnp.float32)

    args = A[0], TRANSPOSED, B[0], jax.ShapeDtypeStruct((K // 128, N), jnp.float32)
    program = compiled(function, *args, jax.ShapeDtypeStruct((M, N), jnp.float32), donate=[4])
    entry = [opcode(i) for i in computations(program)["ENTRY"]]
    assert sorted(entry) == ["bitcast", "bitcast", "custom-call", *["parameter"] * 5]
    assert "output_to_operand_aliasing={{}: (4, {})}" in program


def test_casts_write_scales_with_the_rows_fastest() -> None:
    def weight_gradient(dy: jax.Array, x: jax.Array) -> jax.Array:
        return fp8_gemm_nt(per_channel_cast_to_fp8(dy), per_channel_cast_to_fp8(x), recipe=ROWS, out_dtype=jnp.float32)

    program = compiled(weight_gradient, X, X)
    assert program.count(LAUNCH) >= 1
    assert moves(program) == []


def test_a_chain_of_five_is_a_command_buffer(tmp_path: pathlib.Path) -> None:
    def chain(data: jax.Array, scale: jax.Array, weights: Sequence[Any], c: jax.Array) -> jax.Array:
        for b in weights:
            c = with_c((data, scale.T), b, c)
        return c

    compiled(chain, A[0], TRANSPOSED, [B] * 5, C, donate=[3], options={"xla_dump_to": str(tmp_path)})
    assert commands(tmp_path) == ["kCustomCall"] * 5


def test_casts_between_are_in_the_command_buffer(tmp_path: pathlib.Path) -> None:
    def layers(x: jax.Array, weights: Sequence[Any]) -> jax.Array:
        for b in weights:
            x = fp8_gemm_nt(per_token_cast_to_fp8(x), b)
        return x

    compiled(layers, X, [B] * 5, options={"xla_dump_to": str(tmp_path)})
    assert commands(tmp_path) == ["kCustomCall"] * 10


def test_a_donated_c_becomes_the_result() -> None:
    def function(data: jax.Array, scale: jax.Array, b: Any, c: jax.Array) -> jax.Array:
        return with_c((data, scale.T), b, c)

    donated = compiled(function, A[0], TRANSPOSED, B, C, donate=[3])
    assert moves(donated) == []
    assert "output_to_operand_aliasing={{}: (4, {})}" in donated
    assert re.search(r"input_output_alias=\{ \{\}: \(4, \{\}, \w+-alias\) \}", donated)
    (copy,) = moves(compiled(function, A[0], TRANSPOSED, B, C))
    assert "bf16" in copy and opcode(copy) == "copy"


def mesh_of(*sizes: int, gpu: str = "h100") -> Mesh:
    return Mesh(np.array(devices(gpu, int(np.prod(sizes)))).reshape(sizes), ("x", "y")[: len(sizes)])


def placed(tree: Any, mesh: Mesh, *specs: P) -> Any:
    """The leaves of `tree`, sharded. One spec serves all of them."""
    leaves, structure = jax.tree.flatten(tree)
    specs = specs * len(leaves) if len(specs) == 1 else specs
    shardings = [NamedSharding(mesh, s) for s in specs]
    return structure.unflatten(
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s) for x, s in zip(leaves, shardings, strict=True)
    )


@pytest.mark.parametrize(
    "sizes, a, b, out, local, communicates",
    [
        ((8,), P("x"), P(), P("x"), (32, 1024), set()),
        ((8,), P(), P("x"), P(None, "x"), (256, 128), set()),
        ((4, 2), P("x"), P("y"), P("x", "y"), (64, 512), set()),
        ((8,), P(None, "x"), P(None, "x"), P(), (256, 1024), {"all-reduce"}),
        ((4, 2), P("x", "y"), P(None, "y"), P("x"), (64, 1024), {"all-reduce"}),
    ],
    ids=["m", "n", "m and n", "k", "m and k"],
)
@pytest.mark.parametrize("casts", [False, True])
def test_eight_gpus(
    sizes: tuple[int, ...], a: P, b: P, out: P, local: tuple[int, int], communicates: set[str], casts: bool
) -> None:
    mesh = mesh_of(*sizes)

    def function(x: Any, b: Any) -> jax.Array:
        return fp8_gemm_nt(per_token_cast_to_fp8(x) if casts else x, b)

    jitted = jax.jit(function, out_shardings=NamedSharding(mesh, out))
    program = jitted.lower(placed(X if casts else A, mesh, a), placed(B, mesh, b)).compile(OPTIMISED).as_text()
    assert program.count(LAUNCH) == 1 + casts
    found = re.findall(r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", program)
    assert set(found) == communicates
    (call,) = [line for line in program.splitlines() if LAUNCH in line and "sm90_fp8_gemm" in line]
    m, n = local
    assert f"[{m},{n}]" in call.split(" custom-call(")[0]
    # Partial results are summed in float32.
    assert ("f32[" if communicates else "bf16[") in call.split(" custom-call(")[0]


def test_shard_map_over_gpus() -> None:
    mesh = mesh_of(4, 2)
    function = jax.shard_map(fp8_gemm_nt, mesh=mesh, in_specs=(P("x"), P("y")), out_specs=P("x", "y"))
    program = jax.jit(function).lower(placed(A, mesh, P("x")), placed(B, mesh, P("y"))).compile(OPTIMISED).as_text()
    assert program.count(LAUNCH) == 1
    assert "all-gather" not in program


def test_blackwell_takes_the_reference() -> None:
    warn.warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="no kernels for NVIDIA B200"):
        program = compiled(with_c, A, B, C, gpu="b200")
    assert "jax_deepgemm.launch" not in program
    assert re.search(r"-> bf16\[256,1024\]", program)


@pytest.mark.filterwarnings("ignore:jax_deepgemm has no kernels")
def test_several_blackwells_gather_nothing_either() -> None:
    mesh = mesh_of(8, gpu="b200")
    program = jax.jit(fp8_gemm_nt).lower(placed(A, mesh, P("x")), placed(B, mesh, P())).compile(OPTIMISED).as_text()
    assert "jax_deepgemm.launch" not in program
    assert "all-gather" not in program


@pytest.mark.parametrize("gpu", ["h100", "b200"])
def test_roundings_to_fp8_stay_in_the_program(gpu: str) -> None:
    """XLA for GPUs would drop a cast that is undone in the same jit."""

    def there_and_back(x: jax.Array) -> jax.Array:
        return cast_back_from_fp8(per_token_cast_to_fp8(x))

    def step(x: jax.Array, w: jax.Array, dy: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(fp8_linear, x, w)
        return y, *pull(dy)

    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((M, K), (N, K), (M, N))]
    for function, args in ((there_and_back, arrays[:1]), (step, arrays)):
        program = compiled(function, *args, gpu=gpu)
        # Where nothing is cast by a kernel of ours, every operand is by XLA.
        casts = len(re.findall(r"= f8e4m3fn\S* convert\(", program)) + program.count(LAUNCH)
        assert casts >= (5 if function is step else 1)
