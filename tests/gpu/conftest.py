"""Every test in this folder needs a GPU that there are kernels for."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from typing import Any

import pytest

# PyTorch's side stream and the sanitizer's processes need memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

HANG_SECONDS = 100  # of a test; a kernel that waits forever cannot be interrupted, only the process ended


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The sanitizer's tools take longest: first, so that with pytest-xdist they run beside all the rest."""
    items.sort(key=lambda item: item.path.name != "test_sanitizer.py")


@pytest.fixture(scope="session")
def terminal(pytestconfig: pytest.Config) -> Iterator[int]:
    """What stderr was before pytest captured it."""
    capture: Any = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        descriptor = os.dup(2)
    yield descriptor
    os.close(descriptor)


@pytest.fixture(autouse=True)
def hang_ends_the_process(terminal: int) -> Iterator[None]:
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=terminal)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def hopper() -> None:
    import jax

    from jax_deepgemm.target import Target

    device = jax.devices()[0]
    if Target.from_device(device) is None:
        pytest.skip(f"no kernels for {device.device_kind}")
