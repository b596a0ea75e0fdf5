"""`python -m jax_deepgemm`: the doctor, and README's example."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import jax_deepgemm
from jax_deepgemm import __main__ as command
from jax_deepgemm import doctor
from tests.helpers import relative_error

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def report():
    return doctor.examine()


def test_report_is_json(report):
    assert json.loads(json.dumps(report)) == report


def test_report_says_what_it_would_do(report):
    assert report["versions"]["jax"] and report["devices"] and report["target_reason"]
    assert set(report["operations"]) == set(doctor.OPERATIONS)
    assert all(callable(getattr(jax_deepgemm, name.split()[0])) for name in doctor.OPERATIONS)


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
    for name in doctor.OPERATIONS:
        function, *recipe = name.split()
        assert f"`{function}`" in readme
        assert all(r in readme for r in recipe)
