"""The launch contract: what `Launch` and its parts refuse, and the attributes that they become."""

from __future__ import annotations

import base64
import dataclasses
import types

import numpy as np
import pytest

from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar, TensorMap

MAP = TensorMap(0, "bfloat16", (4096, 129), (8192,), (64, 128), swizzle=128)
LAUNCH = Launch(Kernel("gemm", (("kBlockM", 128), ("kSwap", True))), (132, 1, 1), (384, 1, 1), (MAP, Pointer(1, 3)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"buffer": -1}, r"`TensorMap.buffer` must be integers in 0\.\."),
        ({"buffer": True}, "`TensorMap.buffer`"),
        ({"dtype": "bf16"}, "`TensorMap.dtype` must be one of uint8, .* got 'bf16'"),
        ({"sizes": (), "strides": (), "box": ()}, "`TensorMap.sizes` must have 1 to 5 dimensions"),
        ({"sizes": (16,) * 6, "strides": (32,) * 5, "box": (16,) * 6}, "`TensorMap.sizes` must have 1 to 5 dimensions"),
        ({"sizes": (4096, 0)}, r"`TensorMap.sizes` must be integers in 1\.\.4294967296, got \(4096, 0\)"),
        ({"sizes": (4096, 2**32 + 1)}, "`TensorMap.sizes`"),
        ({"sizes": (4096, 1.5)}, "`TensorMap.sizes`"),
        ({"strides": ()}, "`TensorMap.strides` must have 1 elements"),
        ({"strides": (8200,)}, "`TensorMap.strides` must be multiples of 16 bytes"),
        ({"strides": (2**40,)}, "`TensorMap.strides`"),
        ({"strides": (0,)}, "`TensorMap.strides`"),
        ({"box": (64,)}, "`TensorMap.box` must have 2 elements"),
        ({"box": (64, 257)}, r"`TensorMap.box` must be integers in 1\.\.256"),
        ({"box": (64, 0)}, "`TensorMap.box`"),
        ({"box": (12, 128)}, "`TensorMap.box` must span a multiple of 16 bytes innermost, got '24 bytes'"),
        ({"box": (72, 128)}, "`TensorMap.box` must span at most the 128 bytes of the swizzle"),
        ({"box": (64, 128), "swizzle": 64}, "`TensorMap.box` must span at most the 64 bytes of the swizzle"),
        ({"element_strides": (1,)}, "`TensorMap.element_strides` must have 2 elements"),
        ({"element_strides": (1, 9)}, r"`TensorMap.element_strides` must be integers in 1\.\.8"),
        ({"offset": 8}, "`TensorMap.offset` must be a multiple of 16 bytes, got 8"),
        ({"offset": -16}, "`TensorMap.offset`"),
        ({"swizzle": 16}, "`TensorMap.swizzle` must be one of"),
        ({"l2_promotion": 32}, "`TensorMap.l2_promotion` must be one of"),
        ({"fill": "ones"}, "`TensorMap.fill` must be one of"),
        ({"fill": "nan", "dtype": "int32", "box": (32, 8)}, '`TensorMap.fill` must be "zeros" for int32'),
    ],
)
def test_tensor_map_refuses(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MAP, **changes)


def test_tensor_map_limits_are_inclusive() -> None:
    TensorMap(0, "uint8", (2**32,), (), (256,))
    TensorMap(0, "uint8", (16,) * 5, (2**40 - 16,) * 4, (16,) * 5, element_strides=(8,) * 5)
    dataclasses.replace(MAP, fill="nan", swizzle=0, box=(256, 256))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sizes": (192, 8)}, "multiple of 128"),
        ({"box": (64, 8)}, "box of 128"),
        ({"strides": (80,)}, "multiples of 32 bytes"),
        ({"offset": 16}, "multiple of 32 bytes"),
        ({"swizzle": 64}, "0 or 128"),
    ],
)
def test_padded_fp4_is_stricter(changes: dict, message: str) -> None:
    padded = TensorMap(0, "float4_e2m1fn_padded", (256, 8), (128,), (128, 8), swizzle=128)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(padded, **changes)
    with pytest.raises(ValueError, match="even innermost size"):
        TensorMap(0, "float4_e2m1fn", (255, 8), (128,), (128, 8))


