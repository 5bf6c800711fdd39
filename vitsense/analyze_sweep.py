"""The sweep of one model of a run, in the mode that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import nn

from vitsense.analyze_kept import KeptResults
from vitsense.deadline import Deadline
from vitsense.errors import MeasurementError
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sensitivity.adaptive import measure_adaptive
from vitsense.sensitivity.checked import (
    Checks,
    combined,
    images_to_check,
    measure_checks,
    narrow_cells,
    passes_of_an_image,
)
from vitsense.sensitivity.doubt import Doubts, doubts
from vitsense.sensitivity.draws import Draws
from vitsense.sensitivity.estimate import Estimated, EstimateMemory, Estimates
from vitsense.sensitivity.fisher import estimate_fisher
from vitsense.sensitivity.hessian import IMAGES_OF_A_PROBE, ProbeMemory, estimate_hessian
from vitsense.sensitivity.ledger import Ledger, Span
from vitsense.sensitivity.portions import Supply
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Measured
from vitsense.sensitivity.stopping import Rule
from vitsense.sensitivity.sweep import measure_exact
from vitsense.settings import AnalyzeSettings, SweepMode
from vitsense.sites import SiteCatalog
from vitsense.team import Team


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sweep:
    """Everything a sweep of one model needs."""

    key: str
    model: nn.Module
    catalog: SiteCatalog
    quantizers: Quantizers
    supply: Supply
    """The evaluation images."""
    settings: AnalyzeSettings
    deadline: Deadline
    kept: KeptResults
    team: Team
    progress: Progress

    @property
    def images(self) -> int:
        """How many evaluation images there are."""
        return self.supply.images


def measure_cells(sweep: Sweep) -> Sequence[Measured | Estimated]:
    """Fill the sensitivity table; what the run has kept is not measured again.

    Raises:
        TimeIsUpError: the deadline came before there was anything to fill it with.
    """
    return _MODES[sweep.settings.mode](sweep)


def _exact(sweep: Sweep) -> list[Measured]:
    sweep.progress.start(sweep.images * len(sweep.catalog), f"{sweep.key} sensitivity")
    return measure_exact(
        sweep.model,
        sweep.catalog,
        sweep.quantizers,
        sweep.supply,
        bits=sweep.settings.format_names,
        parts=sweep.settings.parts,
        ledger=Ledger(sweep.kept.entries(), sweep.kept.keep, sweep.kept.other_entries),
        deadline=sweep.deadline,
        team=sweep.team,
        progress=sweep.progress,
    )


def estimate_cells(sweep: Sweep, doubt: Doubts | None = None) -> list[Estimated]:
    """Estimate the divergence of every cell from one pass there and one back.

    Several processes share the draws: each estimates its own, and then all add up all of them.
    After the deadline the estimates are of the draws up to there, at least of one batch.

    Args:
        sweep: Of the model.
        doubt: Of the evaluation images, where it is at hand.

    Raises:
        MeasurementError: the model cannot be differentiated, or its logits are not finite.
        TimeIsUpError: the deadline came before the images could be drawn.
    """
    kept, team = sweep.kept, sweep.team
    doubt = doubts_of(sweep) if doubt is None else doubt
    draws = Draws.by_doubt(doubt.nats, sweep.settings.seed)
    known = dict(kept.estimates())
    sweep.progress.start(len(draws), f"{sweep.key} estimates")
    if team.place.size == 1:
        return _estimate(sweep, draws, known, sweep.progress)
    spans = Span(0, len(draws)).steps(sweep.supply.largest)
    mine = team.run_of([0.0 if span in known else float(len(span)) for span in spans])
    others: dict[Span, Estimates] = {
        span: {} for place, span in enumerate(spans) if place not in mine
    }
    _shared(sweep, lambda: _estimate(sweep, draws, others | known, sweep.progress))
    kept.other_estimates()
    missing: dict[Span, Estimates] = {span: {} for span in spans}
    return _estimate(sweep, draws, missing | kept.estimates(), NO_PROGRESS)


def _fast(sweep: Sweep) -> list[Estimated]:
    """Estimates of every cell; those of narrow formats are checked on a few images."""
    settings, catalog = sweep.settings, sweep.catalog
    doubt = doubts_of(sweep)
    estimated = estimate_cells(sweep, doubt)
    cells = narrow_cells(catalog, settings.format_names, settings.parts)
    count = images_to_check(passes_of_an_image(catalog, cells), sweep.images)
    if not count or sweep.deadline.came:
        return estimated
    checks = Checks(
        cells=cells,
        draws=Draws.by_doubt(doubt.nats, settings.seed, count=count),
        read=sweep.supply.read,
        largest=sweep.supply.largest,
    )
    sweep.progress.start(count * len(cells), f"{sweep.key} checks")
    found = measure_checks(
        sweep.model,
        catalog,
        sweep.quantizers,
        checks,
        ledger=sweep.kept.checks(),
        deadline=sweep.deadline,
        team=sweep.team,
        progress=sweep.progress,
    )
    return combined(estimated, found)


def _estimate(
    sweep: Sweep, draws: Draws, known: dict[Span, Estimates], progress: Progress
) -> list[Estimated]:
    return estimate_fisher(
        sweep.model,
        sweep.catalog,
        sweep.quantizers,
        sweep.supply.read,
        draws,
        bits=sweep.settings.format_names,
        parts=sweep.settings.parts,
        seed=sweep.settings.seed,
        largest=sweep.supply.largest,
        memory=EstimateMemory(known, sweep.kept.keep_estimates),
        deadline=sweep.deadline,
        progress=progress,
    )


def hessian_cells(sweep: Sweep) -> list[Estimated]:
    """Estimate the divergence of every cell from traces of Hessians.

    Several processes share the batches of images, like the draws of `estimate_cells`. After the
    deadline the estimates are of the probes up to there, at least of one.

    Raises:
        MeasurementError: see `vitsense.sensitivity.hessian.estimate_hessian`.
    """
    settings, kept, team = sweep.settings, sweep.kept, sweep.team
    size = min(IMAGES_OF_A_PROBE, settings.batch or IMAGES_OF_A_PROBE)
    spans = Span(0, sweep.images).steps(size)
    known = {span for span, _ in kept.probes()}
    sweep.progress.start(sweep.images, f"{sweep.key} Hessian traces")
    if team.place.size == 1:
        return _hessian(sweep, spans, None, sweep.progress)
    share = team.run_of([0.0 if span in known else float(len(span)) for span in spans])
    mine = {spans[place] for place in share}
    _shared(sweep, lambda: _hessian(sweep, spans, mine, sweep.progress))
    kept.other_records()
    return _hessian(sweep, spans, (), NO_PROGRESS)


def _hessian(
    sweep: Sweep, spans: Sequence[Span], mine: Collection[Span] | None, progress: Progress
) -> list[Estimated]:
    settings = sweep.settings
    return estimate_hessian(
        sweep.model,
        sweep.catalog,
        sweep.quantizers,
        spans,
        sweep.supply.read,
        bits=settings.format_names,
        parts=settings.parts,
        probes=settings.probes,
        seed=settings.seed,
        memory=ProbeMemory(sweep.kept.probes(), sweep.kept.keep_probe),
        mine=mine,
        deadline=sweep.deadline,
        progress=progress,
    )


def _shared(sweep: Sweep, work: Callable[[], object]) -> None:
    """Do this process's share: what refuses one process refuses all, and time ends for all."""
    failed = ""
    try:
        work()
    except MeasurementError as error:
        failed = str(error)
    reasons = [reason for reason in sweep.team.gather(failed) if reason]
    if reasons:
        raise MeasurementError(reasons[0])
    sweep.deadline.came = sweep.team.any(sweep.deadline.came)


