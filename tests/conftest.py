"""What every test gets: one thread, no network, no display, the same random numbers."""

from __future__ import annotations

import os

# before anything imports numpy, torch or matplotlib: they read these once
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"

import gc
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

# what is imported and collected stays to the end: looking through it again and again, for what
# nobody needs any more, would take a tenth of the time of all tests
gc.disable()

# an example that takes long on a busy machine is no defect
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

_LOCAL = ("127.0.0.1", "::1", "localhost")


def pytest_collection_finish() -> None:
    """From here on garbage is collected, of what tests make."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Two threads on a busy two-core machine are ten times slower than one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries under test may use the global generator
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches out of this machine fails at once."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        inside = isinstance(address, (str, bytes)) or address[0] in _LOCAL
        if not inside:
            raise OSError(f"tests have no network, and something connects to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real weights and images; tests that need it are skipped without it."""
    named = os.environ.get("VITSENSE_DATA")
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(named) if named else beside
    if not folder.is_dir():
        pytest.skip("no real data: set VITSENSE_DATA to a folder that has it")
    return folder


@pytest.fixture(autouse=True)
def _no_function_mode_left() -> Iterator[None]:
    """DESIGN 6.1 for every test: no torch-function mode is left behind."""
    yield
    if "torch" in sys.modules:
        from torch.overrides import _get_current_function_mode_stack

        assert _get_current_function_mode_stack() == []
