"""The sweep of one model of a run, in the mode that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from vitsense.analyze_kept import KeptResults
from vitsense.deadline import Deadline
from vitsense.errors import MeasurementError
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sensitivity.adaptive import measure_adaptive
from vitsense.sensitivity.doubt import doubts
from vitsense.sensitivity.estimate import Estimated, EstimateMemory, Estimates
from vitsense.sensitivity.fisher import estimate_fisher
from vitsense.sensitivity.ledger import Ledger, Span
from vitsense.sensitivity.meter import Batch
from vitsense.sensitivity.portions import Supply, unopened
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
    """Fill the sensitivity table; what the run has kept is not measured again."""
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


def estimate_cells(sweep: Sweep) -> list[Estimated]:
    """Estimate the divergence of every cell from one pass there and one back.

    Several processes share the batches: each estimates its own, and then all add up all of them.
    After the deadline the estimates are of the images up to there, at least of one batch.

    Raises:
        MeasurementError: the model cannot be differentiated, or its logits are not finite.
    """
    kept, team = sweep.kept, sweep.team
    known = dict(kept.estimates())
    sweep.progress.start(sweep.images, f"{sweep.key} estimates")
    if team.place.size == 1:
        return _estimate(sweep, known, sweep.progress)
    spans = [span for span, _ in sweep.supply.looks()]
    mine = team.run_of([0.0 if span in known else float(len(span)) for span in spans])
    others: dict[Span, Estimates] = {
        span: {} for place, span in enumerate(spans) if place not in mine
    }
    failed = ""
    try:
        _estimate(sweep, others | known, sweep.progress)
    except MeasurementError as error:
        failed = str(error)
    reasons = [reason for reason in team.gather(failed) if reason]
    if reasons:
        raise MeasurementError(reasons[0])
    kept.other_estimates()
    sweep.deadline.came = team.any(sweep.deadline.came)
    missing: dict[Span, Estimates] = {span: {} for span in spans}
    return _estimate(sweep, missing | kept.estimates(), NO_PROGRESS)


def _estimate(sweep: Sweep, known: dict[Span, Estimates], progress: Progress) -> list[Estimated]:
    return estimate_fisher(
        sweep.model,
        sweep.catalog,
        sweep.quantizers,
        _until(sweep.deadline, sweep.supply, known),
        bits=sweep.settings.format_names,
        parts=sweep.settings.parts,
        seed=sweep.settings.seed,
        memory=EstimateMemory(known, sweep.kept.keep_estimates),
        progress=progress,
    )


def _until(deadline: Deadline, supply: Supply, known: dict[Span, Estimates]) -> Iterator[Batch]:
    """All batches; images whose estimates are known, or that come too late, are not opened."""
    opened = any(known.values())
    for span, read in supply.looks():
        if span not in known and deadline.passed and opened:
            deadline.came = True
            known[span] = {}
        if span in known:
            yield unopened(span)
        else:
            opened = True
            yield read()


def _adaptive(sweep: Sweep) -> list[Measured]:
    settings = sweep.settings
    sweep.progress.start(sweep.images, f"{sweep.key} full precision")
    doubt = doubts(
        sweep.model,
        sweep.supply.read,
        sweep.images,
        known=sweep.kept.doubts(),
        keep=sweep.kept.keep_doubts,
        others=sweep.kept.other_doubts,
        largest=sweep.supply.largest,
        team=sweep.team,
        progress=sweep.progress,
    )
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
    SweepMode.FAST: estimate_cells,
}
