"""What XLA makes of the BF16 GEMMs for GPUs that are not there: nothing around them moves."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jax_deepgemm import bf16_gemm_nt
from tests.bf16 import GEMMS
from tests.deviceless import LAUNCH, OPTIMISED, commands, computations, moves, opcode
from tests.test_bf16_transforms import specs
from tests.test_deviceless import compiled, mesh_of, placed

M, N, K = 256, 1024, 512
C = jax.ShapeDtypeStruct((M, N), jnp.bfloat16)
EVERY = pytest.mark.parametrize("layout", GEMMS)


def given(layout: str) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    shapes = (M, K) if layout[0] == "n" else (K, M), (N, K) if layout[1] == "t" else (K, N)
    a, b = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes)
    return a, b


@EVERY
@pytest.mark.parametrize("out_dtype", [jnp.bfloat16, jnp.float32])
def test_operands_are_taken_as_they_lie(layout: str, out_dtype: Any) -> None:
    program = compiled(lambda a, b: GEMMS[layout](a, b, out_dtype=out_dtype), *given(layout))
    assert sorted(opcode(i) for i in computations(program)["ENTRY"]) == ["custom-call", "parameter", "parameter"]
    assert program.count(LAUNCH) == 1


@EVERY
def test_gradients_are_two_more_launches(layout: str) -> None:
    def all_three(a: jax.Array, b: jax.Array, d: jax.Array) -> Any:
        value, pull = jax.vjp(GEMMS[layout], a, b)
        return value, pull(d)

    program = compiled(all_three, *given(layout), C)
    assert program.count(LAUNCH) == 3
    assert moves(program) == []


@EVERY
def test_a_donated_c_becomes_the_result(layout: str) -> None:
    def function(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        return GEMMS[layout](a, b, c=c)

    donated = compiled(function, *given(layout), C, donate=[2])
    assert moves(donated) == []
    assert "output_to_operand_aliasing={{}: (2, {})}" in donated
    (copy,) = moves(compiled(function, *given(layout), C))
    assert opcode(copy) == "copy"


def test_a_chain_of_five_is_a_command_buffer(tmp_path: pathlib.Path) -> None:
    def chain(a: jax.Array, weights: Sequence[jax.Array], c: jax.Array) -> jax.Array:
        for b in weights:
            c = bf16_gemm_nt(a, b, c=c)
        return c

    a, b = given("nt")
    compiled(chain, a, [b] * 5, C, donate=[2], options={"xla_dump_to": str(tmp_path)})
    assert commands(tmp_path) == ["kCustomCall"] * 5


@EVERY
@pytest.mark.parametrize(
    "sizes, a, b, out, local, communicates",
    [
        ((8,), P("x"), P(), P("x"), (32, 1024), set()),
        ((8,), P(), P("x"), P(None, "x"), (256, 128), set()),
        ((4, 2), P("x"), P("y"), P("x", "y"), (64, 512), set()),
        ((4, 2), P("x", "y"), P(None, "y"), P("x"), (64, 1024), {"all-reduce"}),
    ],
    ids=["m", "n", "m and n", "m and k"],
)
def test_eight_gpus(
    layout: str, sizes: tuple[int, ...], a: P, b: P, out: P, local: tuple[int, int], communicates: set[str]
) -> None:
    mesh = mesh_of(*sizes)
    sharded = [placed(x, mesh, s) for x, s in zip(given(layout), specs(layout, a, b), strict=True)]
    program = (
        jax.jit(GEMMS[layout], out_shardings=NamedSharding(mesh, out)).lower(*sharded).compile(OPTIMISED).as_text()
    )
    assert program.count(LAUNCH) == 1
    found = re.findall(r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", program)
    assert set(found) == communicates
    (call,) = [line for line in program.splitlines() if LAUNCH in line]
    assert f"[{local[0]},{local[1]}]" in call.split(" custom-call(")[0]
    assert ("f32[" if communicates else "bf16[") in call.split(" custom-call(")[0]


def test_a_shard_with_rows_of_no_16_bytes_takes_the_reference() -> None:
    mesh = mesh_of(8)
    a, b = (jax.ShapeDtypeStruct((rows, 32), jnp.bfloat16) for rows in (64, 128))
    sharded = [placed(x, mesh, P(None, "x")) for x in (a, b)]
    program = jax.jit(bf16_gemm_nt).lower(*sharded).compile(OPTIMISED).as_text()
    assert LAUNCH not in program and "all-gather" not in program


@pytest.mark.filterwarnings("ignore:jax_deepgemm has no kernels")
def test_blackwell_takes_the_reference() -> None:
    assert LAUNCH not in compiled(bf16_gemm_nt, *given("nt"), gpu="b200")
