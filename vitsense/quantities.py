"""Times and sizes as people write them: ``10m``, ``4G``. No torch."""

from __future__ import annotations

import re

from vitsense.errors import UserInputError

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def seconds_of(text: str, option: str) -> float:
    """Seconds of ``90``, ``90s``, ``10m``, ``1.5h`` or ``1h30m``.

    Raises:
        UserInputError: it is not a time above zero.
    """
    parts = re.findall(r"([0-9]*\.?[0-9]+)([smh]?)", text.strip().lower())
    whole = "".join(number + unit for number, unit in parts)
    found = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if whole != text.strip().lower() or found <= 0:
        raise UserInputError(f"{option} is {text!r}: write a time such as 90s, 10m or 1h30m.")
    return found


def bytes_of(text: str, option: str) -> int:
    """Bytes of ``500M``, ``4G`` or ``4GiB`` (powers of 1,024).

    Raises:
        UserInputError: it is not a size of at least one byte.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    found = int(float(match[1]) * _BYTES[match[2]]) if match else 0
    if found < 1:
        raise UserInputError(f"{option} is {text!r}: write a size such as 500M or 4G.")
    return found


def size_text(size: float) -> str:
    """``3.2 GiB``, ``48 MiB``."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"
