"""What the comparison of two runs says, as plain data: the content of ``comparison.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vitsense.report.document import ModelPart

COMPARISON_SCHEMA = "vitsense.comparison/1"
"""Schema of ``comparison.json``."""

STEPS = 10
"""Colours on either side of no change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeCell:
    """One module in one format: how its divergence changed."""

    text: str
    """``×1.4``; a dash where it was not compared."""
    detail: str
    """With its interval, and whether it is distinguishable."""
    sort: float
    """Logarithm of the ratio, base 2; 0 where it was not compared."""
    level: int
    """Colour, 0 (diverges much less) over `STEPS` (no change) to twice that (much more)."""
    certain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRow:
    """One module."""

    index: int
    name: str
    role: str
    bits: str
    """In the two recommended plans: ``4`` or ``4 → 6``."""
    cells: tuple[ChangeCell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeTable:
    """Every module in every format; the data of the section ``changes``."""

    columns: tuple[str, ...]
    rows: tuple[ChangeRow, ...]
    reading: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsDocument:
    """The comparison of two runs."""

    title: str
    question: str
    runs: tuple[str, str]
    """Names of the folders, the first and the second run."""
    warnings: tuple[str, ...]
    models: tuple[ModelPart, ...]
    method: tuple[tuple[str, str], ...]
    commands: tuple[tuple[str, ...], tuple[str, ...]]
    """The commands that made the runs."""
    files: tuple[tuple[str, str], ...]
    words: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"schema": COMPARISON_SCHEMA, **asdict(self)}
