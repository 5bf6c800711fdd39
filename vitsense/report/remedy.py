"""Whether a remedy helped, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitsense.report.formatters import known, short, short_span

_ANY_CAUSE = ("two more bits", "the next wider format", "left in full precision")
"""Remedies that help whatever the cause, as ``causes.csv`` names them."""


def outcome(row: Mapping[str, Any]) -> str:
    """``helps``, ``no help`` or ``worse`` by the interval after it; empty if it was not tried.

    Args:
        row: Of ``causes.csv``; divergences in nats.
    """
    if not (known(row.get("kl_before")) and known(row.get("kl_after"))):
        return ""
    before = float(row["kl_before"])
    if float(row["kl_after_high"]) < before:
        return "helps"
    return "worse" if float(row["kl_after_low"]) > before else "no help"


def tried(row: Mapping[str, Any]) -> str:
    """The remedy with what it gave, ``two more bits: helps, 0.0025 became 0.0003 (...) nats``."""
    remedy = str(row.get("remedy") or "")
    found = outcome(row)
    if not remedy or not found:
        return f"{remedy}, not tried" if remedy else ""
    after = short_span(*(float(row[f"kl_after{end}"]) for end in ("", "_low", "_high")))
    return f"{remedy}: {found}, {short(float(row['kl_before']))} became {after} nats"


def shown(row: Mapping[str, Any]) -> bool:
    """Whether a remedy against this very cause helped; more bits help against any.

    Args:
        row: Of ``causes.csv``.
    """
    return outcome(row) == "helps" and row.get("remedy") not in _ANY_CAUSE
