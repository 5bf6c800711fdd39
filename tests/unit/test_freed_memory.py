"""Freed memory stays with the process, unless the user has decided otherwise."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from vitsense import freed_memory

_FAULTS = """
import resource
from vitsense.freed_memory import keep_freed_memory
print(keep_freed_memory())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = b"x" * (48 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(), print(faults())
"""


def _second_block(**more: str) -> tuple[str, int]:
    """Whether memory is kept, and pages that had to be fetched for a block of 48 MiB again."""
    chosen = freed_memory._CHOSEN_BY_USER
    environment = {k: v for k, v in os.environ.items() if k not in chosen} | more
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS], check=True, capture_output=True, text=True, env=environment
    )
    kept, pages = done.stdout.split()
    return kept, int(pages)


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None) if os.name == "posix" else None, "mallopt"),
    reason="the C library has no mallopt",
)
def test_a_block_that_was_freed_is_used_again_without_fetching_pages() -> None:
    kept, pages = _second_block()
    assert kept == "True"
    given_back, fetched = _second_block(MALLOC_TRIM_THRESHOLD_="131072")  # as glibc has it
    assert given_back == "False"
    assert fetched > 1000 > 10 * pages


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def absent(_name: None) -> None:
        raise error

    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", absent)
    assert not freed_memory.keep_freed_memory()
