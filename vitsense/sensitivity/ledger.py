"""What is measured of each cell so far, by the range of images it was measured on.

Results are kept by image range and not by batch number, so that another batch size (another
machine, less memory) can continue where an interrupted run stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from vitsense.sensitivity.result import Cell, Outcome

Results = Mapping[Cell, Outcome]


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Images ``start`` up to, not including, ``stop``, in the order of the evaluation set."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def contains(self, other: Span) -> bool:
        """Whether every image of ``other`` is in this span."""
        return self.start <= other.start and other.stop <= self.stop

    def split_at(self, places: Iterable[int]) -> list[Span]:
        """The span cut at every one of ``places`` that lies inside it."""
        inside = {place for place in places if self.start < place < self.stop}
        edges = [self.start, *sorted(inside), self.stop]
        return [Span(a, b) for a, b in zip(edges, edges[1:], strict=False)]

    def steps(self, size: int) -> list[Span]:
        """The span in steps of at most ``size`` images."""
        return self.split_at(range(self.start + size, self.stop, size))


@dataclass(frozen=True, slots=True)
class Entry:
    """Outcomes of cells of one module on some spans, measured in one pass."""

    spans: tuple[Span, ...]
    module: str
    results: Mapping[Cell, tuple[Outcome, ...]]
    """One outcome for each span."""


class Ledger:
    """Outcomes by cell and span, and where new ones are kept.

    The spans of one cell never overlap. Sums are taken in the order of the images, so that they
    are the same bit for bit whatever was measured first.
    """

    def __init__(
        self,
        known: Iterable[Entry] = (),
        keep: Callable[[Entry], None] = lambda _entry: None,
        others: Callable[[], Iterable[Entry]] = tuple,
    ) -> None:
        self._keep = keep
        self._others = others
        self._outcomes: dict[Cell, dict[Span, Outcome]] = {}
        for entry in known:
            self.add(entry)

    def record(self, entry: Entry) -> None:
        """Keep new outcomes, durably first."""
        self._keep(entry)
        self.add(entry)

    def meet(self) -> None:
        """Know what the other processes of the run have measured since the last time."""
        for entry in self._others():
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Know outcomes that are kept already; of two overlapping ones, the earlier stays."""
        for cell, outcomes in entry.results.items():
            mine = self._outcomes.setdefault(cell, {})
            for span, outcome in zip(entry.spans, outcomes, strict=True):
                if not any(s.start < span.stop and span.start < s.stop for s in mine):
                    mine[span] = outcome

    def breaks(self, cell: Cell) -> set[int]:
        """Where the known spans of a cell begin and end."""
        return {place for s in self._outcomes.get(cell, {}) for place in (s.start, s.stop)}

    def knows(self, cell: Cell, span: Span) -> bool:
        """Whether the cell was measured on every image of ``span``."""
        return _covered(self._outcomes.get(cell, {}), span)

    def outcome(self, cell: Cell, span: Span) -> Outcome | None:
        """The sum over ``span``; None if some of its images are missing.

        A known span that reaches out of ``span`` cannot be taken apart and counts as missing.
        """
        mine = self._outcomes.get(cell, {})
        parts = sorted(s for s in mine if span.contains(s))
        if sum(map(len, parts)) != len(span):
            return None
        total = mine[parts[0]]
        for part in parts[1:]:
            total = total + mine[part]
        return total

    def total(self, cell: Cell) -> Outcome | None:
        """The sum over all images that the cell has seen."""
        mine = self._outcomes.get(cell, {})
        parts = [mine[span] for span in sorted(mine)]
        return sum(parts[1:], start=parts[0]) if parts else None


class _Sum(Protocol):
    """What adds up over images."""

    def __add__(self, other: Any, /) -> Any:
        """Over the images of both."""


Key = TypeVar("Key", bound=Hashable)
Sum = TypeVar("Sum", bound=_Sum)


class SpanSums(Generic[Key, Sum]):
    """Sums by key and span of images, and where new ones are kept; see `Ledger`."""

    def __init__(
        self,
        known: Iterable[tuple[Key, Span, Sum]] = (),
        keep: Callable[[Key, Span, Sum], None] = lambda *_: None,
        others: Callable[[], Iterable[tuple[Key, Span, Sum]]] = tuple,
    ) -> None:
        self._found: dict[Key, dict[Span, Sum]] = {}
        self._keep = keep
        self._others = others
        for found in known:
            self.add(*found)

    def record(self, key: Key, span: Span, value: Sum) -> None:
        """Keep a new sum, durably first."""
        self._keep(key, span, value)
        self.add(key, span, value)

    def add(self, key: Key, span: Span, value: Sum) -> None:
        """Know a sum that is kept already; of two overlapping ones, the earlier stays."""
        mine = self._found.setdefault(key, {})
        if not any(s.start < span.stop and span.start < s.stop for s in mine):
            mine[span] = value

    def meet(self) -> None:
        """Know what the other processes of the run have measured since the last time."""
        for found in self._others():
            self.add(*found)

    def knows(self, key: Key, span: Span) -> bool:
        """Whether every image of ``span`` is in a sum."""
        return _covered(self._found.get(key, {}), span)

    def total(self, key: Key) -> Sum | None:
        """The sum over all images of a key, in their order; None where there are none."""
        mine = self._found.get(key, {})
        spans = sorted(mine)
        if not spans:
            return None
        total = mine[spans[0]]
        for span in spans[1:]:
            total = total + mine[span]
        return total


def _covered(known: Iterable[Span], span: Span) -> bool:
    """Whether spans that do not overlap hold every image of ``span``."""
    inside = [s for s in known if s.start < span.stop and span.start < s.stop]
    return sum(min(s.stop, span.stop) - max(s.start, span.start) for s in inside) == len(span)
