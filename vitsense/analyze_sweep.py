"""The sweep of one model of a run, in the mode that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from vitsense.analyze_kept import KeptResults
from vitsense.deadline import Deadline
from vitsense.progress import Progress
from vitsense.sensitivity.adaptive import ReadImages, measure_adaptive
from vitsense.sensitivity.doubt import doubts
from vitsense.sensitivity.estimate import Estimated, EstimateMemory
from vitsense.sensitivity.fisher import estimate_fisher
from vitsense.sensitivity.ledger import Ledger, Span
from vitsense.sensitivity.meter import Batch
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Measured
from vitsense.sensitivity.stopping import Rule
from vitsense.sensitivity.sweep import measure_exact
from vitsense.settings import AnalyzeSettings, SweepMode
from vitsense.sites import SiteCatalog


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sweep:
    """Everything a sweep of one model needs."""

    key: str
    model: nn.Module
    catalog: SiteCatalog
    quantizers: Quantizers
    batches: Callable[[], Iterable[Batch]]
    """Opens the evaluation images, in order."""
    read: ReadImages
    """Opens evaluation images by their numbers."""
    images: int
    """How many they are."""
    largest: int
    """Images at once."""
    settings: AnalyzeSettings
    deadline: Deadline
    kept: KeptResults
    progress: Progress


def measure_cells(sweep: Sweep) -> Sequence[Measured | Estimated]:
    """Fill the sensitivity table; what the run has kept is not measured again."""
    return _MODES[sweep.settings.mode](sweep)


def _exact(sweep: Sweep) -> list[Measured]:
    sweep.progress.start(sweep.images * len(sweep.catalog), f"{sweep.key} sensitivity")
    whole = Span(0, sweep.images)
    return measure_exact(
        sweep.model,
        sweep.catalog,
        sweep.quantizers,
        (sweep.read(range(s.start, s.stop)) for s in whole.steps(sweep.largest)),
        bits=sweep.settings.format_names,
        parts=sweep.settings.parts,
        ledger=Ledger(sweep.kept.entries(), sweep.kept.keep),
        deadline=sweep.deadline,
        progress=sweep.progress,
    )


def estimate_cells(sweep: Sweep) -> list[Estimated]:
    """Estimate the divergence of every cell from one pass there and one back."""
    sweep.progress.start(sweep.images, f"{sweep.key} estimates")
    return estimate_fisher(
        sweep.model,
        sweep.catalog,
        sweep.quantizers,
        sweep.batches(),
        bits=sweep.settings.format_names,
        parts=sweep.settings.parts,
        seed=sweep.settings.seed,
        memory=EstimateMemory(sweep.kept.estimates(), sweep.kept.keep_estimates),
        progress=sweep.progress,
    )


def _adaptive(sweep: Sweep) -> list[Measured]:
    settings = sweep.settings
    sweep.progress.start(sweep.images, f"{sweep.key} full precision")
    doubt = doubts(
        sweep.model,
        sweep.read,
        sweep.images,
        known=sweep.kept.doubts(),
        keep=sweep.kept.keep_doubts,
        largest=sweep.largest,
        progress=sweep.progress,
    )
    rule = Rule(tolerance=settings.tolerance, confidence=settings.confidence, seed=settings.seed)
    return measure_adaptive(
        sweep.model,
        sweep.catalog,
        sweep.quantizers,
        sweep.read,
        doubt,
        bits=settings.format_names,
        parts=settings.parts,
        rule=rule,
        ledger=Ledger(sweep.kept.entries(), sweep.kept.keep),
        deadline=sweep.deadline,
        largest=sweep.largest,
        progress=sweep.progress,
    )


_MODES: dict[SweepMode, Callable[[Sweep], Sequence[Measured | Estimated]]] = {
    SweepMode.EXACT: _exact,
    SweepMode.ADAPTIVE: _adaptive,
    SweepMode.FAST: estimate_cells,
}
