"""Measures cells on the images of a batch, by replay; halves the batch when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitsense.deadline import Deadline
from vitsense.errors import MeasurementError
from vitsense.formats import FormatLike
from vitsense.numerics.distance import kl_nats, signal_noise, top1_agree
from vitsense.observe import ReplaySession, Visit, preserved
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sensitivity.ledger import Entry, Ledger, Span
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Cell, Outcome
from vitsense.settings import Part
from vitsense.sites import SiteCatalog, SiteModule

Batch = tuple[Tensor, Tensor]
"""Images `(B, 3, H, W)` and labels `(B,)`; -1 where there is no label."""

_CHECKED = 4
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
    ) -> None:
        self._session = session
        self._catalog = catalog
        self._quantizers = quantizers
        self._ledger = ledger
        self._progress = progress
        self._largest = largest
        self._deadline = Deadline() if deadline is None else deadline
        self._exact: bool | None = None
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
            progress: Told of every module.
        """
        with preserved(model), ReplaySession.open(model, catalog) as session:
            yield cls(session, catalog, quantizers, ledger, progress, largest, deadline)

    def measure(
        self,
        spans: Sequence[Span],
        read: Callable[[Sequence[Span]], Batch],
        cells: Mapping[str, Sequence[Cell]],
    ) -> None:
        """Record the outcomes of ``cells`` (by module) on spans; known ones are not measured.

        When the device has no memory left, images are taken in halves from then on.

        Args:
            spans: Images, none twice.
            read: Gives the images of spans, in order, as one batch.
            cells: What to measure, by module.

        Raises:
            MeasurementError: the full-precision model gives logits that are not finite.
            TimeIsUpError: the deadline came; what was measured is recorded.
        """
        places: set[int] = set()
        for cell in (c for found in cells.values() for c in found):
            places |= self._ledger.breaks(cell)
        pieces = [piece for span in spans for piece in span.split_at(places)]
        while pieces:
            batch, pieces = _take(pieces, self._largest)
            missing = self._missing(cells, batch)
            total = sum(map(len, batch))
            self._progress.advance((len(cells) - len(missing)) * total)
            if missing and not self._fits(batch, read, missing):
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
    ) -> bool:
        """Measure; False when memory ran out and fewer images must be taken at once."""
        total = sum(map(len, spans))
        try:
            self._measure(spans, read(spans), cells)
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
        self, spans: tuple[Span, ...], batch: Batch, cells: Mapping[str, Sequence[Cell]]
    ) -> None:
        images, labels = batch
        reference = self._reference(spans, images)
        if self._exact is None:
            self._exact = self._replay_is_exact(
                min((c for w in cells.values() for c in w), key=lambda c: (c.bits, c.format)).format
            )
            if not self._exact:
                self._progress.note(
                    "This model does not allow replay (its passes differ); every measurement "
                    "takes a full pass."
                )
        sizes = [len(span) for span in spans]
        for name, wanted in cells.items():
            self._deadline.check()
            module = self._catalog[name]
            run = self._session.replay if self._exact else _full(self._session)
            results = {}
            for cell in wanted:
                visits = self._quantizers.visits(module, cell.format, cell.part)
                results[cell] = outcomes_of(reference, run(visits, module), labels, sizes)
            self._ledger.record(Entry(spans, name, results))
            self._progress.advance(len(labels), name)
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

    def _replay_is_exact(self, bits: FormatLike) -> bool:
        """Whether replay gives the full pass's logits bit for bit, on modules over the model."""
        modules = self._catalog.modules
        step = max(1, len(modules) // _CHECKED)
        for module in modules[step // 2 :: step][:_CHECKED]:
            visits = self._quantizers.visits(module, bits, Part.BOTH)
            replayed = self._session.replay(visits, module)
            if not torch.equal(replayed, self._session.full(visits)):
                return False
        return True


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
    reference = session.record(images)
    if not bool(torch.isfinite(reference).all()):
        raise MeasurementError(
            "The full-precision model gives logits that are not finite: check its weights and the "
            "preprocessing."
        )
    return reference


def _full(session: ReplaySession) -> Callable[[Mapping[str, Visit], SiteModule], Tensor]:
    return lambda visits, _module: session.full(visits)
