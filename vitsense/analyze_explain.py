"""The explaining stage of one model: what predicted the sensitivity, and what would help."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from vitsense.analyze_grids import seen_weights
from vitsense.analyze_sweep import Sweep, estimate_cells, hessian_cells
from vitsense.analyze_tables import framed
from vitsense.errors import MeasurementError
from vitsense.numerics.fake_quant import fake_quantize
from vitsense.numerics.floats import BlockGrid
from vitsense.sensitivity.causes import Cause, causes_of, remedy_visits
from vitsense.sensitivity.estimate import Estimated, Rated
from vitsense.sensitivity.predictors import predictor_rows
from vitsense.sensitivity.result import Measured, Outcome
from vitsense.sensitivity.variants import Variant, measure_variants
from vitsense.settings import Part, SweepMode
from vitsense.sites import Site, SiteModule
from vitsense.statistics.collect import SiteStatistics
from vitsense.verdict import EXPLAINED, decisive_format, worst_modules

REMEDIED = 5
"""Modules of which remedies are measured."""


_Key = tuple[str, str]  # module and format


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explaining:
    """What the stage starts from."""

    sweep: Sweep
    rated: Sequence[Measured | Estimated]
    statistics: Mapping[str, SiteStatistics]
    modules: pd.DataFrame
    sensitivity: pd.DataFrame
    example: Tensor
    """One image, `(1, 3, H, W)`."""


def explain(given: Explaining) -> dict[str, pd.DataFrame]:
    """The tables ``estimates``, ``predictors`` and ``causes`` of one model."""
    key = given.sweep.key
    scores = _scores(given)
    rows = predictor_rows(
        given.modules,
        framed("statistics", key, [s.row() for s in given.statistics.values()]),
        given.sensitivity,
        scores,
    )
    known = [
        {"module": module, "bits": _bits(given, name), "format": name, **values}
        for (module, name), values in scores.items()
    ]
    return {
        "estimates": framed("estimates", key, known),
        "predictors": framed("predictors", key, rows),
        "causes": framed("causes", key, _cause_rows(given)),
    }


def unexplained(key: str) -> dict[str, pd.DataFrame]:
    """The same tables, empty."""
    return {name: framed(name, key, []) for name in ("estimates", "predictors", "causes")}


def _bits(given: Explaining, name: str) -> int:
    return next(r.cell.bits for r in given.rated if r.cell.format == name)


def _estimates(given: Explaining, mode: SweepMode) -> dict[_Key, Rated]:
    """What a mode that estimates gives of every cell: this run's own, or made beside it."""
    settings = given.sweep.settings
    wanted = settings.estimates if mode is SweepMode.FAST else settings.probes > 0
    rated: Sequence[Measured | Estimated] = ()
    if settings.mode is mode:
        rated = given.rated
    elif wanted and not settings.estimating:
        make = estimate_cells if mode is SweepMode.FAST else hessian_cells
        try:
            rated = make(given.sweep)
        except MeasurementError as error:
            given.sweep.progress.note(f"No estimates as of mode {mode.value}: {error}")
    part = settings.planned_part
    return {
        (r.cell.module, r.cell.format): r.checked.first_order if r.checked else r.estimate
        for r in rated
        if isinstance(r, Estimated) and r.estimate is not None and r.cell.part is part
    }


def _scores(given: Explaining) -> dict[_Key, dict[str, float]]:
    """What depends on the format, by module and format."""
    sweep = given.sweep
    found: dict[_Key, dict[str, float]] = {}
    for mode, name in ((SweepMode.FAST, "fisher"), (SweepMode.HESSIAN, "hessian")):
        for key, rated in _estimates(given, mode).items():
            kl = rated.kl_nats
            found.setdefault(key, {}).update(
                {f"{name}_kl": kl.value, f"{name}_low": kl.low, f"{name}_high": kl.high}
            )
            if rated.trace is not None:
                found[key]["hessian_trace"] = rated.trace
    weights = seen_weights(sweep.model, sweep.catalog, given.example)
    for module in sweep.catalog:
        for name in sweep.settings.format_names:
            ratios = _tensor_ratios(given, module, name, weights)
            found.setdefault((module.name, name), {}).update(ratios)
    return found


