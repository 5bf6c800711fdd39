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

from vitsense.deadline import Deadline
from vitsense.errors import MeasurementError
from vitsense.formats import FormatLike, format_of
from vitsense.observe import ReplaySession, Visit, preserved
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sensitivity.groups import Group, Member, everything, includes
from vitsense.sensitivity.ledger import Span, SpanSums
from vitsense.sensitivity.meter import Batch, outcome_of, recorded
from vitsense.sensitivity.portions import Job, Supply, measure_in_portions
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.recovery import Recovery, recovery_of
from vitsense.sensitivity.result import Outcome
from vitsense.sensitivity.sweep import OUT_OF_TIME
from vitsense.sensitivity.work import rests
from vitsense.settings import Direction, Part
from vitsense.sites import SiteCatalog, SiteModule
from vitsense.team import ALONE, Team, Verdict


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


GroupLedger = SpanSums[GroupCell, GroupOutcome]
"""Outcomes by cell and span of images, and where new ones are kept."""


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
    batches: Iterable[Batch] | Supply,
    groups: Sequence[Group],
    *,
    formats: Sequence[FormatLike],
    parts: Sequence[Part] = (Part.BOTH,),
    directions: Sequence[Direction] = tuple(Direction),
    ledger: GroupLedger | None = None,
    deadline: Deadline | None = None,
    team: Team = ALONE,
    progress: Progress = NO_PROGRESS,
) -> list[MeasuredGroup]:
    """Measure every group as a whole, and everything together, on all images.

    After a deadline, groups have seen the images up to there; those that saw none say so.

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
        deadline: Measuring stops there.
        team: The processes that share the work.
        progress: Told of every cell.

    Raises:
        MeasurementError: the full-precision model gives logits that are not finite.
    """
    ledger = GroupLedger() if ledger is None else ledger
    names = [format_of(like).name for like in formats]
    cells = _cells(everything(catalog), groups, names, parts, directions)
    wanted = {cell: group for group, cell, reason in cells if not reason}
    with preserved(model), ReplaySession.open(model, catalog) as session:
        bench = _Bench(session, catalog, quantizers, ledger, wanted, team)
        job = Job(
            things=list(wanted),
            sums=ledger,
            cost=bench.cost,
            measure=bench.measure,
            forget=session.forget,
            settle=bench.exact.close,
        )
        measure_in_portions(
            job, batches, team=team, deadline=deadline or Deadline(), progress=progress
        )
    return [_found(group, cell, reason, ledger.total(cell)) for group, cell, reason in cells]


def passes_of_groups(
    catalog: SiteCatalog,
    groups: Sequence[Group],
    formats: Sequence[str],
    parts: Sequence[Part],
    directions: Sequence[Direction],
) -> tuple[float, float]:
    """Forward passes that measuring groups is worth for each image, and checks for one of a batch.

    They count by multiplications: full precision, everything quantized for every format and part
    that groups are spared in, and of each cell what comes with or after its first module.
    """
    left = rests(catalog)
    every = _cells(everything(catalog), groups, formats, parts, directions)
    costs = {
        cell: max((left[m.name] for m in _modules(group, cell.part)), default=1.0)
        for group, cell, reason in every
        if not reason
    }
    spared = {(c.format, c.part) for c in costs if c.direction is Direction.SPARED}
    checks = 0.0
    for direction in Direction:
        some = [cell for cell in costs if cell.direction is direction]
        chosen = some[:: max(1, len(some) // _CHECKED)][:_CHECKED]
        alone = direction is Direction.ALONE
        checks += 1 if alone else len({(c.format, c.part) for c in chosen})
        checks += sum(1 + costs[cell] for cell in chosen)
    return 1 + len(spared) + sum(costs.values()), checks


def _found(group: Group, cell: GroupCell, reason: str, found: GroupOutcome | None) -> MeasuredGroup:
    if found is None and not reason:
        reason = OUT_OF_TIME
    return MeasuredGroup(group, cell, found, reason)


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
        wanted: Mapping[GroupCell, Group],
        team: Team,
    ) -> None:
        self._session = session
        self._catalog = catalog
        self._quantizers = quantizers
        self._ledger = ledger
        self._wanted = wanted
        self._rests = rests(catalog)
        self.exact = Verdict(team)

    def cost(self, cell: GroupCell) -> float:
        """Share of a pass that replay computes."""
        modules = _modules(self._wanted[cell], cell.part)
        return max((self._rests[m.name] for m in modules), default=1.0)

    def measure(self, span: Span, batch: Batch, todo: Sequence[GroupCell], limit: Deadline) -> None:
        """Record the outcomes of cells on a batch."""
        images, labels = batch
        exact = self.exact(lambda: self._replay_is_exact(images))
        reference = recorded(self._session, images)
        for cell in (c for c in todo if c.direction is Direction.ALONE):
            limit.check()
            found = GroupOutcome(outcome_of(reference, self._logits(cell, exact=exact), labels))
            self._ledger.record(cell, span, found)
        self._unharmed()
        spared = [c for c in todo if c.direction is Direction.SPARED]
        for name, part in dict.fromkeys((c.format, c.part) for c in spared):
            whole = self._session.record(images, self._all(name, part))
            for cell in (c for c in spared if (c.format, c.part) == (name, part)):
                limit.check()
                logits = self._logits(cell, exact=exact)
                found = GroupOutcome(
                    outcome_of(reference, logits, labels),
                    recovery_of(reference, whole, logits, labels),
                )
                self._ledger.record(cell, span, found)
            self._unharmed()

    def _logits(self, cell: GroupCell, *, exact: bool) -> Tensor:
        """Logits of a cell, by replay where it gives the full pass's bit for bit."""
        group = self._wanted[cell]
        visits = self._visits(group, cell)
        if exact:
            return self._session.replay(visits, _modules(group, cell.part))
        return self._session.full(visits)

    def _replay_is_exact(self, images: Tensor) -> bool:
        """Whether replay gives the full pass's logits bit for bit, on some cells each way."""
        remembered = None
        for direction in Direction:
            cells = [cell for cell in self._wanted if cell.direction is direction]
            for cell in cells[:: max(1, len(cells) // _CHECKED)][:_CHECKED]:
                spared = direction is Direction.SPARED
                before = (cell.format, cell.part) if spared else ("", None)
                if before != remembered:
                    visits = self._all(cell.format, cell.part) if spared else {}
                    self._session.record(images, visits)
                    remembered = before
                replayed = self._logits(cell, exact=True)
                if not torch.equal(replayed, self._logits(cell, exact=False)):
                    return False
        return True

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
