"""Measures cells on the images of a batch, by replay; halves the batch when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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


def outcome_of(reference: Tensor, logits: Tensor, labels: Tensor) -> Outcome:
    """The outcome of one batch.

    Args:
        reference: Full-precision logits, `(B, classes)`.
        logits: Quantized logits, `(B, classes)`.
        labels: `(B,)`; -1 without label.
    """
    known = labels >= 0
    right = (reference.argmax(1) == labels) & known
    still = (logits.argmax(1) == labels) & known
    kl = kl_nats(reference, logits)
    signal, noise = signal_noise(reference, logits)
    counts = torch.stack(
        [
            known.sum(),
            right.sum(),
            (right & ~still).sum(),
            (still & ~right).sum(),
            top1_agree(reference, logits).sum(),
        ]
    ).tolist()
    sums = torch.stack(
        [kl, kl * kl, signal, noise, signal * signal, noise * noise, signal * noise]
    ).sum(dim=1)
    return Outcome.from_list([len(labels), *map(int, counts), *sums.tolist()])


class Meter:
    """A model prepared for measuring many cells; made by `Meter.open`."""

    def __init__(
        self,
        session: ReplaySession,
        catalog: SiteCatalog,
        quantizers: Quantizers,
        ledger: Ledger,
        progress: Progress,
    ) -> None:
        self._session = session
        self._catalog = catalog
        self._quantizers = quantizers
        self._ledger = ledger
        self._progress = progress
        self._largest: int | None = None
        self._exact: bool | None = None

    @classmethod
    @contextmanager
    def open(
        cls,
        model: nn.Module,
        catalog: SiteCatalog,
        quantizers: Quantizers,
        ledger: Ledger,
        *,
        progress: Progress = NO_PROGRESS,
    ) -> Iterator[Meter]:
        """Prepare the model; it is as it was when the context ends."""
        with preserved(model), ReplaySession.open(model, catalog) as session:
            yield cls(session, catalog, quantizers, ledger, progress)

    def measure(self, span: Span, batch: Batch, cells: Mapping[str, Sequence[Cell]]) -> None:
        """Record the outcomes of ``cells`` (by module) on a batch; known ones are not measured.

        When the device has no memory left, the batch is taken in halves, and so are all later ones.

        Raises:
            MeasurementError: the full-precision model gives logits that are not finite.
        """
        places = set()
        for cell in (c for found in cells.values() for c in found):
            places |= self._ledger.breaks(cell)
        steps = range(span.start, span.stop, self._largest or len(span))
        for part in span.split_at(places | set(steps)):
            missing = self._missing(cells, part)
            self._progress.advance((len(cells) - len(missing)) * len(part))
            if missing:
                inside = slice(part.start - span.start, part.stop - span.start)
                self._with_less_memory(part, (batch[0][inside], batch[1][inside]), missing)

    def _missing(self, cells: Mapping[str, Sequence[Cell]], span: Span) -> dict[str, list[Cell]]:
        found = {
            name: [cell for cell in wanted if not self._ledger.knows(cell, span)]
            for name, wanted in cells.items()
        }
        return {name: wanted for name, wanted in found.items() if wanted}

    def _with_less_memory(
        self, span: Span, batch: Batch, cells: Mapping[str, Sequence[Cell]]
    ) -> None:
        if self._largest is not None and len(span) > self._largest:
            self.measure(span, batch, cells)  # memory ran out since the span was cut
            return
        try:
            self._measure(span, batch, cells)
        except (RuntimeError, MemoryError) as error:
            if len(span) < 2 or not out_of_memory(error):
                raise
        else:
            return
        self._session.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._largest = len(span) // 2
        self._progress.note(
            f"Out of memory with {len(span)} images at once; continuing with {self._largest}."
        )
        self.measure(span, batch, cells)

    def _measure(self, span: Span, batch: Batch, cells: Mapping[str, Sequence[Cell]]) -> None:
        images, labels = batch
        reference = recorded(self._session, images)
        if self._exact is None:
            self._exact = self._replay_is_exact(
                min((c for w in cells.values() for c in w), key=lambda c: (c.bits, c.format)).format
            )
            if not self._exact:
                self._progress.note(
                    "This model does not allow replay (its passes differ); every measurement "
                    "takes a full pass."
                )
        for name, wanted in cells.items():
            module = self._catalog[name]
            run = self._session.replay if self._exact else _full(self._session)
            results = {}
            for cell in wanted:
                visits = self._quantizers.visits(module, cell.format, cell.part)
                results[cell] = outcome_of(reference, run(visits, module), labels)
            self._ledger.record(Entry(span, name, results))
            self._progress.advance(len(labels), name)
        if not self._session.unharmed():
            raise MeasurementError(
                "The model changed a remembered activation in place; measure it again with "
                "--batch-size 1 and report the model's name."
            )

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
