"""Measures cells on the images of a batch, by replay; halves the batch when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitsense.deadline import Deadline, TimeIsUpError
from vitsense.errors import MeasurementError
from vitsense.numerics.distance import kl_nats, signal_noise, top1_agree
from vitsense.observe import ReplaySession, Visit, preserved
from vitsense.progress import NO_PROGRESS, Paced, Progress
from vitsense.sensitivity.ledger import Entry, Ledger, Span
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Cell, Outcome
from vitsense.sensitivity.work import rests
from vitsense.settings import Part
from vitsense.sites import SiteCatalog, SiteModule
from vitsense.team import ALONE, Team, Verdict

Batch = tuple[Tensor, Tensor]
"""Images `(B, 3, H, W)` and labels `(B,)`; -1 where there is no label."""

CHECKED = 4
"""Modules on which replay is compared with the full pass before a sweep."""


def outcomes_of(
    reference: Tensor, logits: Tensor, labels: Tensor, sizes: Sequence[int]
) -> tuple[Outcome, ...]:
    """The outcomes of consecutive groups of ``sizes`` images of one batch.

    Args:
        reference: Full-precision logits, `(B, classes)`.
        logits: Quantized logits, `(B, classes)`.
        labels: `(B,)`; -1 without label.
        sizes: How many images belong to each group; their sum is B.
    """
    known = labels >= 0
    right = (reference.argmax(1) == labels) & known
    still = (logits.argmax(1) == labels) & known
    kl = kl_nats(reference, logits)
    signal, noise = signal_noise(reference, logits)
    agree = top1_agree(reference, logits)
    counts = torch.stack([known, right, right & ~still, still & ~right, agree.bool()])
    sums = torch.stack([kl, kl * kl, signal, noise, signal * signal, noise * noise, signal * noise])
    groups = list(sizes)
    grouped = zip(
        sizes, torch.split(counts, groups, dim=1), torch.split(sums, groups, dim=1), strict=True
    )
    return tuple(
        Outcome.from_list([size, *count.sum(dim=1).tolist(), *total.sum(dim=1).tolist()])
        for size, count, total in grouped
    )


def outcome_of(reference: Tensor, logits: Tensor, labels: Tensor) -> Outcome:
    """The outcome of one batch; see `outcomes_of`."""
    return outcomes_of(reference, logits, labels, (len(labels),))[0]


class Meter:
    """A model prepared for measuring many cells; made by `Meter.open`."""

    def __init__(
        self,
        session: ReplaySession,
        catalog: SiteCatalog,
        quantizers: Quantizers,
        ledger: Ledger,
        progress: Progress,
        largest: int,
        deadline: Deadline | None = None,
        team: Team = ALONE,
    ) -> None:
        self._session = session
        self._catalog = catalog
        self._quantizers = quantizers
        self._ledger = ledger
        self._progress = progress
        self._largest = largest
        self._deadline = Deadline() if deadline is None else deadline
        self._team = team
        self._rests = rests(catalog)
        self._exact = Verdict(team)
        self._recorded: tuple[tuple[Span, ...], Tensor] | None = None

    @classmethod
    @contextmanager
    def open(
        cls,
        model: nn.Module,
        catalog: SiteCatalog,
        quantizers: Quantizers,
        ledger: Ledger,
        *,
        largest: int = 2**31,
        deadline: Deadline | None = None,
        team: Team = ALONE,
        progress: Progress = NO_PROGRESS,
    ) -> Iterator[Meter]:
        """Prepare the model; it is as it was when the context ends.

        Args:
            model: Any image classifier.
            catalog: Its sites.
            quantizers: Its grids.
            ledger: What is known, and where results go.
            largest: Images that are taken at once, at most.
            deadline: Measuring stops there.
            team: The processes that share the work; their ledgers must be equal.
            progress: Told of every module.
        """
        with preserved(model), ReplaySession.open(model, catalog) as session:
            yield cls(session, catalog, quantizers, ledger, progress, largest, deadline, team)

    def measure(
        self,
        spans: Sequence[Span],
        read: Callable[[Sequence[Span]], Batch],
        cells: Mapping[str, Sequence[Cell]],
    ) -> None:
        """Record the outcomes of ``cells`` (by module) on spans; known ones are not measured.

        All processes of the team call it alike; each measures its part, and then all know all.
        When the device has no memory left, images are taken in halves from then on.

        Args:
            spans: Images, none twice.
            read: Gives the images of spans, in order, as one batch.
            cells: What to measure, by module.

        Raises:
            MeasurementError: the full-precision model gives logits that are not finite.
            TimeIsUpError: the deadline came; what was measured is recorded.
        """
        batches = self._batches(spans, cells)
        mine = self._mine(batches)
        whole, own = _steps(batches), _steps(mine)
        self._progress.advance(sum(map(len, spans)) * len(cells) - whole)
        pace = Paced(self._progress, whole, own)
        late = False
        try:
            for batch, wanted in mine:
                self._all_of(batch, read, wanted, pace)
        except TimeIsUpError:
            late = True
        self._meet(late=late)
        pace.finish()

    def _batches(
        self, spans: Sequence[Span], cells: Mapping[str, Sequence[Cell]]
    ) -> list[tuple[tuple[Span, ...], dict[str, list[Cell]]]]:
        """Images that are taken at once, with what is missing of them; alike on all processes."""
        places: set[int] = set()
        for cell in (c for found in cells.values() for c in found):
            places |= self._ledger.breaks(cell)
        pieces = [piece for span in spans for piece in span.split_at(places)]
        found = []
        while pieces:
            batch, pieces = _take(pieces, self._largest)
            found.append((batch, self._missing(cells, batch)))
        return found

    def _mine(
        self, batches: Sequence[tuple[tuple[Span, ...], dict[str, list[Cell]]]]
    ) -> list[tuple[tuple[Span, ...], dict[str, list[Cell]]]]:
        """This process's part of the batches: whole ones, and some modules of those at its ends."""
        units, costs = [], []
        for place, (batch, missing) in enumerate(batches):
            images = sum(map(len, batch))
            for name, wanted in missing.items():
                first = 1.0 if name == next(iter(missing)) else 0.0  # full precision
                units.append((place, name))
                costs.append(images * (first + len(wanted) * self._rests[name]))
        found: dict[int, dict[str, list[Cell]]] = {}
        for unit in self._team.run_of(costs):
            place, name = units[unit]
            found.setdefault(place, {})[name] = batches[place][1][name]
        return [(batches[place][0], missing) for place, missing in found.items()]

    def _meet(self, *, late: bool) -> None:
        """Know what all processes measured; when time was up for one, it is for all."""
        self._exact.close()
        self._ledger.meet()
        found = self._team.gather([self._largest, late])
        self._largest = min(largest for largest, _ in found)
        if any(late for _, late in found):
            self._deadline.came = True
            raise TimeIsUpError

    def _all_of(
        self,
        spans: tuple[Span, ...],
        read: Callable[[Sequence[Span]], Batch],
        cells: Mapping[str, Sequence[Cell]],
        pace: Paced,
    ) -> None:
        """Measure on one batch; on smaller ones from where memory runs out."""
        pieces = list(spans)
        while pieces:
            batch, pieces = _take(pieces, self._largest)
            missing = self._missing(cells, batch)
            if missing and not self._fits(batch, read, missing, pace):
                pieces = [*batch, *pieces]

    def _missing(
        self, cells: Mapping[str, Sequence[Cell]], spans: Sequence[Span]
    ) -> dict[str, list[Cell]]:
        found = {
            name: [c for c in wanted if not all(self._ledger.knows(c, s) for s in spans)]
            for name, wanted in cells.items()
        }
        return {name: wanted for name, wanted in found.items() if wanted}

    def _fits(
        self,
        spans: tuple[Span, ...],
        read: Callable[[Sequence[Span]], Batch],
        cells: Mapping[str, Sequence[Cell]],
        pace: Paced,
    ) -> bool:
        """Measure; False when memory ran out and fewer images must be taken at once."""
        total = sum(map(len, spans))
        self._deadline.check()  # not even full precision is run after it
        try:
            self._measure(spans, read(spans), cells, pace)
        except (RuntimeError, MemoryError) as error:
            if total < 2 or not out_of_memory(error):
                raise
        else:
            return True
        self._session.forget()
        self._recorded = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._largest = total // 2
        self._progress.note(
            f"Out of memory with {total} images at once; continuing with {self._largest}."
        )
        return False

    def _measure(
        self,
        spans: tuple[Span, ...],
        batch: Batch,
        cells: Mapping[str, Sequence[Cell]],
        pace: Paced,
    ) -> None:
        images, labels = batch
        reference = self._reference(spans, images)
        exact = self._exact(lambda: self._replay_is_exact(cells))
        sizes = [len(span) for span in spans]
        for name, wanted in cells.items():
            self._deadline.check()
            module = self._catalog[name]
            run = self._session.replay if exact else _full(self._session)
            results = {}
            for cell in wanted:
                visits = self._quantizers.visits(module, cell.format, cell.part)
                results[cell] = outcomes_of(reference, run(visits, module), labels, sizes)
            self._ledger.record(Entry(spans, name, results))
            pace.advance(len(labels), name)
        if not self._session.unharmed():
            raise MeasurementError(
                "The model changed a remembered activation in place; measure it again with "
                "--batch-size 1 and report the model's name."
            )

    def _reference(self, spans: tuple[Span, ...], images: Tensor) -> Tensor:
        """Full-precision logits; images that were recorded last are not recorded again."""
        if self._recorded is None or self._recorded[0] != spans:
            self._recorded = (spans, recorded(self._session, images))
        return self._recorded[1]

    def _replay_is_exact(self, cells: Mapping[str, Sequence[Cell]]) -> bool:
        """Whether replay gives the full pass's logits bit for bit, on modules over the model."""
        narrowest = min((c for w in cells.values() for c in w), key=lambda c: (c.bits, c.format))
        modules = self._catalog.modules
        step = max(1, len(modules) // CHECKED)
        for module in modules[step // 2 :: step][:CHECKED]:
            visits = self._quantizers.visits(module, narrowest.format, Part.BOTH)
            replayed = self._session.replay(visits, module)
            if not torch.equal(replayed, self._session.full(visits)):
                self._progress.note(
                    "This model does not allow replay (its passes differ); every measurement "
                    "takes a full pass."
                )
                return False
        return True


def _steps(batches: Sequence[tuple[tuple[Span, ...], Mapping[str, Sequence[Cell]]]]) -> int:
    """Modules times images."""
    return sum(sum(map(len, batch)) * len(missing) for batch, missing in batches)


def _take(pieces: Sequence[Span], most: int) -> tuple[tuple[Span, ...], list[Span]]:
    """The first ``most`` images of ``pieces``, and the rest."""
    taken, room, rest = [], most, list(pieces)
    while rest and room:
        head = rest.pop(0)
        if len(head) > room:
            rest.insert(0, Span(head.start + room, head.stop))
            head = Span(head.start, head.start + room)
        taken.append(head)
        room -= len(head)
    return tuple(taken), rest


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        "can't allocate memory" in str(error)
    )


def recorded(session: ReplaySession, images: Tensor) -> Tensor:
    """Full-precision logits, with everything remembered for replay.

    Raises:
        MeasurementError: they are not finite.
    """
    return finite(session.record(images))


def finite(reference: Tensor) -> Tensor:
    """Full-precision logits that can be compared with.

    Raises:
        MeasurementError: they are not finite.
    """
    if not bool(torch.isfinite(reference).all()):
        raise MeasurementError(
            "The full-precision model gives logits that are not finite: check its weights and the "
            "preprocessing."
        )
    return reference


def _full(session: ReplaySession) -> Callable[[Mapping[str, Visit], SiteModule], Tensor]:
    return lambda visits, _module: session.full(visits)
