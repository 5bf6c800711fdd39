"""One finding: a sentence that was computed, with the numbers in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One sentence and the numbers in it."""

    key: str
    headline: str
    """What was found, in a few words."""
    sentence: str
    """The numbers behind it, with intervals."""
    value: float
    low: float
    high: float
    told: bool = True
    """Whether the interval tells; else the headline says that it cannot be told."""
