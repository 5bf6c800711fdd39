"""What a run with a time budget does first, so that it has a whole table, and what it left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pandas as pd

from vitsense.analyze_explain import REMEDIED
from vitsense.analyze_statistics import Calibrated
from vitsense.analyze_sweep import Sweep, doubts_of, estimate_cells, measure_cells
from vitsense.deadline import TimeIsUpError
from vitsense.errors import MeasurementError, TooLittleTimeError
from vitsense.runfolder import RunFolder
from vitsense.sensitivity.draws import Draws
from vitsense.sensitivity.estimate import ESTIMATED, Estimated, EstimateMemory
from vitsense.sensitivity.fisher import estimate_fisher
from vitsense.sensitivity.quantizers import supports
from vitsense.sensitivity.result import Cell, Measured
from vitsense.sensitivity.sweep import OUT_OF_TIME, cells
from vitsense.settings import SweepMode

_ROUGH = (8, 32)
"""Images of the first estimates: the least that they are made of, and more if there is time."""

_ROUGH_SHARE, _ESTIMATES_SHARE = 0.3, 0.5


def rated_in_time(sweep: Sweep, calibrated: Calibrated) -> Sequence[Measured | Estimated]:
    """Fill the sensitivity table; where time is bounded, with estimates first.

    A cell that time ends before has the estimate of mode fast, if the model allows one: from all
    images that such estimates are drawn from, or from the first few. Then no module is without a
    divergence, however short the time. Estimates from draws are those that the run makes anyway.
    """
    if sweep.deadline.at is None:
        return measure_cells(sweep)
    first: Sequence[Estimated] = ()
    with suppress(MeasurementError):  # a model without gradients
        first = _estimated_first(sweep, calibrated)
    rated: Sequence[Measured | Estimated] = ()
    if calibrated.whole:
        with suppress(TimeIsUpError):
            rated = measure_cells(sweep)
    else:
        sweep.deadline.came = True
    return _filled(sweep, rated, first)


def _estimated_first(sweep: Sweep, calibrated: Calibrated) -> Sequence[Estimated]:
    """The best estimates that there is time for; none where the mode makes its own in time."""
    settings = sweep.settings
    if settings.mode is SweepMode.HESSIAN and calibrated.whole:
        return ()
    found: Sequence[Estimated] = ()
    if not sweep.kept.estimates():
        found = _rough(sweep)
    if calibrated.whole and settings.estimates and not settings.estimating:
        shorter = replace(sweep, deadline=sweep.deadline.part(_ESTIMATES_SHARE))
        with suppress(TimeIsUpError):
            found = estimate_cells(shorter, doubts_of(shorter))
    return found


def _rough(sweep: Sweep) -> list[Estimated]:
    """Estimates from the first images; every process of a team makes them, alike."""
    settings, kept = sweep.settings, sweep.kept
    until = sweep.deadline.part(_ROUGH_SHARE)
    memory = EstimateMemory(kept.rough(), kept.keep_rough if sweep.team.first else _nothing)
    found: list[Estimated] = []
    for count in _ROUGH:
        if found and (sweep.team.any(until.passed) or count > sweep.images):
            break
        images = min(count, sweep.images)
        sweep.progress.start(images, f"{sweep.key} first estimates")
        memory.known = kept.rough()
        found = estimate_fisher(
            sweep.model,
            sweep.catalog,
            sweep.quantizers,
            sweep.supply.read,
            Draws.every(images),
            bits=settings.format_names,
            parts=settings.parts,
            seed=settings.seed,
            largest=min(_ROUGH[0], sweep.supply.largest),
            memory=memory,
            progress=sweep.progress,
        )
    return found


def _nothing(*_: object) -> None:
    """Another process keeps it."""


def _filled(
    sweep: Sweep, rated: Sequence[Measured | Estimated], first: Sequence[Estimated]
) -> list[Measured | Estimated]:
    """What was rated, else the first estimate, else nothing but the reason."""
    known: dict[Cell, Measured | Estimated] = {one.cell: one for one in rated}
    spare = {one.cell: one for one in first}
    found: list[Measured | Estimated] = []
    for cell in cells(sweep.catalog, sweep.settings.format_names, sweep.settings.parts):
        one = known.get(cell) or Measured(cell=cell, outcome=None, reason=OUT_OF_TIME)
        if one.reason == OUT_OF_TIME:
            sweep.deadline.came = True
            other = spare.get(cell)
            if other is not None and other.estimate is not None:
                one = replace(other, reason=OUT_OF_TIME)
            elif nothing := supports(sweep.catalog[cell.module], cell.part):
                one = Measured(cell=cell, outcome=None, reason=nothing)
        found.append(one)
    return found


def row_of(one: Measured | Estimated, mode: SweepMode) -> dict[str, Any]:
    """The row of ``sensitivity.csv``; an estimate that fills in is of mode fast."""
    fills = isinstance(one, Estimated) and one.reason == OUT_OF_TIME
    return one.row((SweepMode.FAST if fills else mode).value)


def keep_unplannable(
    run: RunFolder | None, modules: pd.DataFrame, sensitivity: pd.DataFrame
) -> None:
    """Write what is known of a model for which time was too short to plan, and say so.

    Raises:
        TooLittleTimeError: some module was not looked at in any format, and not estimated either.
    """
    known = set(sensitivity.loc[sensitivity["kl"].notna(), "module"])
    late = set(sensitivity.loc[sensitivity["reason"] == OUT_OF_TIME, "module"])
    missing = [name for name in modules["module"] if name in late - known]
    if missing:
        if run is not None:
            run.write_table("modules", modules)
            run.write_table("sensitivity", sensitivity)
        raise TooLittleTimeError(
            f"The time budget ended before {len(missing)} of {len(modules)} modules were looked "
            f"at, first {missing[0]!r}, which this model allows no estimates of: too early for a "
            "plan. What was measured is kept; the same command continues, without --budget-time or "
            "with more. --dry-run --probe says how long a whole run takes."
        )


def left_out(
    sweep: Sweep, calibrated: Calibrated, frames: Mapping[str, pd.DataFrame], *, searched: bool
) -> dict[str, str]:
    """What a time budget left out, in a sentence for each stage; empty where nothing was."""
    if not sweep.deadline.came:
        return {}
    found = {}
    if not calibrated.whole:
        found["statistics"] = (
            f"Statistics and quantization grids rest on {calibrated.images} of "
            f"{sweep.settings.calibration} calibration images, so nothing below is final."
        )
    found |= _cells_left(frames["sensitivity"], sweep.images)
    groups = frames["groups"]
    unseen = int((groups["reason"] == OUT_OF_TIME).sum())
    if unseen:
        found["groups"] = f"Not measured: {unseen} of {len(groups)} groups."
    if not searched and sweep.settings.refine:
        found["search"] = (
            "The plan within the budget is the solver's: the search for a better one as a whole "
            "did not end."
        )
    if frames["estimates"].empty:
        found["explanations"] = "Causes, remedies and predictors were not looked for."
    found |= _remedies_left(frames["causes"])
    rests = _rests(sweep)
    if rests:
        found["estimates"] = rests
    fewest = int(frames["joint"]["n"].min())
    if fewest < sweep.images:
        found["plans"] = f"Whole plans saw {fewest} or more of {sweep.images} images."
    if not found:
        found["images"] = "Some images were not looked at."
    return found


def _cells_left(cells: pd.DataFrame, images: int) -> dict[str, str]:
    late = cells[cells["reason"] == OUT_OF_TIME]
    if late.empty:
        return {}
    estimated = late[late["status"] == ESTIMATED]
    words = "all" if len(late) == len(cells) else f"{len(late)} of {len(cells)}"
    instead = "."
    if len(estimated):
        some = "they" if len(estimated) == len(late) else f"{len(estimated)} of them"
        few = int(estimated["n"].max())
        seen = f" from {few} images" if few < images else ""
        instead = (
            f"; {some} have the estimate of mode fast{seen} instead, which ranks modules but "
            "fails below 4 bits."
        )
    return {"cells": f"Not measured: {words} cells (a module at a width){instead}"}


def _remedies_left(causes: pd.DataFrame) -> dict[str, str]:
    tried = set(causes.loc[causes["kl_after"].notna(), "module"])
    missing = [name for name in causes["module"].drop_duplicates()[:REMEDIED] if name not in tried]
    words = f"Remedies were not measured for {', '.join(missing)}."
    return {"remedies": words} if missing else {}


def _rests(sweep: Sweep) -> str:
    """How many images what was estimated rests on."""
    drawn = sum(map(len, sweep.kept.estimates()))
    probed = sum(map(len, {span for span, _ in sweep.kept.probes()}))
    words = [f"Fisher estimates rest on {drawn} drawn images"] if drawn else []
    words += [f"Hessian traces on {probed} images"] if probed else []
    return f"{'; '.join(words)}." if words else ""