def doubts_of(sweep: Sweep) -> Doubts:
    """Of every evaluation image; see `vitsense.sensitivity.doubt`.

    Raises:
        TimeIsUpError: the deadline came first; the images that were seen are kept.
    """
    sweep.progress.start(sweep.images, f"{sweep.key} full precision")
    return doubts(
        sweep.model,
        sweep.supply.read,
        sweep.images,
        known=sweep.kept.doubts(),
        keep=sweep.kept.keep_doubts,
        others=sweep.kept.other_doubts,
        largest=sweep.supply.largest,
        deadline=sweep.deadline,
        team=sweep.team,
        progress=sweep.progress,
    )


def _adaptive(sweep: Sweep) -> list[Measured]:
    settings = sweep.settings
    doubt = doubts_of(sweep)
    rule = Rule(tolerance=settings.tolerance, confidence=settings.confidence, seed=settings.seed)
    return measure_adaptive(
        sweep.model,
        sweep.catalog,
        sweep.quantizers,
        sweep.supply.read,
        doubt,
        bits=settings.format_names,
        parts=settings.parts,
        rule=rule,
        ledger=Ledger(sweep.kept.entries(), sweep.kept.keep, sweep.kept.other_entries),
        deadline=sweep.deadline,
        team=sweep.team,
        largest=sweep.supply.largest,
        progress=sweep.progress,
    )


_MODES: dict[SweepMode, Callable[[Sweep], Sequence[Measured | Estimated]]] = {
    SweepMode.EXACT: _exact,
    SweepMode.ADAPTIVE: _adaptive,
    SweepMode.FAST: _fast,
    SweepMode.HESSIAN: hessian_cells,
}
