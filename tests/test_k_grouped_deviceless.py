"""What XLA makes of the k-grouped GEMMs for GPUs that are not there: nothing around them moves."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jax_deepgemm import (
    k_grouped_bf16_gemm_tn_contiguous,
    k_grouped_cast_to_fp8,
    k_grouped_fp8_gemm_tn_contiguous,
)
from tests.deviceless import LAUNCH, OPTIMISED, commands, computations, moves, opcode
from tests.test_deviceless import compiled, mesh_of, placed

G, M, N, K = 4, 256, 1024, 512
X, Y = (jax.ShapeDtypeStruct((K, size), jnp.bfloat16) for size in (M, N))
KS = jax.ShapeDtypeStruct((G,), jnp.int32)
C = jax.ShapeDtypeStruct((G, M, N), jnp.float32)


def fp8(x: jax.Array, y: jax.Array, ks: jax.Array, *c: jax.Array) -> jax.Array:
    return k_grouped_fp8_gemm_tn_contiguous(k_grouped_cast_to_fp8(x, ks), k_grouped_cast_to_fp8(y, ks), ks, *c)


BOTH = pytest.mark.parametrize("gemm, launches", [(k_grouped_bf16_gemm_tn_contiguous, 1), (fp8, 3)])


@BOTH
def test_operands_are_taken_as_they_lie(gemm: Any, launches: int) -> None:
    program = compiled(gemm, X, Y, KS)
    found = [opcode(i) for i in computations(program)["ENTRY"]]
    assert found.count("custom-call") == program.count(LAUNCH) == launches
    assert set(found) <= {"custom-call", "parameter", "get-tuple-element", "bitcast"}


@BOTH
def test_a_donated_c_becomes_the_result(gemm: Any, launches: int) -> None:
    assert moves(compiled(gemm, X, Y, KS, C, donate=[3])) == []
    (copy,) = moves(compiled(gemm, X, Y, KS, C))
    assert opcode(copy) == "copy"


def test_a_chain_is_a_command_buffer(tmp_path: pathlib.Path) -> None:
    def chain(x: jax.Array, y: jax.Array, ks: jax.Array, c: jax.Array) -> jax.Array:
        return fp8(x, y, ks, k_grouped_bf16_gemm_tn_contiguous(x, y, ks, fp8(x, y, ks, c)))

    compiled(chain, X, Y, KS, C, donate=[3], options={"xla_dump_to": str(tmp_path)})
    assert set(commands(tmp_path)) == {"kCustomCall"}


@BOTH
@pytest.mark.parametrize(
    "x, y, local",
    [(P(None, "x"), P(), (32, 1024)), (P(), P(None, "x"), (256, 128)), (P("x"), P(None, "x"), (256, 128))],
)
def test_eight_gpus(gemm: Any, launches: int, x: P, y: P, local: tuple[int, int]) -> None:
    """M and N stay sharded; sharded rows are gathered."""
    mesh = mesh_of(8)
    sharded = [placed(v, mesh, s) for v, s in zip((X, Y, KS), (x, y, P()), strict=True)]
    out = NamedSharding(mesh, P(None, "x") if local[0] == 32 else P(None, None, "x"))
    program = jax.jit(gemm, out_shardings=out).lower(*sharded).compile(OPTIMISED).as_text()
    assert program.count(LAUNCH) == launches
    found = re.findall(r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", program)
    assert set(found) == ({"all-gather"} if x == P("x") else set())
    assert f"f32[{G},{local[0]},{local[1]}]" in program
