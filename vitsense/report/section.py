"""What a chapter of the report is made of: a few kinds of blocks, shown alike in HTML and PDF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

BLOCKS = "blocks"
"""The template that shows a section's blocks in order and needs nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A paragraph."""

    text: str
    kind: str = "words"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A sentence that was computed, and the numbers behind it."""

    headline: str
    numbers: str
    kind: str = "finding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """Sentences that nobody who reads on should miss."""

    texts: tuple[str, ...]
    kind: str = "caution"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Names and values."""

    rows: tuple[tuple[str, str], ...]
    title: str = ""
    """What they are about, where the chapter's name does not say it."""
    kind: str = "facts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text below a head; the first column names the row."""

    title: str
    """States what is found; also the name for screen readers."""
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    reading: str = ""
    """How to read it."""
    marked: tuple[int, ...] = ()
    """Rows that stand out, such as the recommended plan."""
    code: bool = False
    """Whether the first column holds names of the model's code: modules, tensors, blocks."""
    across: tuple[int, ...] = ()
    """Columns of long texts that in print stand across the page, below the rest of their row."""
    kind: str = "table"

    def __post_init__(self) -> None:
        """Every row has a cell for every column."""
        assert all(len(row) == len(self.head) for row in self.rows), self.title


NOTHING = frozenset({"", "\N{EN DASH}"})
"""What a cell shows that has nothing to show."""


def without_dashes(table: Table) -> Table:
    """The table without columns that have nothing to show in any row."""
    kept = [
        k
        for k in range(len(table.head))
        if k == 0 or any(row[k] not in NOTHING for row in table.rows)
    ]
    return replace(
        table,
        head=tuple(table.head[k] for k in kept),
        rows=tuple(tuple(row[k] for k in kept) for row in table.rows),
        across=tuple(kept.index(k) for k in table.across if k in kept),
    )


class Shape(str, Enum):
    """How the points of a chart are drawn."""

    POINTS = "points"
    LINE = "line"
    BARS = "bars"
    DOTS = "dots"
    """A row for every label, and on it a mark with its interval; ``x`` is the row, ``y`` the value.
    With ``log_x`` the axis is linear below 1 and logarithmic above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Values with one colour and marker, and a label where they end."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    """Ends of the intervals of ``y``; empty if there are none."""
    colour: int = 0
    """Number of the model whose colour it has; -1 is ink."""
    labels: tuple[str, ...] = ()
    """A word beside each point; for bars, what each bar is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture as data. Its title states the finding."""

    name: str
    """Unique in the report; letters, digits and hyphens."""
    title: str
    alt: str
    """The picture in words, with its numbers."""
    reading: str
    shape: Shape
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    diagonal: bool = False
    """Draw the line on which both axes are equal."""
    kind: str = "chart"


Block = Words | Finding | Caution | Facts | Table | Chart


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A chapter of the report, or of one model's part of it."""

    key: str
    """Its anchor; letters, digits and hyphens."""
    title: str
    blocks: tuple[Block, ...] = ()
    template: str = BLOCKS
    """``sections/<template>.html.jinja`` and ``sections/<template>.typ`` show it."""
    data: Any = None
    """A frozen dataclass for a template of its own."""

    @property
    def charts(self) -> Sequence[Chart]:
        """The pictures among the blocks."""
        return [block for block in self.blocks if isinstance(block, Chart)]
