"""The k-grouped GEMMs and their cast under jit over eight devices, shard_map and export."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jax_deepgemm import (
    H100,
    k_grouped_bf16_gemm_tn_contiguous,
    k_grouped_cast_to_fp8,
    k_grouped_fp8_gemm_tn_contiguous,
    set_target,
)
from tests.helpers import assert_close
from tests.k_grouped import matrices, sizes
from tests.sharded import BOTH, mesh_of, put, run

A, B = matrices(64, 128, 400)
KS = sizes([130, 0, 200, 7])


def fp8(a, b, ks):
    return k_grouped_fp8_gemm_tn_contiguous(k_grouped_cast_to_fp8(a, ks), k_grouped_cast_to_fp8(b, ks), ks)


GEMMS = pytest.mark.parametrize("gemm", [k_grouped_bf16_gemm_tn_contiguous, fp8])


@GEMMS
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    "of_a, of_b, wanted",
    [(P(None, "x"), P(), set()), (P(None, "x"), P(None, "y"), set()), (P("x"), P(), {"all-gather"})],
)
def test_sharded_jit(gemm, kind, of_a, of_b, wanted):
    mesh = mesh_of(kind, 4, 2)
    given = [put(x, mesh, s) for x, s in zip((A, B, KS), (of_a, of_b, P()), strict=True)]
    d, found = run(gemm, *given)
    assert found == wanted
    assert_close(d, np.asarray(gemm(A, B, KS)).astype(np.float64))


@GEMMS
def test_shard_map(gemm):
    """Each device has rows, and groups, of its own."""
    mesh = mesh_of(AxisType.Auto, 2)
    ks = jnp.stack([KS, sizes([5, 90, 0, 44])])
    a, b = (jnp.concatenate([x, x[::-1]]) for x in (A, B))

    def local(a, b, ks):
        return gemm(a, b, ks[0])[None]

    shared = jax.shard_map(local, mesh=mesh, in_specs=(P("x"), P("x"), P("x")), out_specs=P("x"))
    d, _ = run(shared, a, b, ks)
    for i, (x, y) in enumerate(((A, B), (A[::-1], B[::-1]))):
        assert_close(d[i], np.asarray(gemm(x, y, ks[i])).astype(np.float64))


@GEMMS
def test_no_ranks_are_promoted(gemm):
    with jax.numpy_rank_promotion("raise"):
        assert gemm(A, B, KS).shape == (KS.size, A.shape[1], B.shape[1])


@GEMMS
def test_export(gemm):
    safe = [jax.export.DisabledSafetyCheck.custom_call("jax_deepgemm.launch")]
    with set_target(H100):
        exported = jax.export.export(jax.jit(gemm), platforms=("cpu", "cuda"), disabled_checks=safe)(A, B, KS)
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_array_equal(np.asarray(again.call(A, B, KS)), np.asarray(jax.jit(gemm)(A, B, KS)))


@pytest.mark.filterwarnings("ignore:jax_deepgemm lowers for cuda")
def test_export_without_a_target_runs_by_reference():
    exported = jax.export.export(jax.jit(fp8), platforms=("cpu", "cuda"))(A, B, KS)
    np.testing.assert_array_equal(np.asarray(exported.call(A, B, KS)), np.asarray(jax.jit(fp8)(A, B, KS)))
