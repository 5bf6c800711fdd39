"""Adaptive one-at-a-time sensitivity: rounds of images, and fewer cells in every round.

All images are run once in full precision and grouped by how sure the model is of them (`strata`).
Each round takes more images of every group; after it, a cell stops when its drop is known within
the tolerance, or when it can neither change a plan nor be resolved with the effort that is left
(`stopping`). Intervals hold under this repeated looking (`sequential`). Decisions depend on kept
results only, so a run that was killed decides the same again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vitsense.deadline import Deadline, TimeIsUpError
from vitsense.formats import FormatLike, format_of
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sensitivity.doubt import Doubts
from vitsense.sensitivity.ledger import Ledger, Span
from vitsense.sensitivity.meter import Batch, Meter
from vitsense.sensitivity.portions import ReadImages
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Cell, Measured
from vitsense.sensitivity.stopping import (
    Judged,
    Rule,
    effort,
    harmless,
    judge,
    rounds,
    sample_of,
    undecided,
)
from vitsense.sensitivity.strata import Strata, stratify
from vitsense.sensitivity.stratified import bounded_columns, estimated_columns
from vitsense.sensitivity.sweep import OUT_OF_TIME, measurable
from vitsense.sensitivity.sweep import cells as all_cells
from vitsense.settings import Part
from vitsense.sites import SiteCatalog
from vitsense.team import ALONE, Team


def measure_adaptive(
    model: nn.Module,
    catalog: SiteCatalog,
    quantizers: Quantizers,
    read: ReadImages,
    doubt: Doubts,
    *,
    bits: Sequence[FormatLike],
    parts: Sequence[Part] = (Part.BOTH,),
    rule: Rule | None = None,
    ledger: Ledger | None = None,
    largest: int = 32,
    deadline: Deadline | None = None,
    team: Team = ALONE,
    progress: Progress = NO_PROGRESS,
) -> list[Measured]:
    """Measure every module x width x part, each on as many images as it needs.

    The model is left exactly as it was, also when interrupted.

    Args:
        model: Any image classifier.
        catalog: Its sites.
        quantizers: Its grids.
        read: Opens evaluation images.
        doubt: Of every evaluation image; see `vitsense.sensitivity.doubt`.
        bits: Widths, or names of formats.
        parts: What is quantized.
        rule: Tolerance, confidence and seed.
        ledger: What earlier, interrupted work already measured, and where new results are kept.
        largest: Images that are taken at once, at most.
        deadline: Measuring stops there; cells have then seen fewer images, or none.
        team: The processes that share the work; the first decides what is looked at.
        progress: Told of every module and round.

    Raises:
        MeasurementError: the full-precision model gives logits that are not finite.
    """
    rule = Rule() if rule is None else rule
    strata = stratify(doubt.nats, rule.seed, doubt.wrong)
    ledger = Ledger() if ledger is None else ledger
    wanted = measurable(catalog, bits, parts)
    with Meter.open(
        model,
        catalog,
        quantizers,
        ledger,
        largest=largest,
        deadline=deadline,
        team=team,
        progress=progress,
    ) as meter:
        sweep = _Sweep(catalog, strata, rule, ledger, meter, read, team, progress, wanted)
        with suppress(TimeIsUpError):
            sweep.run(Part.BOTH if Part.BOTH in parts else parts[0])
    return sweep.table(all_cells(catalog, bits, parts))


@dataclass(slots=True)
class _Sweep:
    """The state of a sweep between rounds."""

    catalog: SiteCatalog
    strata: Strata
    rule: Rule
    ledger: Ledger
    meter: Meter
    read: ReadImages
    team: Team
    progress: Progress
    wanted: Mapping[str, Sequence[Cell]]
    counts: dict[Cell, tuple[int, ...]] = field(default_factory=dict)
    """Images seen of each stratum, by cell."""
    bounds: dict[Cell, Cell] = field(default_factory=dict)
    """Cell that was not looked at -> narrower one that is harmless."""

    def run(self, planned: Part) -> None:
        """All rounds."""
        totals = rounds(self.strata.images)
        active = self._first_round(totals[0])
        cells = sum(map(len, self.wanted.values()))
        left = effort(cells, self.strata.images) - len(active) * totals[0]
        for before, after in zip(totals, totals[1:], strict=False):
            if not active:
                return
            judged = self.judged(list(self.counts), self.rule.confidence)
            ranked = undecided(judged, active, self.catalog, self.rule, planned)
            ranked = ranked[: max(left // (after - before), 0)]
            left -= len(ranked) * (after - before)
            chosen = set(ranked)
            active = self._agreed(active, [cell in chosen for cell in active])
            self._look(active, before, after)

    def _first_round(self, total: int) -> list[Cell]:
        """Narrow widths first; wider ones of a module are left out once one is harmless."""
        everything = [cell for found in self.wanted.values() for cell in found]
        widths = sorted({cell.bits for cell in everything})
        stopped: dict[tuple[str, Part], Cell] = {}
        for width in widths:
            now = [c for c in everything if c.bits == width]
            for cell in now:
                narrow = stopped.get((cell.module, cell.part))
                if narrow is not None and format_of(cell.format).is_integer:
                    self.bounds[cell] = narrow
            now = [c for c in now if c not in self.bounds]
            self._look(now, 0, total)
            if now and width != widths[-1]:
                judged = self.judged(now, self.rule.confidence)
                for cell in self._agreed(now, harmless(judged, self.rule)):
                    if format_of(cell.format).is_integer:
                        stopped[cell.module, cell.part] = cell
        return [cell for cell in everything if cell not in self.bounds]

    def _agreed(self, cells: Sequence[Cell], chosen: Sequence[bool]) -> list[Cell]:
        """The cells that the first process chose: another processor may round otherwise."""
        answer = self.team.agree(list(chosen))
        return [cell for cell, good in zip(cells, answer, strict=True) if good]

    def _look(self, active: Sequence[Cell], before: int, after: int) -> None:
        """Show the next images to the active cells; without any, say and do nothing."""
        if not active:
            return
        done = self.strata.counts(before) if before else (0,) * len(self.strata.sizes)
        counts = self.strata.counts(after)
        spans = self.strata.spans(done, counts)
        by_module: dict[str, list[Cell]] = {}
        for cell in active:
            by_module.setdefault(cell.module, []).append(cell)
        images = sum(map(len, spans))
        widths = {format_of(cell.format).words for cell in active}
        at = f" at {widths.pop()}" if len(widths) == 1 else ""
        label = f"sensitivity{at}, {len(active)} cells, images to {after}"
        self.progress.start(images * len(by_module), label)
        try:
            self.meter.measure(spans, self._batch, by_module)
        finally:  # when time is up, some cells have seen the images and some have not
            for cell in active:
                if all(self.ledger.knows(cell, span) for span in spans):
                    self.counts[cell] = counts

    def _batch(self, spans: Sequence[Span]) -> Batch:
        order = self.strata.order
        return self.read([int(i) for span in spans for i in order[span.start : span.stop]])

    def judged(self, cells: Sequence[Cell], confidence: float) -> Judged:
        """Estimates of cells from what they have seen."""
        sample = sample_of(cells, self.ledger, self.strata, self.counts)
        return judge(cells, sample, len(rounds(self.strata.images)), confidence)

    def table(self, cells: Sequence[Cell]) -> list[Measured]:
        """The rows of the table."""
        looked = list(self.counts)
        if not looked:
            return [self._row(cell, {}) for cell in cells]
        sample = sample_of(looked, self.ledger, self.strata, self.counts)
        rows = estimated_columns(sample, len(rounds(self.strata.images)))
        columns = dict(zip(looked, rows, strict=True))
        return [self._row(cell, columns) for cell in cells]

    def _row(self, cell: Cell, columns: Mapping[Cell, Mapping[str, Any]]) -> Measured:
        if cell in columns:
            return Measured(cell=cell, outcome=self.ledger.total(cell), columns=columns[cell])
        if cell in self.bounds and self.bounds[cell] in columns:
            narrow = self.bounds[cell]
            bounds, reason = bounded_columns(columns[narrow], narrow)
            return Measured(cell=cell, outcome=None, columns=bounds, reason=reason)
        has_any = cell in self.wanted.get(cell.module, ())
        reason = OUT_OF_TIME if has_any else "it has no weight"
        return Measured(cell=cell, outcome=None, reason=reason)
