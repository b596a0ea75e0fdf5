from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Before anything imports jax: eight host devices, and no GPU unless GPU tests are asked for."""
    flag = "--xla_force_host_platform_device_count=8"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    if "not gpu" in config.getoption("markexpr"):
        os.environ["JAX_PLATFORMS"] = "cpu"
