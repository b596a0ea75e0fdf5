"""The factory of primitives, with an operation of its own: `x + row`, of which each row of `x` is a batch."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import (
    H100,
    compile,
    fp8_gemm_nt,
    fp8_linear,
    per_block_cast_to_fp8,
    per_token_cast_to_fp8,
    set_num_sms,
    set_target,
)
from jax_deepgemm.factors import Factors
from jax_deepgemm.launch import Kernel, Launch, Pointer
from jax_deepgemm.op import Op
from jax_deepgemm.primitive import make

KERNEL = Kernel("add", (("kTwo", 2),))
X, ROW = jnp.arange(12.0).reshape(3, 4), jnp.arange(4.0)
SAFE = [jax.export.DisabledSafetyCheck.custom_call("jax_deepgemm.launch")]


def plan(avals, out_avals, params, target, config):
    if avals[0].shape[0] > 100:
        return None
    grid = (config.num_sms or target.num_sms, 1, 1)
    return Launch(KERNEL, grid, (32, 1, 1), tuple(map(Pointer, range(3))), pdl=config.pdl)


OP = Op(
    name="add",
    abstract_eval=lambda avals, **_: [jax.ShapeDtypeStruct(avals[0].shape, avals[0].dtype)],
    reference=lambda x, row, **_: [x + row],
    plan=plan,
    operand_layouts=lambda avals, params: [(0, 1), None],
    result_layouts=lambda avals, params: [(0, 1)],
    aliases=lambda avals, params: {0: 0},
    factors=lambda avals, params: Factors("m n, n -> m n"),
)
add = make(OP)
plain = make(dataclasses.replace(OP, name="plain_add", factors=None, aliases=None, operand_layouts=None))


@pytest.fixture
def compiled(monkeypatch):
    """Stands in for NVRTC, and tells what was compiled."""
    seen = []

    def compile_kernel(kernel, arch):
        seen.append((kernel, arch))
        return compile.Binary(b"cubin", "add_symbol", 1, 0, 0, "")

    monkeypatch.setattr(compile, "compile_kernel", compile_kernel)
    return seen


def exported(function, *args, platforms=("cuda",)):
    return jax.export.export(jax.jit(function), platforms=platforms, disabled_checks=SAFE)(*args)


def calls(module: str) -> list[str]:
    return [line for line in module.splitlines() if "@jax_deepgemm.launch(" in line]


def test_cuda_lowers_to_one_call_with_layouts_and_aliases(compiled):
    with set_target(H100):
        (call,) = calls(exported(lambda x, r: add(x, r, flag=1)[0], X, ROW).mlir_module())
    assert compiled == [(KERNEL, "sm_90a")]
    assert "operand_layouts = [dense<[0, 1]> : tensor<2xindex>, dense<0> : tensor<1xindex>]" in call
    assert "result_layouts = [dense<[0, 1]> : tensor<2xindex>]" in call
    assert re.search(r"output_operand_alias<output_tuple_indices = \[\],\s*operand_index = 0", call)
    assert 'symbol = "add_symbol"' in call and "grid = dense<[132, 1, 1]>" in call


def test_launches_are_printed_when_asked_for(compiled, monkeypatch, capsys):
    with set_target(H100):
        exported(lambda x, r: add(x, r)[0], X, ROW)
        assert capsys.readouterr().err == ""
        monkeypatch.setenv("JAX_DEEPGEMM_PRINT_CONFIGS", "1")
        exported(lambda x, r: add(x, r)[0], X, ROW)
        exported(lambda x, r: add(x, r)[0], jnp.zeros((101, 4)), ROW)  # by reference
    assert capsys.readouterr().err == (
        "add(float32[3,4], float32[4]) -> float32[3,4]: kernel add<kTwo=2> for sm_90a, grid 132x1x1, block 32x1x1, "
        "cluster 1x1x1, 0 bytes of shared memory, programmatic dependent launch\n"
    )


def test_defaults_of_layouts_and_aliases(compiled):
    with set_target(H100):
        (call,) = calls(exported(lambda x, r: plain(x, r)[0], X, ROW).mlir_module())
    assert "dense<[1, 0]> : tensor<2xindex>, dense<0>" in call
    assert "output_operand_alias" not in call


@pytest.mark.filterwarnings("ignore:jax_deepgemm lowers for cuda")
def test_without_a_target_cuda_takes_the_reference(compiled):
    assert not calls(exported(lambda x, r: add(x, r)[0], X, ROW).mlir_module())
    assert not compiled


def test_a_problem_without_a_kernel_takes_the_reference(compiled):
    with set_target(H100):
        assert not calls(exported(lambda x, r: add(x, r)[0], jnp.zeros((101, 4)), ROW).mlir_module())
        m, *_ = jax.export.symbolic_shape("m")
        symbolic = jax.ShapeDtypeStruct((m, 4), jnp.float32)
        assert not calls(exported(lambda x, r: add(x, r)[0], symbolic, ROW).mlir_module())
    assert not compiled


def test_without_nvrtc_the_reference_runs_with_a_warning(monkeypatch):
    def unavailable(kernel, arch):
        raise compile.NvrtcUnavailable("nowhere to be found")

    monkeypatch.setattr(compile, "compile_kernel", unavailable)
    with set_target(H100), pytest.warns(RuntimeWarning, match="by reference, slowly: nowhere to be found"):
        assert not calls(exported(lambda x, r: add(x, r)[0], X, ROW).mlir_module())


def test_export_for_cpu_and_cuda_round_trips(compiled):
    with set_target(H100):
        both = exported(lambda x, r: add(x, r)[0], X, ROW, platforms=("cpu", "cuda"))
    again = jax.export.deserialize(both.serialize())
    assert len(calls(again.mlir_module())) == 1
    np.testing.assert_array_equal(again.call(X, ROW), X + ROW)


def test_settings_are_those_of_the_tracing(compiled):
    with set_target(H100), set_num_sms(100):
        traced = jax.jit(lambda x, r: add(x, r)[0]).trace(X, ROW)
    (call,) = calls(traced.lower(lowering_platforms=("cuda",)).as_text())
    assert "grid = dense<[100, 1, 1]>" in call


def test_operations_without_factors_loop_under_vmap_and_still_shard():
    np.testing.assert_array_equal(
        jax.vmap(lambda x: plain(x, ROW)[0])(jnp.stack([X, 2 * X])), jnp.stack([X, 2 * X]) + ROW
    )
    assert "scan" in str(jax.make_jaxpr(jax.vmap(lambda x: plain(x, ROW)[0]))(jnp.stack([X, X])))
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(jnp.zeros((4, 4)), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    np.testing.assert_array_equal(plain(sharded, ROW)[0], jnp.zeros((4, 4)) + ROW)


def test_summing_needs_a_way_to_reduce():
    bad = make(
        dataclasses.replace(OP, name="bad", factors=lambda avals, params: Factors("m n, n -> m n", summed=("n",)))
    )
    with pytest.raises(ValueError, match="there is no `reduce`"):
        bad(X, ROW)


def test_gradients_are_refused():
    with pytest.raises(NotImplementedError, match="add cannot be differentiated: it has no derivative rule"):
        jax.grad(lambda x: add(x, ROW)[0].sum())(X)


def test_without_jit() -> None:
    """Evaluation compiles; under `jax.disable_jit` it must not come back to itself."""
    x, w = jnp.ones((4, 128)), jnp.ones((256, 128))
    with jax.disable_jit():
        d = fp8_gemm_nt(per_token_cast_to_fp8(x), per_block_cast_to_fp8(w))
        gradient = jax.grad(lambda x: fp8_linear(x, w).sum())(x)
    np.testing.assert_array_equal(np.asarray(d, np.float32), 128)
    np.testing.assert_allclose(gradient, 256, rtol=1e-2)
