from __future__ import annotations

import os
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Before anything imports jax: eight host devices, and no GPU unless GPU tests are asked for.

    On a CPU the suite compiles some thousand programs, each to run once: without LLVM's optimisations it takes half the
    time. What users have, the default, is asked for by test_optimised.py and by the tests that compile for GPUs.
    """
    flags = ["--xla_force_host_platform_device_count=8"]
    if "not gpu" in config.getoption("markexpr"):
        os.environ["JAX_PLATFORMS"] = "cpu"
        # NumPy's threads spin while they wait for work: workers would take each other's processors.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        flags.append("--xla_backend_optimization_level=0")
    if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):  # a worker has them already
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
    config.pluginmanager.register(FailuresAtOnce(config))


class FailuresAtOnce:
    """Says at once, not only at the end, which test failed and why: a run may be cut off before its end."""

    def __init__(self, config: pytest.Config):
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal: Any = self._config.pluginmanager.getplugin("terminalreporter")  # none in a worker of pytest-xdist
        if not report.failed or terminal is None:
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        lines = (crash.message if crash else str(report.longrepr)).strip().splitlines() or [""]
        said = " ... ".join(dict.fromkeys(line.strip()[:200] for line in (lines[0], lines[-1])))
        terminal.ensure_newline()
        terminal.write_line(f"FAILED {report.nodeid} ({report.when}): {said}", flush=True)
