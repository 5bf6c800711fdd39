"""Exact one-at-a-time sensitivity: every module at every width on every image, by replay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain

import torch
from torch import nn

from vitsense.deadline import Deadline, TimeIsUpError
from vitsense.formats import FormatLike
from vitsense.observe import ReplaySession, preserved
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sensitivity.ledger import Ledger, Span, SpanSums
from vitsense.sensitivity.meter import Batch, Meter, finite, outcome_of
from vitsense.sensitivity.portions import Job, Supply, looks, measure_in_portions
from vitsense.sensitivity.quantizers import Quantizers, supports
from vitsense.sensitivity.result import Cell, Measured, Outcome
from vitsense.settings import Part
from vitsense.sites import SiteCatalog
from vitsense.team import ALONE, Team


def measure_exact(
    model: nn.Module,
    catalog: SiteCatalog,
    quantizers: Quantizers,
    batches: Iterable[Batch] | Supply,
    *,
    bits: Sequence[FormatLike],
    parts: Sequence[Part] = (Part.BOTH,),
    ledger: Ledger | None = None,
    deadline: Deadline | None = None,
    team: Team = ALONE,
    progress: Progress = NO_PROGRESS,
) -> list[Measured]:
    """Measure every module x width x part on all images of ``batches``.

    Widths are bits of integers or names of formats.

    The model is left exactly as it was, also when interrupted.

    Args:
        model: Any image classifier.
        catalog: Its sites.
        quantizers: Its grids.
        batches: Images and labels, always in the same order. Several processes share the work of
            a `Supply`; of an iterable, they share the work of each batch.
        bits: Widths.
        parts: What is quantized.
        ledger: What earlier, interrupted work already measured, and where new results are kept.
        deadline: Measuring stops there; cells have then seen fewer images, or none.
        team: The processes that share the work.
        progress: Told of every module.

    Raises:
        MeasurementError: the full-precision model gives logits that are not finite.
    """
    ledger = Ledger() if ledger is None else ledger
    wanted = measurable(catalog, bits, parts)
    largest = batches.largest if isinstance(batches, Supply) else 2**31
    with (
        suppress(TimeIsUpError),
        Meter.open(
            model,
            catalog,
            quantizers,
            ledger,
            largest=largest,
            deadline=deadline,
            team=team,
            progress=progress,
        ) as meter,
    ):
        if isinstance(batches, Supply):
            meter.measure([Span(0, batches.images)], batches.spans, wanted)
        else:
            for span, read in looks(batches):
                meter.measure([span], slices_of(read(), span), wanted)
    return [
        measured(cell, ledger, wanted.get(cell.module, ())) for cell in cells(catalog, bits, parts)
    ]


def slices_of(batch: Batch, whole: Span) -> Callable[[Sequence[Span]], Batch]:
    """Reads consecutive spans inside ``whole``, whose images are ``batch``."""

    def read(spans: Sequence[Span]) -> Batch:
        inside = slice(spans[0].start - whole.start, spans[-1].stop - whole.start)
        return batch[0][inside], batch[1][inside]

    return read


def cells(catalog: SiteCatalog, bits: Sequence[FormatLike], parts: Sequence[Part]) -> list[Cell]:
    """All cells of a sweep, in the order of the table."""
    return [Cell.of(m.name, width, part) for m in catalog for part in parts for width in bits]


def measurable(
    catalog: SiteCatalog, bits: Sequence[FormatLike], parts: Sequence[Part]
) -> dict[str, list[Cell]]:
    """The cells that have something to quantize, by module."""
    found = {
        module.name: [
            Cell.of(module.name, width, part)
            for part in parts
            if not supports(module, part)
            for width in bits
        ]
        for module in catalog
    }
    return {name: wanted for name, wanted in found.items() if wanted}


OUT_OF_TIME = "the time budget ended before it was looked at"
"""Reason of a cell that is missing because of a deadline."""


def measured(cell: Cell, ledger: Ledger, wanted: Sequence[Cell]) -> Measured:
    """A cell with its outcome on all images that it has seen."""
    if cell not in wanted:
        return Measured(cell=cell, outcome=None, reason="it has no weight")
    outcome = ledger.total(cell)
    return Measured(cell=cell, outcome=outcome, reason="" if outcome else OUT_OF_TIME)


def measure_joint(
    model: nn.Module,
    catalog: SiteCatalog,
    quantizers: Quantizers,
    batches: Iterable[Batch] | Supply,
    plans: Mapping[str, Mapping[str, FormatLike]],
    *,
    part: Part = Part.BOTH,
    ledger: SpanSums[str, Outcome] | None = None,
    deadline: Deadline | None = None,
    team: Team = ALONE,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Outcome]:
    """The outcome of whole plans: module name -> bits or format, all quantized at once.

    After a deadline the outcomes are of the images up to there. Those of plans that no image was
    seen of are of the first `FEW` images, and are not kept. Nothing is remembered of a pass, so
    that less memory is taken than by single modules.

    Args:
        model: Any image classifier.
        catalog: Its sites.
        quantizers: Its grids.
        batches: Images and labels, always in the same order; see `measure_exact`.
        plans: By name; the ledger knows them by these names.
        part: What is quantized.
        ledger: What earlier, interrupted work already measured, and where new results are kept.
        deadline: Measuring stops there.
        team: The processes that share the work.
        progress: Told of every plan.

    Raises:
        MeasurementError: the full-precision model gives logits that are not finite.
    """
    sums = SpanSums[str, Outcome]() if ledger is None else ledger
    visits = {name: quantizers.joint(bits, part) for name, bits in plans.items()}
    few, batches = _few(batches)
    with preserved(model), ReplaySession.open(model, catalog) as session:

        def measure(span: Span, batch: Batch, todo: Sequence[str], limit: Deadline) -> None:
            reference = finite(session.show(batch[0]))
            for name in todo:
                limit.check()
                logits = session.full(visits[name])
                sums.record(name, span, outcome_of(reference, logits, batch[1]))

        def provisional(unseen: Sequence[str]) -> dict[str, Outcome]:
            images, labels = few()
            if not len(labels):
                return dict.fromkeys(unseen, Outcome())
            reference = finite(session.show(images))
            return {
                name: outcome_of(reference, session.full(visits[name]), labels) for name in unseen
            }

        job = Job(
            things=list(plans),
            sums=sums,
            cost=lambda _name: 1.0,
            measure=measure,
            forget=session.forget,
        )
        measure_in_portions(
            job, batches, team=team, deadline=deadline or Deadline(), progress=progress
        )
        found = {name: total for name in plans if (total := sums.total(name)) is not None}
        unseen = [name for name in plans if name not in found]
        if unseen:
            own = provisional(unseen) if team.first else {}
            values = team.agree([own[name].to_list() for name in own])
            found |= dict(zip(unseen, map(Outcome.from_list, values), strict=True))
    return {name: found[name] for name in plans}


FEW = 8
"""Images on which whole plans are measured where there was no time for any."""


def _few(
    batches: Iterable[Batch] | Supply,
) -> tuple[Callable[[], Batch], Iterable[Batch] | Supply]:
    """How the first images are opened, and all of them."""
    if isinstance(batches, Supply):
        return partial(batches.spans, [Span(0, min(FEW, batches.images))]), batches
    every = iter(batches)
    first = next(every, None)
    if first is None:
        return lambda: (torch.empty(0), torch.empty(0)), ()
    images, labels = first
    return lambda: (images[:FEW], labels[:FEW]), chain([first], every)
