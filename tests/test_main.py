"""`python -m jax_deepgemm`: the doctor, and README's example."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

import jax_deepgemm
from jax_deepgemm import __main__ as command
from jax_deepgemm import compile as compiler
from jax_deepgemm import doctor, inventory
from tests.helpers import relative_error

ROOT = pathlib.Path(__file__).parent.parent
CPU, XLA = "the default device is cpu, and kernels run on GPUs", "XLA: no kernel of its own yet"
WITHOUT_KERNEL = dict.fromkeys(("cast_back_from_fp8", "cast_back_from_fp4"), XLA)


@pytest.fixture(scope="module")
def report():
    return doctor.examine()


def test_report_is_json(report):
    assert json.loads(json.dumps(report)) == report


def test_report_says_what_it_would_do(report):
    assert report["versions"]["jax"] and report["devices"]
    assert report["target"] is None and "kernels run on GPUs" in report["target_reason"]
    assert report["operations"] == dict.fromkeys(inventory.PROBLEMS, f"reference: {CPU}") | WITHOUT_KERNEL


def test_every_public_operation_is_listed():
    """All public functions but those that change a setting or measure."""
    functions = {name: f for name, f in vars(jax_deepgemm).items() if callable(f) and not isinstance(f, type)}
    elsewhere = {"jax_deepgemm.config", "jax_deepgemm.tuning"}
    public = {name for name, f in functions.items() if f.__module__ not in elsewhere}
    assert {name.split()[0] for name in inventory.PROBLEMS} == public


def gpu(capability):
    return types.SimpleNamespace(platform="gpu", device_kind="GPU", compute_capability=capability, core_count=132)


@pytest.mark.parametrize(
    "capabilities, nvrtc, how",
    [
        (["9.0"], "libnvrtc.so", "native kernel"),
        (["9.0"], None, "reference: NVRTC was not found"),
        (["8.0"], "libnvrtc.so", "reference: there are no kernels for GPU (compute capability 8.0)"),
        (["9.0", "8.0"], None, "reference: there are no kernels for GPU (compute capability 8.0)"),
    ],
)
def test_operations_on_gpus(monkeypatch, capabilities, nvrtc, how):
    monkeypatch.setattr(jax, "devices", lambda: [gpu(capability) for capability in capabilities])
    monkeypatch.setattr(compiler, "nvrtc_location", lambda: nvrtc)
    found = doctor.operations()
    own = {name: said for name, said in found.items() if name not in WITHOUT_KERNEL}
    assert found == own | WITHOUT_KERNEL
    assert {re.sub(r"^\d+ native kernels$", "native kernel", said) for said in own.values()} == {how}


def test_a_gpu_to_compile_for_is_none_to_run_on():
    with jax_deepgemm.set_target(jax_deepgemm.H100):
        assert doctor.target() == (jax_deepgemm.H100, "set by set_target")
        assert doctor.operations()["fp8_gemm_nt"] == f"reference: {CPU}"


def test_a_problem_without_a_kernel_is_said():
    other = jax_deepgemm.Target("sm_80", 108, 166912)
    assert inventory.runs_as(other, None)["fp8_linear"] == "reference: no kernel takes cast_to_fp8, fp8_gemm_nt"


def test_operations_are_lowered_as_is_said(monkeypatch):
    """To as many launches, for which no kernel needs to be compiled."""
    monkeypatch.setattr(compiler, "compile_kernel", lambda kernel, arch: compiler.Binary(b"", "", 0, 0, 0, ""))
    for name, said in inventory.runs_as(jax_deepgemm.H100, None).items():
        problem = inventory.PROBLEMS[name]
        function = functools.partial(getattr(jax_deepgemm, name.split()[0]), **problem.options)
        with jax_deepgemm.set_target(jax_deepgemm.H100):
            lowered = jax.jit(function).trace(*problem.operands).lower(lowering_platforms=("cuda",)).as_text()
        launches = lowered.count("@jax_deepgemm.launch")
        assert said == {0: XLA, 1: "native kernel"}.get(launches, f"{launches} native kernels"), name


def test_families():
    operations = {"bf16_gemm_nt": "a", "bf16_gemm_nn": "b", "bf16_gemm_tn": "a", "m_grouped_gemm_nt_masked": "a"}
    assert command.families(operations | {"moe_mlp": "a", "bf16_gemm_tt (1D1D)": "a"}) == {
        "bf16_gemm_{nt,tn}": "a",
        "bf16_gemm_nn": "b",
        "m_grouped_gemm_nt_masked": "a",
        "moe_mlp": "a",
        "bf16_gemm_tt (1D1D)": "a",
    }


def test_main_job_is_within_its_bounds(report):
    assert report["faults"] == []
    assert len(report["main_job"]) == len(doctor.CPU_SIZES)
    for row in report["main_job"]:
        # Under the bound, and not by comparing a thing with itself.
        assert 1e-4 < row["error"] < row["error_bound"]
        assert 1e-2 < row["quantisation_error"] < row["quantisation_bound"]
        assert row["us"] > 0 and row["xla_us"] > 0


def test_table_is_aligned(report):
    text = list(command.lines(report))
    start = next(index for index, line in enumerate(text) if line.lstrip().startswith("M "))
    widths = {len(line) for line in text[start : start + 1 + len(report["main_job"])]}
    assert len(widths) == 1


@pytest.mark.parametrize("wrong", ["zeroed", "shifted", "unscaled", "nan"])
def test_a_wrong_result_is_a_fault(monkeypatch, wrong, capsys):
    right = doctor._gemm
    change = {
        "zeroed": lambda a, a_scale, b, b_scale: 0 * right(a, a_scale, b, b_scale),
        "shifted": lambda a, a_scale, b, b_scale: right(a, a_scale, b, b_scale) * 1.01,
        "unscaled": lambda a, a_scale, b, b_scale: right(a, 0 * a_scale + 1, b, b_scale),
        "nan": lambda a, a_scale, b, b_scale: right(a, a_scale, b, b_scale).at[0, 0].set(float("nan")),
    }[wrong]
    monkeypatch.setattr(doctor, "_gemm", change)
    monkeypatch.setattr(doctor, "CPU_SIZES", ((16, 128, 256),))
    assert command.main(["--json"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["faults"]
    assert "16 x 128 x 256: error against float64" in output.err


def test_a_crash_is_a_fault_and_the_report_goes_on(monkeypatch):
    def broken(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(doctor, "main_job", broken)
    report = doctor.examine()
    assert len(report["faults"]) == len(doctor.CPU_SIZES)
    assert "RuntimeError: no such kernel" in report["faults"][0]


def test_no_backend_is_a_fault_and_the_rest_is_reported(monkeypatch):
    def broken():
        raise RuntimeError("Unable to initialize backend 'cuda'\nand more")

    monkeypatch.setattr(doctor.jax, "devices", broken)
    report = doctor.examine()
    said = "JAX has no devices: RuntimeError: Unable to initialize backend 'cuda'"
    assert report["faults"] == [said] and report["target_reason"] == said
    assert report["devices"] == report["main_job"] == []
    assert report["versions"]["jax"] == jax.__version__


def test_driver_version_without_a_driver(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    version = doctor.driver_version()
    assert version is None or version[0].isdigit()


def test_module_runs():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "jax_deepgemm"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "fp8_gemm_nt" in done.stdout


def test_readme_s_programs_run():
    """All Python in it, one behind the other, as a reader would."""
    blocks = (ROOT / "README.md").read_text().split("```python\n")[1:]
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile("\n".join(block.partition("```")[0] for block in blocks), "README.md", "exec"), names)
    assert (names["gradient"].shape, names["gradient"].dtype) == ((384, 1024), names["w"].dtype)
    experts = np.asarray(names["y"]).astype(np.float64)
    assert relative_error(names["y8"], experts) < 0.1 and relative_error(names["together"], experts) < 1e-2


def test_readme_lists_every_environment_variable():
    from jax_deepgemm import env

    readme = (ROOT / "README.md").read_text()
    for variable in env.VARIABLES:
        default = f"`{variable.default}`" if "$" in variable.default else variable.default
        row = f"| `{variable.name}` | {default} | {variable.meaning} |"
        assert " ".join(row.split()) in readme


def test_readme_says_what_the_doctor_says():
    readme = (ROOT / "README.md").read_text()
    named = {name for code in re.findall(r"`([a-z0-9_{},]+)`", readme) for name in expanded(code)}
    for operation in inventory.PROBLEMS:
        function, *problem = operation.split()
        assert function in named
        assert all(word.strip("()") in readme for word in problem)


def expanded(name: str) -> Iterator[str]:
    """`a_{b,c}_d` as `a_b_d` and `a_c_d`."""
    found = re.fullmatch(r"(.*?){(.*?)}(.*)", name)
    if not found:
        yield name
        return
    for choice in found[2].split(","):
        yield from expanded(found[1] + choice + found[3])