def _tensor_ratios(
    given: Explaining, module: SiteModule, name: str, weights: Mapping[str, Tensor]
) -> dict[str, float]:
    """Signal to rounding noise of the weight and of the worst activation, dB."""
    found: dict[str, float] = {}
    for site in module.sites:
        ratio = _ratio(given, site, name, weights.get(site.id))
        column = "weight_sqnr_db" if site.is_weight else "activation_sqnr_db"
        if ratio is not None:
            found[column] = min(found.get(column, math.inf), ratio)
    return found


def _ratio(given: Explaining, site: Site, name: str, weight: Tensor | None) -> float | None:
    if site.is_weight and weight is None:
        return None
    if weight is not None:
        values, counts = weight.double(), torch.ones((), dtype=torch.float64)
    else:
        centres, shares = given.statistics[site.id].histogram.distribution()
        values, counts = torch.tensor(centres), torch.tensor(shares)
    grid = given.sweep.quantizers.grid(site, name, values)
    if weight is None and isinstance(grid, BlockGrid):
        return None  # its scales depend on neighbours, which a histogram does not know
    device = given.example.device
    error = fake_quantize(values.float().to(device), grid).double().cpu() - values.float().cpu()
    noise = float((counts * error.square()).sum())
    signal = float((counts * values.cpu().square()).sum())
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None


def _cause_rows(given: Explaining) -> list[dict[str, Any]]:
    """Causes of the most sensitive modules; for the worst, what each remedy gives."""
    settings = given.sweep.settings
    worst = worst_modules(given.sensitivity, EXPLAINED)
    form = decisive_format(given.sensitivity)
    if worst is None or form is None:
        return []
    names = worst[0]
    found = {
        name: causes_of(
            given.sweep.catalog[name],
            given.statistics,
            settings.quant.activation_range.value,
            form.name,
        )
        for name in names
    }
    measured = _measured(given, {name: found[name] for name in names[:REMEDIED]}, form.name)
    rows = []
    for name in names:
        before = measured.get(_label(name, None, form.name))
        for cause in found[name]:
            after = measured.get(_label(name, cause, form.name))
            head = {"module": name, "site": cause.site.id, "bits": form.bits, "format": form.name}
            rows.append(head | _described(cause) | _compared(before, after))
    return rows


def _described(cause: Cause) -> dict[str, Any]:
    return {
        "cause": cause.cause,
        "value": cause.value,
        "detail": cause.detail,
        "remedy": cause.remedy.value,
    }


def _compared(before: Outcome | None, after: Outcome | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for when, outcome in (("before", before), ("after", after)):
        row = {} if outcome is None or not outcome.finite else outcome.row()
        for column in ("kl", "drop"):
            for end in ("", "_low", "_high"):
                found[f"{column}_{when}{end}"] = row.get(f"{column}{end}")
        if when == "before":
            found["n_before"] = row.get("n")
            for end in ("", "_low", "_high"):
                found[f"agreement_before{end}"] = row.get(f"agreement{end}")
    return found


def _label(module: str, cause: Cause | None, form: str) -> str:
    how = "as it is" if cause is None else f"{cause.site.role.value}: {cause.remedy.value}"
    return f"{module} | {form} | {how}"


def _measured(
    given: Explaining, found: Mapping[str, Sequence[Cause]], form: str
) -> dict[str, Outcome]:
    """Outcomes with and without remedies, from the run's state where it has them."""
    sweep = given.sweep
    variants: dict[str, Variant] = {}
    for name, causes in found.items():
        module = sweep.catalog[name]
        if causes:
            plain = sweep.quantizers.visits(module, form, Part.BOTH)
            variants[_label(name, None, form)] = Variant(module, plain)
        for cause in causes:
            visits = remedy_visits(module, cause, form, sweep.quantizers, given.statistics)
            variants[_label(name, cause, form)] = Variant(module, visits)
    if not variants:
        return {}
    sweep.progress.start(sweep.images * len(variants), f"{sweep.key} remedies")
    outcomes = measure_variants(
        sweep.model,
        sweep.catalog,
        sweep.supply,
        variants,
        ledger=sweep.kept.variants(),
        deadline=sweep.deadline,
        team=sweep.team,
        progress=sweep.progress,
    )
    # what a deadline cut off would be compared on other images
    return {label: outcome for label, outcome in outcomes.items() if outcome.n == sweep.images}
