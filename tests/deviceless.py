"""GPUs that are not there, for XLA to compile for, and what its programs for them say."""

from __future__ import annotations

import functools
import pathlib
import re
from typing import Any

import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LAUNCH = 'custom_call_target="jax_deepgemm.launch"'
OPTIMISED = {"xla_backend_optimization_level": 3}  # XLA's default; tests/conftest.py asks for less
_MOVES = {"copy", "copy-start", "copy-done", "transpose"}
_FREE = {"parameter", "bitcast", "tuple", "get-tuple-element"}


def devices(gpu: str, count: int = 1) -> list[Any]:
    """`count` GPUs of one host, of the type that tests/targets/<gpu>.txtpb describes."""
    pytest.importorskip("jax_plugins.xla_cuda13", reason="needs JAX's CUDA plugin")
    config = (pathlib.Path(__file__).parent / "targets" / f"{gpu}.txtpb").read_text()
    topology = topologies.get_topology_desc(platform="cuda", target_config=config, topology=f"1x1x{count}")
    return list(topology.devices)


@functools.cache
def sharding(gpu: str) -> NamedSharding:
    """All of an array on one such GPU."""
    return NamedSharding(Mesh(devices(gpu), ("x",)), PartitionSpec())


def computations(program: str) -> dict[str, list[str]]:
    """Name of each computation of an HLO module -> its instructions; the one that runs is called "ENTRY"."""
    found = re.findall(r"^(ENTRY )?%?([\w.-]+) \(.*\{\n((?:  .*\n)*)\}", program, re.MULTILINE)
    return {"ENTRY" if entry else name: body.splitlines() for entry, name, body in found}


def opcode(instruction: str) -> str:
    # The type before it is `f32[2,3]{1,0}` or a tuple of such.
    found = re.search(r" = (?:\(.*?\)|\S+) ([\w-]+)\(", instruction)
    assert found, instruction
    return found[1]


def moves(program: str) -> list[str]:
    """Instructions of the entry that only copy or transpose, alone or as a fusion of nothing else."""
    bodies = computations(program)

    def work(instruction: str) -> set[str]:
        called = re.search(r" fusion\(.*calls=%?([\w.-]+)", instruction)
        return ({opcode(i) for i in bodies[called[1]]} if called else {opcode(instruction)}) - _FREE

    return [i for i in bodies["ENTRY"] if (done := work(i)) and done <= _MOVES]


def commands(folder: pathlib.Path) -> list[str]:
    """The kinds of what is inside the command buffer of a program dumped to `folder`, which is all that it runs."""
    (thunks,) = folder.glob("*.thunk_sequence_after_thunk_passes.txt")
    outer, *inner = thunks.read_text().strip().splitlines()
    assert "kCommandBuffer" in outer
    found = [re.match(r"\s+\d+: (k\w+)", line) for line in inner]
    assert all(found), inner
    return [f[1] for f in found if f]
