"""The tables of README and docs/benchmarks.md, and the files that they are made from."""

from __future__ import annotations

import json

import pytest

from benchmarks import environment, render, results, tables
from benchmarks.suites import SUITES

FIELDS = ["gpu", "driver", "jax", "date", "commit", "dirty", "peak_tflops", "copy_gbs", "rows"]


def example():
    rows = [
        results.row("fp8_gemm_nt", {"m": m, "n": n, "k": 512}, 10.0, 8.0, {"deep_gemm": 12.0, "xla": 30.0 * m})
        for n in (64, 128)
        for m in (1, 16)
    ]
    del rows[0]["peer_us"]["xla"]
    head = dict.fromkeys(FIELDS) | {"gpu": "NVIDIA H100", "driver": "580", "jax": "0.11.2", "date": "2026-01-01"}
    return head | {"rows": rows}


def test_dense_by_shape():
    text = tables.shapes(example()).splitlines()
    assert text[2] == "| N x K | M=1 | M=16 |"
    assert text[4] == "| 64 x 512 | 10.0 (1.20x) | 10.0 (1.20x) |"


def test_summary_of_the_suites():
    """A line for each group of cases that is named; what did not run is said, whole or in part."""
    text = tables.summary({"dense": example(), "masked": example(), "jit": example()}).splitlines()
    cells = {line.split(" | ")[0]: line.removesuffix(" |").split(" | ")[2:] for line in text[2:]}
    dense = "| [`dense`](docs/benchmarks.md#dense), "
    assert list(cells) == [f"{dense}all", f"{dense}M<=128", "| [`masked`](docs/benchmarks.md#masked)"]
    assert cells[f"{dense}all"] == ["4", "80% (80%)", "1.20x (1.20x)", "did not run", "19.05x (3.00x), 3 of 4", "-"]
    assert cells["| [`masked`](docs/benchmarks.md#masked)"][2:] == ["1.20x (1.20x)", "-", "19.05x (3.00x), 3 of 4", "-"]


def test_another_peer_and_an_unknown_suite():
    rows = [results.row("new_gemm", {"m": 1}, 10.0, None, {"fp8": 5.0})]
    found = {"fp8_fp4": {"rows": rows}, "newest": {"rows": rows}}
    assert tables.summary(found).splitlines()[2].endswith("| 1 | unknown | - | - | - | our FP8 GEMM 0.50x (0.50x) |")
    assert tables.ordered(["newest", "cast", "dense"]) == ["dense", "cast", "newest"]
    assert tables.about("newest", found["newest"]) == "`new_gemm`"


def test_cases_of_a_suite():
    text = tables.cases("dense", example()).splitlines()
    assert text[0] == "| operation | m | n | k | us | of the limit | DeepGEMM | XLA |"
    assert text[2] == "| `fp8_gemm_nt` | 1 | 64 | 512 | 10.0 | 80% | 1.20x | did not run |"
    assert text[-1] == "cuBLASLt did not run."


def test_every_suite_is_told():
    assert set(SUITES) <= set(tables.ABOUT)
    for name, about in tables.ABOUT.items():
        assert set(about.groups) <= ({label for label, _ in SUITES[name].groups} if name in SUITES else set())


def test_render_replaces_only_its_section(monkeypatch):
    monkeypatch.setitem(render.FILES, "README.md", lambda: "new")
    old = f"a\n{render.BEGIN}\nold\n{render.END}\nb"
    assert render.replaced("README.md", old) == f"a\n{render.BEGIN}\nnew\n{render.END}\nb"
    with pytest.raises(ValueError, match=r"README\.md must hold"):
        render.replaced("README.md", "a")


def test_render_checks_and_writes_both_files(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(render, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    for name in render.FILES:
        (tmp_path / name).write_text(f"{render.BEGIN}\n{render.END}\n")
    assert render.main(check=True) == 1
    assert "README.md and docs/benchmarks.md differ" in capsys.readouterr().err
    assert render.main() == 0 and render.main(check=True) == 0
    assert render.NOTHING in (tmp_path / "docs" / "benchmarks.md").read_text()


def test_committed_tables_are_those_of_the_results():
    assert render.main(check=True) == 0, "run python -m benchmarks render"


def test_committed_results_have_the_schema():
    paths = sorted((environment.ROOT / "benchmarks" / "results").glob("*/*.json"))
    if not paths:
        pytest.skip("no results are committed yet")
    for path in paths:
        result = json.loads(path.read_text())
        assert list(result) == FIELDS
        assert path.parent.name == environment.gpu_folder(result["gpu"])
        for row in result["rows"]:
            assert list(row) == ["op", "case", "us", "limit_us", "peer_us"]
            assert row["us"] > 0 and all(us > 0 for us in row["peer_us"].values())


def test_written_results_are_read_back(tmp_path):
    path = tmp_path / "dense.json"
    results.write(path, example())
    assert json.loads(path.read_text()) == example()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text().count("\n") < 20  # a row a line, for readable diffs
