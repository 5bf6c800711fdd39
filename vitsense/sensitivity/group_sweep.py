"""Measure groups in both directions: quantized alone, and spared while all else is quantized.

A group that is spared leaves everything before it as it is with all quantized: for that direction
the remembered pass is the all-quantized one, and only what comes after the group's first module is
computed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitsense.errors import MeasurementError
from vitsense.formats import FormatLike, format_of
from vitsense.observe import ReplaySession, Visit, preserved
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sensitivity.groups import Group, Member, everything, includes
from vitsense.sensitivity.ledger import Span
from vitsense.sensitivity.meter import Batch, out_of_memory, outcome_of, recorded
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.recovery import Recovery, recovery_of
from vitsense.sensitivity.result import Outcome
from vitsense.settings import Direction, Part
from vitsense.sites import SiteCatalog, SiteModule


@dataclass(frozen=True, slots=True)
class GroupCell:
    """One measurement of a group."""

    by: str
    group: str
    direction: Direction
    format: str
    part: Part


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """What was measured of a cell; sums over images."""

    outcome: Outcome
    recovery: Recovery | None = None

    def __add__(self, other: GroupOutcome) -> GroupOutcome:
        """Over the images of both."""
        both = None
        if self.recovery is not None and other.recovery is not None:
            both = self.recovery + other.recovery
        return GroupOutcome(self.outcome + other.outcome, both)


class GroupLedger:
    """Outcomes by cell and span of images, and where new ones are kept."""

    def __init__(
        self,
        known: Iterable[tuple[GroupCell, Span, GroupOutcome]] = (),
        keep: Callable[[GroupCell, Span, GroupOutcome], None] = lambda *_: None,
    ) -> None:
        self._found: dict[GroupCell, dict[Span, GroupOutcome]] = {}
        self._keep = keep
        for cell, span, outcome in known:
            self._found.setdefault(cell, {})[span] = outcome

    def record(self, cell: GroupCell, span: Span, outcome: GroupOutcome) -> None:
        """Keep a new outcome, durably first."""
        self._keep(cell, span, outcome)
        self._found.setdefault(cell, {})[span] = outcome

    def outcome(self, cell: GroupCell, span: Span) -> GroupOutcome | None:
        """The sum over ``span`` in the order of the images; None if some of them are missing."""
        mine = self._found.get(cell, {})
        parts = sorted(s for s in mine if span.contains(s))
        if sum(map(len, parts)) != len(span):
            return None
        total = mine[parts[0]]
        for part in parts[1:]:
            total = total + mine[part]
        return total


@dataclass(frozen=True, slots=True)
class MeasuredGroup:
    """A group's cell with its outcome, or the reason why it has none."""

    group: Group
    cell: GroupCell
    found: GroupOutcome | None
    reason: str = ""


def measure_groups(
    model: nn.Module,
    catalog: SiteCatalog,
    quantizers: Quantizers,
    batches: Iterable[Batch],
    groups: Sequence[Group],
    *,
    formats: Sequence[FormatLike],
    parts: Sequence[Part] = (Part.BOTH,),
    directions: Sequence[Direction] = tuple(Direction),
    ledger: GroupLedger | None = None,
    progress: Progress = NO_PROGRESS,
) -> list[MeasuredGroup]:
    """Measure every group as a whole, and everything together, on all images.

    The model is left exactly as it was, also when interrupted.

    Args:
        model: Any image classifier.
        catalog: Its sites.
        quantizers: Its grids.
        batches: Images and labels, always in the same order.
        groups: From `groups_of`.
        formats: Bits or names; in each, all members have the same.
        parts: What is quantized; in leave-one-out, of everything else as well.
        directions: One or both.
        ledger: What earlier, interrupted work already measured, and where new results are kept.
        progress: Told of every cell.

    Raises:
        MeasurementError: the full-precision model gives logits that are not finite.
    """
    ledger = GroupLedger() if ledger is None else ledger
    names = [format_of(like).name for like in formats]
    cells = _cells(everything(catalog), groups, names, parts, directions)
    done = 0
    with preserved(model), ReplaySession.open(model, catalog) as session:
        bench = _Bench(session, catalog, quantizers, ledger, progress)
        for images, labels in batches:
            span = Span(done, done + len(labels))
            bench.measure(span, (images, labels), [(g, c) for g, c, r in cells if not r])
            done = span.stop
    return [
        MeasuredGroup(group, cell, None if reason else ledger.outcome(cell, Span(0, done)), reason)
        for group, cell, reason in cells
    ]


def _cells(
    whole: Group,
    groups: Sequence[Group],
    formats: Sequence[str],
    parts: Sequence[Part],
    directions: Sequence[Direction],
) -> list[tuple[Group, GroupCell, str]]:
    """Every cell in the order of the table, with the reason why it cannot be measured."""
    found = []
    for name in formats:
        for part in parts:
            found.append((whole, GroupCell("model", whole.name, Direction.ALONE, name, part), ""))
            for direction in directions:
                for group in groups:
                    cell = GroupCell(group.by, group.name, direction, name, part)
                    found.append((group, cell, "" if group.within(part) else "it has no weight"))
    return found


