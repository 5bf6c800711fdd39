"""Whether a remedy helped, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitsense.report.formatters import known, short, short_span

_ANY_CAUSE = ("two more bits", "the next wider format", "left in full precision")
"""Remedies that help whatever the cause, as ``causes.csv`` names them."""


def tests_cause(row: Mapping[str, Any]) -> bool:
    """Whether the remedy is one against this very cause; more bits lower any divergence.

    Args:
        row: Of ``causes.csv``.
    """
    return row.get("remedy") not in _ANY_CAUSE


def lowers(row: Mapping[str, Any]) -> bool:
    """Whether the divergence before is above the whole interval after; False if it was not tried.

    Args:
        row: Of ``causes.csv``; divergences in nats.
    """
    tried = known(row.get("kl_before")) and known(row.get("kl_after"))
    return tried and float(row["kl_after_high"]) < float(row["kl_before"])


def outcome(row: Mapping[str, Any]) -> str:
    """``helps``, ``no help``, ``worse`` or ``tests no cause``; empty if it was not tried.

    Decided by the divergence; where the drop says the contrary, that is added.

    Args:
        row: Of ``causes.csv``; divergences in nats, drops in points.
    """
    if not (known(row.get("kl_before")) and known(row.get("kl_after"))):
        return ""
    if lowers(row):
        return ("helps" if tests_cause(row) else "tests no cause") + _drop_rises(row)
    return "worse" if float(row["kl_after_low"]) > float(row["kl_before"]) else "no help"


def _drop_rises(row: Mapping[str, Any]) -> str:
    """``, but the drop rises``: with the divergence lower, and whether that may be nothing."""
    if not (known(row.get("drop_before")) and known(row.get("drop_after"))):
        return ""
    if float(row["drop_after"]) <= float(row["drop_before"]):
        return ""
    sure = float(row["drop_after_low"]) > float(row["drop_before"])
    return f", but the drop rises{'' if sure else ' (within its interval)'}"


def tried(row: Mapping[str, Any]) -> str:
    """The remedy with what it gave, ``powers of two: helps, 0.0025 became 0.0003 (...) nats``."""
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
    return lowers(row) and tests_cause(row)
