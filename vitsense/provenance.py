"""Where numbers come from: versions, machine, digests."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = (
    "vitsense",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pandas",
    "scipy",
    "matplotlib",
    "seaborn",
    "typst",
)


def versions() -> dict[str, str]:
    """Versions of everything that can change a number or a picture."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


@cache  # reading ten packages' metadata takes a tenth of a second
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, Any]:
    """Operating system and processor, without anything that names a person or a place."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
    }


def command_line() -> list[str]:
    """The command as it was typed, without the folder of the program."""
    return ["vitsense", *sys.argv[1:]]


def without_option(command: Sequence[str], option: str) -> list[str]:
    """The words of a command without an option and its value."""
    kept: list[str] = []
    skipped = False
    for word in command:
        if skipped:
            skipped = False
        elif word == option:
            skipped = True
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept


def digest(parts: Iterable[bytes]) -> str:
    """16 hex digits of SHA-256 over the parts in order."""
    running = hashlib.sha256()
    for part in parts:
        running.update(part)
    return running.hexdigest()[:16]
