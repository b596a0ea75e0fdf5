"""The extension and its custom call, compiled by XLA for GPUs that are not there."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import types
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir

from jax_deepgemm import _native
from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar, TensorMap
from tests import deviceless

BINARY = types.SimpleNamespace(cubin=b"\x7fELF" + bytes(range(256)) * 40, symbol="_Z3foo")
KERNEL = Kernel("foo", (("kBlockM", 128), ("kSwap", True)))
MAP = TensorMap(0, "float32", (64, 8), (256,), (32, 8), swizzle=128)
LAUNCH = Launch(
    KERNEL,
    (132, 1, 1),
    (128, 1, 1),
    (MAP, Pointer(1, 16), Scalar(2**64 - 1, "uint64"), TensorMap(1, "float32", (512,), (), (256,))),
    cluster=(2, 1, 1),
    shared_memory=200_000,
    pdl=True,
)

fake = Primitive("fake_launch")
fake.def_abstract_eval(lambda x, *, edit, launch: x)


def _lower(ctx: Any, x: Any, *, edit: tuple, launch: Launch) -> Sequence[Any]:
    _native.ensure_registered()
    attributes = launch.attributes(BINARY)
    for path, value in edit:
        *folders, name = path.split("/")
        folder = functools.reduce(dict.__getitem__, folders, attributes)
        folder.pop(name) if value is None else folder.__setitem__(name, value)
    return jax.ffi.ffi_lowering(_native.TARGET)(ctx, x, **attributes)


mlir.register_lowering(fake, _lower, platform="cuda")


def _compile(
    launch: Launch = LAUNCH,
    edit: tuple = (),
    calls: int = 1,
    dtype: Any = jnp.float32,
    target: str = "h100",
    options: dict[str, Any] | None = None,
) -> Any:
    def run(x: jax.Array) -> jax.Array:
        for _ in range(calls):
            x = fake.bind(x, edit=edit, launch=launch)
        return x

    on = deviceless.sharding(target)
    lowered = jax.jit(run, in_shardings=on, out_shardings=on).lower(jax.ShapeDtypeStruct((8, 64), dtype))
    return lowered.compile(compiler_options=options)


def test_extension_loads() -> None:
    extension = _native.load()
    built, running = extension.FFI_API_VERSION, _native.running_api_version()
    assert running is not None and built <= running
    assert set(extension.launch_handlers()) == {"instantiate", "prepare", "execute"}


def test_a_checkout_finds_the_installed_extension(tmp_path: pathlib.Path) -> None:
    package = pathlib.Path(_native.__file__).parent
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    metadata = tmp_path / "jax_deepgemm-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: jax-deepgemm\nVersion: 0\n")
    (metadata / "RECORD").write_text(f"{_native.load().__file__},,\n")
    code = "from jax_deepgemm import _native; print(_native.__file__, _native.load().__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True
    )
    assert found.stdout.split() == [str(tmp_path / package.name / "_native.py"), _native.load().__file__], found.stderr


def test_driver_version_is_a_number_or_a_reason() -> None:
    try:
        assert _native.load().driver_version() >= 12040
    except RuntimeError as error:
        assert "CUDA driver" in str(error) or "cuInit" in str(error)


@pytest.mark.parametrize("running", [(0, 2), (1, 9)])
def test_an_older_jaxlib_is_refused_before_registration(running: tuple[int, int]) -> None:
    with pytest.raises(ImportError, match=r"built for version 0\.3 of the XLA FFI, but jaxlib .* has"):
        _native._check_version((0, 3), running)


@pytest.mark.parametrize("running", [(0, 3), (0, 5), None])
def test_a_newer_jaxlib_is_accepted(running: tuple[int, int] | None) -> None:
    _native._check_version((0, 3), running)


def test_registration_is_thread_safe_and_done_once() -> None:
    threads = [threading.Thread(target=_native.ensure_registered) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _native._registered


@pytest.mark.parametrize("target", ["h100", "b200"])
def test_the_launch_is_readable_in_the_compiled_hlo(target: str) -> None:
    text = _compile(target=target).as_text()
    assert text.count(deviceless.LAUNCH) == 1
    for attribute in (
        'kernel = "foo"',
        'template = "kBlockM=128, kSwap=True"',
        'symbol = "_Z3foo"',
        "grid = dense<[132, 1, 1]>",
        "cluster = dense<[2, 1, 1]>",
        "shared_memory = 200000",
        "pdl = true",
        'dtype = "float32"',
        "sizes = dense<[64, 8]>",
        "strides = dense<256>",
        "swizzle = 128",
        'argument001 = {buffer = 1 : i64, kind = "pointer", offset = 16 : i64}',
        'argument002 = {dtype = "uint64", kind = "scalar", value = -1 : i64}',
    ):
        assert attribute in text, attribute


def test_a_chain_of_five_becomes_a_command_buffer(tmp_path: pathlib.Path) -> None:
    _compile(calls=5, options={"xla_dump_to": str(tmp_path)})
    assert deviceless.commands(tmp_path) == ["kCustomCall"] * 5


def test_three_hundred_arguments() -> None:
    _compile(dataclasses.replace(LAUNCH, arguments=tuple(Pointer(i % 2, 4 * i) for i in range(300))))


def test_every_scalar_survives() -> None:
    values = [Scalar(v, d) for v, d in ((-(2**31), "int32"), (2**32 - 1, "uint32"), (-(2**63), "int64"), (0, "uint64"))]
    floats = [Scalar(v, "float32") for v in (0.1, float("inf"), float("nan"), -0.0)]
    text = _compile(dataclasses.replace(LAUNCH, arguments=(*values, *floats))).as_text()
    assert "value = -9223372036854775808 : i64" in text and "value = 0x7FC00000 : f32" in text


@pytest.mark.parametrize("shape, sizes", [((8, 64), (64, 8)), ((8, 64), (64, 9))])
def test_fp4_operands_are_packed(shape: tuple[int, int], sizes: tuple[int, int]) -> None:
    packed = TensorMap(0, "float4_e2m1fn", sizes, (32,), (64, 8))
    launch = dataclasses.replace(LAUNCH, arguments=(packed,))
    if sizes[1] == 8:
        _compile(launch, dtype=jnp.float4_e2m1fn)
    else:
        with pytest.raises(Exception, match="reaches byte 288 of operand 0, which has 256 bytes"):
            _compile(launch, dtype=jnp.float4_e2m1fn)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((Pointer(0), Pointer(2)), "argument 1: pointer over buffer 2, but the call has 1 operands and 1 results"),
        ((Pointer(1, 2049),), "argument 0: reaches byte 2049 of result 0, which has 2048 bytes"),
        ((Pointer(0, 2**63 - 1),), "reaches byte 9223372036854775807 of operand 0"),
        ((dataclasses.replace(MAP, buffer=3),), "argument 0: tensor_map over buffer 3"),
        ((dataclasses.replace(MAP, sizes=(64, 9)),), "reaches byte 2304 of operand 0, which has 2048 bytes"),
        ((dataclasses.replace(MAP, sizes=(65, 8)),), "reaches byte 2052 of operand 0"),
        ((dataclasses.replace(MAP, offset=16),), "reaches byte 2064 of operand 0"),
        ((dataclasses.replace(MAP, buffer=1, strides=(272,)),), "reaches byte 2160 of result 0"),
        (
            (TensorMap(0, "uint8", (2**32,) * 5, (2**40 - 16,) * 4, (16,) * 5),),
            "reaches byte 18446744073709551615 of operand 0",
        ),
    ],
)
def test_arguments_beyond_their_buffers_are_refused(arguments: tuple, message: str) -> None:
    name = re.escape("jax_deepgemm kernel foo<kBlockM=128, kSwap=True>: ")
    with pytest.raises(Exception, match=name + ".*" + message):
        _compile(dataclasses.replace(LAUNCH, arguments=arguments))


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("kernel", None, r"kernel \(unnamed\): attribute `kernel`"),
        ("symbol", None, "attribute `symbol`"),
        ("cubin", "abc", "attribute `cubin` is not base64"),
        ("cubin", "ab!d", "attribute `cubin` is not base64"),
        ("cubin", 3, "attribute `cubin`"),
        ("grid", 1.5, "attribute `grid`"),
        ("grid", "132", "attribute `grid`"),
        ("block", None, "attribute `block`"),
        ("shared_memory", -1, "attribute `shared_memory` is out of range: -1"),
        ("pdl", 1, "attribute `pdl`"),
        ("arguments", 5, "attribute `arguments`"),
        ("arguments/argument000", 5, "argument 0: attribute `argument000`"),
        ("arguments/argument000/kind", "texture", "argument 0: attribute `kind` has no meaning: texture"),
        ("arguments/argument000/buffer", -1, "argument 0: attribute `buffer` is out of range"),
        ("arguments/argument000/dtype", "bf16", "argument 0: attribute `dtype` is not the type of a tensor map: bf16"),
        ("arguments/argument000/strides", None, "argument 0: attribute `strides`"),
        ("arguments/argument000/swizzle", 7, "argument 0: attribute `swizzle` has no meaning: 7"),
        ("arguments/argument000/fill", "one", "argument 0: attribute `fill`"),
        ("arguments/argument002/dtype", "int8", "argument 2: attribute `dtype` is not the type of a scalar: int8"),
    ],
)
def test_malformed_attributes_are_refused(path: str, value: object, message: str) -> None:
    with pytest.raises(Exception, match=message):
        _compile(edit=((path, value),))


def test_call_sites_can_be_many() -> None:
    launches = [dataclasses.replace(LAUNCH, shared_memory=1024 * i) for i in range(20)]

    def run(x: jax.Array) -> jax.Array:
        for launch in itertools.chain(launches, launches):
            x = fake.bind(x, edit=(), launch=launch)
        return x

    on = deviceless.sharding("h100")
    jitted = jax.jit(run, in_shardings=on, out_shardings=on)
    text = jitted.lower(jax.ShapeDtypeStruct((8, 64), jnp.float32)).compile().as_text()
    assert text.count(deviceless.LAUNCH) == 40