_Wanted = Sequence[tuple[Group, GroupCell]]
_CHECKED = 3
"""Groups on which replay is compared with the full pass, in each direction."""


class _Bench:
    """A model prepared for measuring groups."""

    def __init__(
        self,
        session: ReplaySession,
        catalog: SiteCatalog,
        quantizers: Quantizers,
        ledger: GroupLedger,
        progress: Progress,
    ) -> None:
        self._session = session
        self._catalog = catalog
        self._quantizers = quantizers
        self._ledger = ledger
        self._progress = progress
        self._exact: dict[Direction, bool] = {}

    def measure(self, span: Span, batch: Batch, cells: _Wanted) -> None:
        """Record what is not known yet; when memory runs out, in halves."""
        todo = [(g, c) for g, c in cells if self._ledger.outcome(c, span) is None]
        self._progress.advance((len(cells) - len(todo)) * len(span))
        if not todo:
            return
        try:
            self._measure(span, batch, todo)
        except (RuntimeError, MemoryError) as error:
            if len(span) < 2 or not out_of_memory(error):
                raise
        else:
            return
        self._session.forget()
        middle = (span.start + span.stop) // 2
        for half in span.split_at([middle]):
            inside = slice(half.start - span.start, half.stop - span.start)
            self.measure(half, (batch[0][inside], batch[1][inside]), cells)

    def _measure(self, span: Span, batch: Batch, todo: _Wanted) -> None:
        images, labels = batch
        reference = recorded(self._session, images)
        alone = [(g, c) for g, c in todo if c.direction is Direction.ALONE]
        for cell, logits in self._logits(alone, Direction.ALONE):
            self._keep(cell, span, GroupOutcome(outcome_of(reference, logits, labels)))
        self._unharmed()
        spared = [(g, c) for g, c in todo if c.direction is Direction.SPARED]
        for name, part in dict.fromkeys((c.format, c.part) for _, c in spared):
            whole = self._session.record(images, self._all(name, part))
            some = [(g, c) for g, c in spared if (c.format, c.part) == (name, part)]
            for cell, logits in self._logits(some, Direction.SPARED):
                found = GroupOutcome(
                    outcome_of(reference, logits, labels),
                    recovery_of(reference, whole, logits, labels),
                )
                self._keep(cell, span, found)
            self._unharmed()

    def _logits(self, cells: _Wanted, direction: Direction) -> Iterable[tuple[GroupCell, Tensor]]:
        """Logits of each cell, by replay where it gives the full pass's bit for bit."""
        checked = cells[:: max(1, len(cells) // _CHECKED)][:_CHECKED]
        if direction not in self._exact and cells:
            self._exact[direction] = all(self._agrees(g, c) for g, c in checked)
        for group, cell in cells:
            visits = self._visits(group, cell)
            if self._exact[direction]:
                yield cell, self._session.replay(visits, _modules(group, cell.part))
            else:
                yield cell, self._session.full(visits)

    def _agrees(self, group: Group, cell: GroupCell) -> bool:
        visits = self._visits(group, cell)
        replayed = self._session.replay(visits, _modules(group, cell.part))
        return torch.equal(replayed, self._session.full(visits))

    def _keep(self, cell: GroupCell, span: Span, found: GroupOutcome) -> None:
        self._ledger.record(cell, span, found)
        self._progress.advance(len(span), cell.group)

    def _unharmed(self) -> None:
        if not self._session.unharmed():
            raise MeasurementError(
                "The model changed a remembered activation in place; measure it again with "
                "--batch-size 1 and report the model's name."
            )

    def _all(self, name: str, part: Part) -> dict[str, Visit]:
        sites = (s for s in self._catalog.sites if includes(part, s))
        return {site.id: self._quantizers.visit(site, name) for site in sites}

    def _visits(self, group: Group, cell: GroupCell) -> Mapping[str, Visit]:
        members = group.within(cell.part)
        if cell.direction is Direction.ALONE:
            return {m.site.id: self._of(m, cell.format, spared=False) for m in members}
        found = self._all(cell.format, cell.part)
        for member in members:
            if member.head is None:
                del found[member.site.id]
            else:
                found[member.site.id] = self._of(member, cell.format, spared=True)
        return found

    def _of(self, member: Member, name: str, *, spared: bool) -> Visit:
        visit = self._quantizers.visit(member.site, name)
        return visit if member.head is None else _one_head(visit, member, spared=spared)


def _modules(group: Group, part: Part) -> list[SiteModule]:
    return [m.module for m in group.within(part)]


def _one_head(visit: Callable[[Tensor], Tensor], member: Member, *, spared: bool) -> Visit:
    """Quantize one head's slice of a tensor, or all but that."""
    heads, head = member.module.heads or 1, member.head or 0

    def visiting(tensor: Tensor) -> Tensor:
        rounded = visit(tensor)
        into, source = (rounded.clone(), tensor) if spared else (tensor.clone(), rounded)
        size = tensor.shape[member.axis] // heads
        place = (member.axis, head * size, size)
        into.narrow(*place).copy_(source.narrow(*place))
        return into

    return visiting
