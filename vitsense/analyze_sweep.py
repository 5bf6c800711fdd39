"""The sweep of one model of a run, in the mode that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from vitsense.analyze_kept import KeptResults
from vitsense.progress import Progress
from vitsense.sensitivity.estimate import Estimated, EstimateMemory
from vitsense.sensitivity.fisher import estimate_fisher
from vitsense.sensitivity.ledger import Ledger
from vitsense.sensitivity.meter import Batch
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Measured
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
    images: int
    """How many they are."""
    settings: AnalyzeSettings
    kept: KeptResults
    progress: Progress


def measure_cells(sweep: Sweep) -> Sequence[Measured | Estimated]:
    """Fill the sensitivity table; what the run has kept is not measured again."""
    return _MODES[sweep.settings.mode](sweep)


def _exact(sweep: Sweep) -> list[Measured]:
    sweep.progress.start(sweep.images * len(sweep.catalog), f"{sweep.key} sensitivity")
    return measure_exact(
        sweep.model,
        sweep.catalog,
        sweep.quantizers,
        sweep.batches(),
        bits=sweep.settings.format_names,
        parts=sweep.settings.parts,
        ledger=Ledger(sweep.kept.entries(), sweep.kept.keep),
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


_MODES: dict[SweepMode, Callable[[Sweep], Sequence[Measured | Estimated]]] = {
    SweepMode.EXACT: _exact,
    SweepMode.FAST: estimate_cells,
}