@pytest.mark.parametrize("value, dtype", [(2**31, "int32"), (-1, "uint32"), (1.0, "int64"), (2**64, "uint64")])
def test_scalar_refuses_values_out_of_range(value: float, dtype: str) -> None:
    with pytest.raises(ValueError, match=r"`Scalar.value` must be integers in"):
        Scalar(value, dtype)


@pytest.mark.parametrize(
    "value, dtype, message",
    [(1e39, "float32", "range of float32"), ("1", "float32", "be a number"), (1, "int8", "`Scalar.dtype` must be one")],
)
def test_scalar_refuses(value: float, dtype: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scalar(value, dtype)


@pytest.mark.parametrize("fields", [{"buffer": -1}, {"buffer": 0, "offset": -8}, {"buffer": 0.0}])
def test_pointer_refuses(fields: dict) -> None:
    with pytest.raises(ValueError, match="`Pointer"):
        Pointer(**fields)


def test_kernel_refuses_names_that_are_no_identifiers() -> None:
    for stem, template in (("a-b", ()), ("a", (("k M", 1),)), ("a", (("kM", 1), ("kM", 2)))):
        with pytest.raises(ValueError, match="`Kernel"):
            Kernel(stem, template)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"grid": (132, 1)}, "`grid` must have 3 elements"),
        ({"grid": (0, 1, 1)}, "`grid` must be integers in 1"),
        ({"grid": (2**31, 1, 1)}, "`grid`"),
        ({"grid": (1, 65536, 1)}, "`grid` must be at most"),
        ({"block": (1025, 1, 1)}, "`block` must be"),
        ({"block": (1, 1, 65)}, "`block` must be at most"),
        ({"block": (512, 3, 1)}, "`block` must have at most 1024 threads"),
        ({"cluster": (4, 8, 1), "grid": (4, 8, 1)}, "`cluster` must have at most 16 blocks"),
        ({"cluster": (5, 1, 1)}, r"`cluster` must divide the grid \(132, 1, 1\), got \(5, 1, 1\)"),
        ({"cluster": (1, 2, 1)}, "`cluster` must divide the grid"),
        ({"shared_memory": 227 * 1024 + 1}, "`shared_memory`"),
        ({"shared_memory": -1}, "`shared_memory`"),
        ({"arguments": (3,)}, r"`arguments\[0\]` must be a Pointer, a TensorMap or a Scalar, got 3"),
        ({"arguments": (Pointer(0),) * 513}, "`arguments` must be at most 512"),
    ],
)
def test_launch_refuses(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match="launch of kernel gemm: " + message):
        dataclasses.replace(LAUNCH, **changes)


def test_launch_is_data() -> None:
    copy = dataclasses.replace(LAUNCH)
    assert copy == LAUNCH and hash(copy) == hash(LAUNCH)
    assert eval(repr(LAUNCH)) == LAUNCH


def test_attributes() -> None:
    scalars = (Scalar(2**64 - 1, "uint64"), Scalar(-5), Scalar(0.5, "float32"))
    launch = dataclasses.replace(LAUNCH, cluster=(2, 1, 1), pdl=True, arguments=(*LAUNCH.arguments, *scalars))
    binary = types.SimpleNamespace(cubin=bytes(range(256)), symbol="_Z4gemm")
    attributes = launch.attributes(binary)
    assert base64.b64decode(attributes["cubin"]) == binary.cubin
    assert attributes["kernel"] == "gemm"
    assert attributes["template"] == "kBlockM=128, kSwap=True"
    assert attributes["symbol"] == "_Z4gemm"
    assert attributes["pdl"] is True
    np.testing.assert_array_equal(attributes["cluster"], (2, 1, 1))
    arguments = list(attributes["arguments"].values())
    assert sorted(attributes["arguments"]) == list(attributes["arguments"])
    assert [argument["kind"] for argument in arguments] == ["tensor_map", "pointer", *["scalar"] * 3]
    np.testing.assert_array_equal(arguments[0]["element_strides"], (1, 1))
    np.testing.assert_array_equal(arguments[0]["strides"], (8192,))
    assert arguments[1] == {"kind": "pointer", "buffer": 1, "offset": 3}
    assert [argument["value"] for argument in arguments[2:]] == [-1, -5, 0.5]
