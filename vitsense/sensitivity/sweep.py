"""Exact one-at-a-time sensitivity: every module at every width on every image, by replay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vitsense.errors import MeasurementError
from vitsense.numerics.distance import kl_nats, signal_noise, top1_agree
from vitsense.observe import ReplaySession, Visit, preserved
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sensitivity.quantizers import Quantizers, supports
from vitsense.sensitivity.result import Cell, Measured, Outcome
from vitsense.settings import Part
from vitsense.sites import SiteCatalog, SiteModule

Batch = tuple[Tensor, Tensor]
"""Images `(B, 3, H, W)` and labels `(B,)`; -1 where there is no label."""

Results = Mapping[Cell, Outcome]


@dataclass(slots=True)
class Memory:
    """What earlier, interrupted work already measured, and where new results are kept.

    Keys are (batch number, module name); the value is the outcome of each cell of that module.
    """

    known: Mapping[tuple[int, str], Results] = field(default_factory=dict)
    keep: Callable[[int, str, Results], None] = lambda *_: None


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


def measure_exact(
    model: nn.Module,
    catalog: SiteCatalog,
    quantizers: Quantizers,
    batches: Iterable[Batch],
    *,
    bits: Sequence[int],
    parts: Sequence[Part] = (Part.BOTH,),
    memory: Memory | None = None,
    progress: Progress = NO_PROGRESS,
) -> list[Measured]:
    """Measure every module x width x part on all images of ``batches``.

    The model is left exactly as it was, also when interrupted.

    Raises:
        MeasurementError: the full-precision model gives logits that are not finite.
    """
    memory = memory or Memory()
    totals: dict[Cell, Outcome] = {}
    with preserved(model), ReplaySession.open(model, catalog) as session:
        exact = True
        for number, (images, labels) in enumerate(batches):
            todo = [m for m in catalog if (number, m.name) not in memory.known]
            reference = None
            if todo:
                reference = _recorded(session, images)
                exact = (
                    exact if number else _replay_is_exact(session, catalog, quantizers, bits[-1])
                )
                if not exact and number == 0:
                    progress.note(
                        "This model does not allow replay (its passes differ); every measurement "
                        "takes a full pass."
                    )
            for module in catalog:
                found = memory.known.get((number, module.name))
                if found is None:
                    assert reference is not None
                    run = session.replay if exact else _full(session)
                    found = _module_cells(
                        module, quantizers, run, reference, labels, bits=bits, parts=parts
                    )
                    memory.keep(number, module.name, found)
                for cell, outcome in found.items():
                    totals[cell] = totals[cell] + outcome if cell in totals else outcome
                progress.advance(len(labels), module.name)
            if todo and not session.unharmed():
                raise MeasurementError(
                    "The model changed a remembered activation in place; measure it again with "
                    "--batch-size 1 and report the model's name."
                )
    return [_measured(cell, totals) for cell in cells(catalog, bits, parts)]


def cells(catalog: SiteCatalog, bits: Sequence[int], parts: Sequence[Part]) -> list[Cell]:
    """All cells of a sweep, in the order of the table."""
    return [Cell(m.name, width, part) for m in catalog for part in parts for width in bits]


def _measured(cell: Cell, totals: Results) -> Measured:
    outcome = totals.get(cell)
    return Measured(cell=cell, outcome=outcome, reason="" if outcome else "it has no weight")


def _recorded(session: ReplaySession, images: Tensor) -> Tensor:
    reference = session.record(images)
    if not bool(torch.isfinite(reference).all()):
        raise MeasurementError(
            "The full-precision model gives logits that are not finite: check its weights and the "
            "preprocessing."
        )
    return reference


def _module_cells(
    module: SiteModule,
    quantizers: Quantizers,
    run: Callable[[Mapping[str, Visit], SiteModule], Tensor],
    reference: Tensor,
    labels: Tensor,
    *,
    bits: Sequence[int],
    parts: Sequence[Part],
) -> dict[Cell, Outcome]:
    found = {}
    for part in parts:
        if supports(module, part):
            continue
        for width in bits:
            logits = run(quantizers.visits(module, width, part), module)
            found[Cell(module.name, width, part)] = outcome_of(reference, logits, labels)
    return found


def _full(session: ReplaySession) -> Callable[[Mapping[str, Visit], SiteModule], Tensor]:
    return lambda visits, _module: session.full(visits)


_CHECKED = 4
"""Modules on which replay is compared with the full pass before a sweep."""


def _replay_is_exact(
    session: ReplaySession, catalog: SiteCatalog, quantizers: Quantizers, bits: int
) -> bool:
    """Whether replay gives the full pass's logits bit for bit, on modules spread over the model."""
    modules = catalog.modules
    step = max(1, len(modules) // _CHECKED)
    for module in modules[step // 2 :: step][:_CHECKED]:
        visits = quantizers.visits(module, bits, Part.BOTH)
        if not torch.equal(session.replay(visits, module), session.full(visits)):
            return False
    return True


def measure_joint(
    model: nn.Module,
    catalog: SiteCatalog,
    quantizers: Quantizers,
    batches: Iterable[Batch],
    plans: Mapping[str, Mapping[str, int]],
    *,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Outcome]:
    """The outcome of whole plans: module name -> bits, all quantized at once.

    Raises:
        MeasurementError: the full-precision model gives logits that are not finite.
    """
    totals: dict[str, Outcome] = {name: Outcome() for name in plans}
    visits = {name: quantizers.joint(bits) for name, bits in plans.items()}
    with preserved(model), ReplaySession.open(model, catalog) as session:
        for images, labels in batches:
            reference = _recorded(session, images)
            for name in plans:
                logits = session.full(visits[name])
                totals[name] = totals[name] + outcome_of(reference, logits, labels)
                progress.advance(len(labels), name)
    return totals
