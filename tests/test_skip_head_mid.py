"""fp8_gemm_nt_skip_head_mid: values, errors, launches, transformations, and what XLA makes of it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_deepgemm import GemmConfig, GemmConfig1d1d, compile, fp8_gemm_nt_skip_head_mid, set_target
from jax_deepgemm.config import Config
from jax_deepgemm.ops import fp8_gemm_skip_head_mid as op
from jax_deepgemm.target import H100
from tests.deviceless import LAUNCH, OPTIMISED, moves, sharding
from tests.golden import Aval
from tests.helpers import BOUNDS, assert_close, operands, relative_error
from tests.skip_head_mid import spread, wanted

BF16, F32 = jnp.bfloat16, jnp.float32
SPLITS = [(128, 64, 128), (64, 8, 32), (16, 16, 48), (8, 24, 40), (192, 64, 64)]
A, B = operands(24, 4 * 256, 256)
SPLIT = (128, 64, 128)
gemm = functools.partial(fp8_gemm_nt_skip_head_mid, head_splits=SPLIT)


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("kept", [False, True])
def test_against_float64(splits, dtype, kept):
    heads = 3
    a, b = operands(17, heads * (splits[0] + splits[2]), 272)
    d = jax.random.normal(jax.random.key(0), (17, heads * sum(splits))).astype(dtype) if kept else None
    got = jax.jit(functools.partial(fp8_gemm_nt_skip_head_mid, head_splits=splits, out_dtype=dtype))(a, b, d=d)
    assert_close(got, wanted(a, b, splits, d))
    middle = np.asarray(got).reshape(17, heads, -1)[:, :, splits[0] : splits[0] + splits[1]]
    expected = np.zeros_like(middle) if d is None else spread(np.asarray(d), splits)[1]
    np.testing.assert_array_equal(middle, expected)


def test_the_bound_catches_wrong_results():
    good = wanted(A, B, SPLIT)
    for wrong in (0 * good, np.roll(good, 64, axis=1), 1.01 * good, wanted(A, B, (64, 64, 192))):
        assert relative_error(wrong, good) > BOUNDS[jnp.dtype(BF16)]


@pytest.mark.parametrize("m, heads, k", [(0, 4, 256), (24, 0, 256), (24, 4, 0)])
def test_empty(m, heads, k):
    a, b = operands(m, heads * 256, k)
    d = jnp.ones((m, heads * 320), BF16)
    for got, kept in ((gemm(a, b), None), (gemm(a, b, d=d), d)):
        np.testing.assert_array_equal(np.asarray(got), wanted(a, b, SPLIT, kept))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"head_splits": (128, 64)}, TypeError, r"`head_splits` must be \(left, mid, right\), .* got \(128, 64\)"),
        ({"head_splits": 128}, TypeError, "`head_splits` must be .* got 128"),
        ({"head_splits": (128, 0, 128)}, ValueError, r"three positive multiples of 8 for bfloat16 out, got \(128, 0,"),
        ({"head_splits": (124, 64, 132)}, ValueError, "three positive multiples of 8 for bfloat16 out"),
        ({"head_splits": (126, 64, 130), "out_dtype": F32}, ValueError, "multiples of 4 for float32 out"),
        ({"head_splits": (96, 64, 64)}, ValueError, r"N a multiple of left \+ right, 160, got float8"),
        ({"out_dtype": jnp.float16}, TypeError, "`out_dtype` must be bfloat16 or float32, got float16"),
        ({"d": jnp.zeros((24, 1024), BF16)}, ValueError, r"`d` must be bfloat16 of shape \(24, 1280\), got"),
        ({"d": jnp.zeros((24, 1280))}, TypeError, r"`d` must be bfloat16 .*, got float32\[24,1280\]"),
        ({"b": operands(24, 1024, 512)[1]}, ValueError, r"`b` must be of shape \(N, 256\) with the K of `a`"),
        ({"config": GemmConfig1d1d(64, 64)}, TypeError, "`config` must be a GemmConfig or None, got GemmConfig1d1d"),
        ({"config": 3}, TypeError, "`config` must be a GemmConfig or None, got int"),
        ({"head_splits": (16, 8, 16), "b": operands(24, 64, 256)[1], "config": GemmConfig(128, 128)}, ValueError,
         "`config` must store boxes of columns that divide the left and right parts of a head, 16 and 16"),
    ],
)  # fmt: skip
def test_errors(options, error, message):
    given = {"a": A, "b": B, "head_splits": SPLIT} | options
    with pytest.raises(error, match=message):
        fp8_gemm_nt_skip_head_mid(**given)


def test_gradients_are_refused():
    with pytest.raises(NotImplementedError, match="differentiate around it"):
        jax.grad(lambda s: gemm((A[0], A[1] * s), B).astype(F32).sum())(1.0)


# --- launches --------------------------------------------------------------------------------------------------------


def plan(m, heads, k, splits, dtype, kept, config=None):
    n, width = heads * (splits[0] + splits[2]), heads * sum(splits)
    shapes = [(m, k), (m, -(-k // 128)), (n, k), (-(-n // 128), -(-k // 128))]
    avals = [Aval(s, np.dtype(t)) for s, t in zip(shapes, ("uint8", "float32") * 2, strict=True)]
    d = Aval((m, width), np.dtype(dtype))
    params = {"head_splits": splits, "out_dtype": np.dtype(dtype), "config": config}
    return op._plan(avals + [d] * kept, [d], params, H100, Config())


@pytest.mark.parametrize("m", [1, 100, 4096])
@pytest.mark.parametrize("splits", SPLITS)
def test_every_kernel_compiles_without_spills(m, splits, monkeypatch):
    monkeypatch.setenv("JAX_DEEPGEMM_CHECK_LOCAL_MEMORY", "1")
    dtype, kept = [(BF16, False), (F32, True), (BF16, True)][len(str(m)) // 2]
    launch = plan(m, 16, 512, splits, dtype, kept)
    assert dict(launch.kernel.template)["Columns"].startswith("HeadSplits<")
    compile.compile_kernel(launch.kernel, H100.arch)


def test_results_are_as_wide_as_their_heads():
    launch = plan(100, 16, 512, SPLIT, BF16, True, GemmConfig(128, 128))
    _, _, d_map, *_ = launch.arguments
    assert (d_map.buffer, d_map.sizes, d_map.strides, d_map.box) == (5, (16 * 320, 100), (16 * 640,), (64, 16))


@pytest.mark.parametrize("config", [None, GemmConfig(128, 128)])
def test_a_result_too_wide_for_32_bits_has_no_launch(config):
    splits = (64, 2**20, 64)
    assert plan(1, 2**11 - 1, 128, splits, BF16, True, config) is not None
    assert plan(1, 2**11, 128, splits, BF16, True, config) is None


def test_parts_that_boxes_do_not_divide_are_stored_otherwise():
    template = dict(plan(4096, 16, 512, (8, 24, 40), BF16, False).kernel.template)
    assert template["kSwap"] or template["kSplitK"] > 1


# --- transformations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
@pytest.mark.parametrize("kept", [False, True])
def test_vmap(axes, kept):
    pairs = [operands(24, 512, 272, seed=s) for s in range(3)]
    stacked = [
        jax.tree.map(lambda *x: jnp.stack(x), *(p[i] for p in pairs)) if axis == 0 else pairs[0][i]
        for i, axis in enumerate(axes)
    ]
    d = jax.random.normal(jax.random.key(0), (3, 24, 640)).astype(BF16) if kept else None
    got = jax.vmap(lambda a, b, d: gemm(a, b, d=d), (*axes, 0))(*stacked, d)
    for i in range(3):
        a, b = (pairs[i if axis == 0 else 0][j] for j, axis in enumerate(axes))
        assert_close(got[i], wanted(a, b, SPLIT, d[i] if kept else None))


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    "of_a, of_b, of_d",
    [(P("x"), P(), P("x")), (P(), P("x"), P(None, "x")), (P("x"), P("y"), P("x", "y")), (P(None, "x"), P(), P())],
)
def test_sharded_jit(of_a, of_b, of_d, kept):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    d = jax.random.normal(jax.random.key(0), (24, 1280)).astype(BF16) if kept else None

    def put(x, spec):
        scales = spec if spec != P(None, "x") else P()  # which have two columns
        return jax.tree.map(lambda v: jax.device_put(v, NamedSharding(mesh, spec if v.shape[1] > 2 else scales)), x)

    compiled = jax.jit(lambda a, b, d: gemm(a, b, d=d)).lower(put(A, of_a), put(B, of_b), put(d, of_d)).compile()
    assert_close(compiled(put(A, of_a), put(B, of_b), put(d, of_d)), wanted(A, B, SPLIT, d))
    if of_d != P():
        assert "f8e4m3fn[1024,256]" not in compiled.as_text().partition("ENTRY")[2] or of_b == P()


@pytest.mark.parametrize("specs", [(P("x"), P(), P("x")), (P(), P("x"), P(None, "x"))])
def test_shard_map(specs):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(gemm, mesh=mesh, in_specs=specs[:2], out_specs=specs[2])
    assert_close(jax.jit(mapped)(A, B), wanted(A, B, SPLIT))


def test_export():
    exported = jax.export.export(jax.jit(gemm), platforms=("cpu",))(A, B)
    assert_close(jax.export.deserialize(exported.serialize()).call(A, B), wanted(A, B, SPLIT))


@pytest.mark.parametrize("kept", [False, True])
def test_one_kernel_and_nothing_moved(kept):
    on = sharding("h100")

    def product(a, a_scale_t, b, b_scale, d):
        return gemm((a, a_scale_t.T), (b, b_scale), d=d)

    args = (A[0], A[1].T, *B, jnp.zeros((24, 1280), BF16) if kept else None)
    with set_target(H100):
        jitted = jax.jit(product, in_shardings=on, out_shardings=on, donate_argnums=4)
        described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
        program = jitted.lower(*described).compile(OPTIMISED).as_text()
    assert program.count(LAUNCH) == 1 and moves(program) == []
    assert ("output_to_operand_aliasing" in program) == kept
