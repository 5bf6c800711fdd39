"""The stages of one model of a run: sites, statistics, sensitivity, plans."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from vitsense import provenance
from vitsense.compare.tables import MHSA_ROLES
from vitsense.data import ImageSet
from vitsense.discover import find_sites
from vitsense.errors import UserInputError
from vitsense.models import LoadedModel
from vitsense.observe import ReplaySession, preserved
from vitsense.plan.budget import Budget
from vitsense.plan.make import make_plan
from vitsense.plan.plan import Plan
from vitsense.plan.predict import DropModel, fit_drop_model
from vitsense.plan.solve import (
    Assignment,
    Problem,
    assignment_of,
    make_problem,
    narrowest,
    pareto,
    solve,
    summed_divergence,
    uniform,
)
from vitsense.progress import Progress
from vitsense.runfolder import RunFolder
from vitsense.schemas import SCHEMAS
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Cell, Outcome
from vitsense.sensitivity.sweep import Memory, Results, measure_exact, measure_joint
from vitsense.settings import AnalyzeSettings, Part
from vitsense.sites import SiteCatalog
from vitsense.statistics.collect import SiteStatistics, collect_statistics
from vitsense.verdict import verdict

MEMORY_BYTES = 2 * 1024**3
"""What replay may remember of one micro-batch."""

LARGEST_BATCH = 32
"""Images per micro-batch, where memory would allow more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelTables:
    """Everything that was found about one model."""

    frames: dict[str, pd.DataFrame]
    """Tables by name, with the column ``model``."""
    arrays: dict[str, dict[str, Any]]
    fp: dict[str, Any] | None
    facts: dict[str, Any]
    """More entries for the model in ``run.json``."""
    plan: Plan
    verdict: list[str]
    warnings: list[str]


def analyze_model(
    model: LoadedModel,
    settings: AnalyzeSettings,
    calibration: ImageSet,
    evaluation: ImageSet,
    run: RunFolder,
    state: Sequence[Mapping[str, Any]],
    device: torch.device,
    progress: Progress,
) -> ModelTables:
    """Measure one model and plan for it; results are appended to the run's state as they come."""
    key, module = model.key, model.module
    example = next(calibration.batches(model.preprocessing, 1, device))[0]
    catalog = find_sites(module, example)
    batch = settings.batch or choose_batch(module, catalog, example)
    progress.start(len(calibration), f"{key} statistics")
    statistics = collect_statistics(
        module,
        catalog,
        (images for images, _ in calibration.batches(model.preprocessing, batch, device)),
        progress=progress,
    )
    quantizers = Quantizers(catalog, statistics, settings.quant, device)
    store = _Store(run, key, state)
    progress.start(len(evaluation) * len(catalog), f"{key} sensitivity")
    measured = measure_exact(
        module,
        catalog,
        quantizers,
        evaluation.batches(model.preprocessing, batch, device),
        bits=settings.bits,
        parts=settings.parts,
        memory=Memory(known=store.cells(), keep=store.keep),
        progress=progress,
    )
    modules = modules_frame(key, catalog)
    sensitivity = _framed("sensitivity", key, [m.row("exact") for m in measured])

    def measure(plans: Mapping[str, Mapping[str, int]]) -> dict[str, Outcome]:
        done = {name: store.plan(bits) for name, bits in plans.items()}
        todo = {name: plans[name] for name, outcome in done.items() if outcome is None}
        progress.start(len(evaluation) * len(todo), f"{key} whole plans")
        fresh = {}
        if todo:
            batches = evaluation.batches(model.preprocessing, batch, device)
            fresh = measure_joint(module, catalog, quantizers, batches, todo, progress=progress)
        for name, outcome in fresh.items():
            store.keep_plan(plans[name], outcome)
        return {name: outcome or fresh[name] for name, outcome in done.items()}

    planned = _plan(model, settings, modules, sensitivity, measure)
    fp = _full_precision(planned.outcomes)
    frames = {
        "modules": modules,
        "statistics": _framed("statistics", key, [s.row() for s in statistics.values()]),
        "sensitivity": sensitivity,
        "joint": planned.joint,
        "pareto": planned.front,
        "pareto_bits": planned.front_bits,
        "coverage": _framed("coverage", key, [asdict(u) for u in catalog.uncovered]),
    }
    facts = {
        "sites_digest": catalog.digest,
        "batch": batch,
        "drop_model": asdict(planned.drop_model),
        "pins": dict(planned.problem.pins),
    }
    return ModelTables(
        frames=frames,
        arrays=_arrays(key, statistics),
        fp=fp,
        facts=facts,
        plan=_finished_plan(model, settings, planned, catalog),
        verdict=verdict(key, fp, sensitivity, planned.joint),
        warnings=[f"{key}: {planned.note}"] if planned.note else [],
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Planned:
    problem: Problem
    drop_model: DropModel
    recommended: Assignment
    budget: Budget
    note: str
    outcomes: dict[str, Outcome]
    joint: pd.DataFrame
    front: pd.DataFrame
    front_bits: pd.DataFrame


def _plan(
    model: LoadedModel,
    settings: AnalyzeSettings,
    modules: pd.DataFrame,
    sensitivity: pd.DataFrame,
    measure: Any,
) -> _Planned:
    """Measure uniform widths, fit the drop curve, solve, and measure what was solved."""
    budget = Budget.parse(settings.budget)
    planable = _with_both(sensitivity, settings)
    problem = make_problem(modules, planable, model.params)
    choices = {f"uniform-{w}": uniform(problem, w) for w in sorted(settings.bits, reverse=True)}
    outcomes = measure(choices)
    chance = 100.0 / model.num_classes
    first = next(iter(outcomes.values()))
    ceiling = max(first.fp_top1.value - chance, 1.0) if first.fp_top1 is not None else 100.0
    sums = {name: summed_divergence(problem, bits) for name, bits in choices.items()}
    curve = fit_drop_model(
        planable[planable["status"] == "measured"],
        _framed("joint", model.key, [_outcome_row(name, o) for name, o in outcomes.items()]),
        np.array(list(sums.values()), dtype=np.float64),
        ceiling,
    )
    front = pareto(problem, curve)
    recommended, note = _recommended(problem, budget, curve)
    extra = {"recommended": dict(recommended.bits)}
    for value in (3.0, 5.0, 6.0):
        near = [a for a in front if abs(a.cost.avg_bits - value) < 0.3]
        if near:
            best = min(near, key=lambda a: abs(a.cost.avg_bits - value))
            extra[f"pareto-{value:g}"] = dict(best.bits)
    extra |= group_choices(modules, settings.bits)
    outcomes |= measure(extra)
    rows = [
        _outcome_row(name, outcomes[name], assignment_of(problem, bits, curve))
        for name, bits in (choices | extra).items()
    ]
    return _Planned(
        problem=problem,
        drop_model=curve,
        recommended=recommended,
        budget=budget,
        note=note,
        outcomes=outcomes,
        joint=_framed("joint", model.key, rows),
        front=_framed("pareto", model.key, [_front_row(i, a) for i, a in enumerate(front)]),
        front_bits=_framed(
            "pareto_bits",
            model.key,
            [
                {"point": i, "module": name, "bits": bits}
                for i, a in enumerate(front)
                for name, bits in a.bits.items()
            ],
        ),
    )


GROUP_WIDTHS = 2
"""Widths at which groups of modules are quantized together: 4 bits and the next narrower."""


def group_choices(modules: pd.DataFrame, bits: Sequence[int]) -> dict[str, dict[str, int]]:
    """Whole groups alone (attention, feed-forward, Q, K, V), as ``only-GROUP@BITS``."""
    widths = sorted((w for w in bits if w <= 4), reverse=True)[:GROUP_WIDTHS]
    members = {
        "mhsa": modules["role"].isin(MHSA_ROLES),
        "ffn": modules["role"] == "ffn",
        **{letter: modules["role"] == letter for letter in ("q", "k", "v")},
    }
    if not members["mhsa"].any():
        return {}
    return {
        f"only-{group}@{width}": dict.fromkeys(modules.loc[rows, "module"], width)
        for width in widths
        for group, rows in members.items()
        if rows.any()
    }


def _recommended(problem: Problem, budget: Budget, curve: DropModel) -> tuple[Assignment, str]:
    """The plan of the budget, or of the narrowest widths with a note where it cannot be met.

    Hours of measuring must not end in an error about the budget.
    """
    try:
        return solve(problem, budget, curve), ""
    except UserInputError as error:
        return narrowest(problem, curve), f"{error} The plan has the narrowest widths instead."


def _with_both(sensitivity: pd.DataFrame, settings: AnalyzeSettings) -> pd.DataFrame:
    """The cells plans are made from: weights and activations together, or the one part measured."""
    if Part.BOTH in settings.parts:
        return sensitivity
    return sensitivity[sensitivity["part"] == settings.parts[0].value].assign(part="both")


def _predicted(assignment: Assignment) -> dict[str, float]:
    cost, prediction = assignment.cost, assignment.prediction
    return {
        "avg_bits": cost.avg_bits,
        "size_mb": cost.size_mb,
        "bitops_g": cost.bitops_g,
        "predicted_kl": prediction.kl,
        "predicted_drop": prediction.drop,
        "predicted_low": prediction.low,
        "predicted_high": prediction.high,
    }


def _outcome_row(
    name: str, outcome: Outcome, assignment: Assignment | None = None
) -> dict[str, Any]:
    predicted = {} if assignment is None else _predicted(assignment)
    return {"plan": name, **predicted, **outcome.row()}


def _front_row(point: int, assignment: Assignment) -> dict[str, Any]:
    row = _predicted(assignment)
    return {"point": point, "budget_bits": row["avg_bits"], **row}


def _full_precision(outcomes: Mapping[str, Outcome]) -> dict[str, Any] | None:
    outcome = next(iter(outcomes.values()))
    top1 = outcome.fp_top1
    if top1 is None:
        return None
    return {
        "n": outcome.labelled,
        "top1": top1.value,
        "top1_low": top1.low,
        "top1_high": top1.high,
    }


def _finished_plan(
    model: LoadedModel, settings: AnalyzeSettings, planned: _Planned, catalog: SiteCatalog
) -> Plan:
    row = planned.outcomes["recommended"].row()
    return make_plan(
        planned.problem,
        planned.recommended,
        planned.budget,
        model={
            "key": model.key,
            "name": model.resolved.name,
            "weights_digest": model.digest,
            "sites_digest": catalog.digest,
            "num_classes": model.num_classes,
        },
        quantization={
            **settings.to_json()["quant"],
            "weight": "symmetric",
            "activation": "affine, per tensor",
        },
        provenance={"versions": provenance.versions(), "seed": settings.seed},
        measured=row,
    )


def choose_batch(module: torch.nn.Module, catalog: SiteCatalog, example: torch.Tensor) -> int:
    """Images per micro-batch whose remembered activations fit `MEMORY_BYTES`."""
    with preserved(module), ReplaySession.open(module, catalog) as session:
        session.record(example)
        per_image = max(session.remembered_bytes(), 1)
    fitting = max(1, MEMORY_BYTES // per_image)
    return int(min(LARGEST_BATCH, 2 ** (fitting.bit_length() - 1)))


class _Store:
    """The run's state, for one model: what is known, and how more is kept."""

    def __init__(self, run: RunFolder, key: str, state: Sequence[Mapping[str, Any]]) -> None:
        self._run = run
        self._key = key
        self._state = [record for record in state if record.get("model") == key]

    def cells(self) -> dict[tuple[int, str], Results]:
        """Outcomes by batch and module."""
        return {
            (record["batch"], record["module"]): {
                Cell(record["module"], bits, Part(part)): Outcome.from_list(values)
                for part, bits, values in record["cells"]
            }
            for record in self._state
            if "batch" in record
        }

    def keep(self, batch: int, module: str, found: Results) -> None:
        """Append the outcomes of one module on one batch."""
        cells = [[c.part.value, c.bits, o.to_list()] for c, o in found.items()]
        record = {"model": self._key, "batch": batch, "module": module, "cells": cells}
        self._run.append_state(record)

    def plan(self, bits: Mapping[str, int]) -> Outcome | None:
        """The outcome of a whole plan, if it was measured before."""
        wanted = _bits_digest(bits)
        found = [r for r in self._state if r.get("plan") == wanted]
        return Outcome.from_list(found[-1]["outcome"]) if found else None

    def keep_plan(self, bits: Mapping[str, int], outcome: Outcome) -> None:
        """Append the outcome of a whole plan."""
        record = {"model": self._key, "plan": _bits_digest(bits), "outcome": outcome.to_list()}
        self._run.append_state(record)


def _bits_digest(bits: Mapping[str, int]) -> str:
    return hashlib.sha256(json.dumps(dict(bits), sort_keys=True).encode()).hexdigest()[:16]


def modules_frame(key: str, catalog: SiteCatalog) -> pd.DataFrame:
    """``modules.csv`` of one model."""
    rows = [
        {
            "module": m.name,
            "index": m.index,
            "kind": m.kind.value,
            "role": m.role.value,
            "block": m.block,
            "stage": m.stage,
            "depth": m.depth,
            "heads": m.heads,
            "params": m.params,
            "macs": m.macs,
            "weight_shape": "x".join(map(str, m.weight_shape)),
            "sites": ";".join(site.role.value for site in m.sites),
        }
        for m in catalog
    ]
    return _framed("modules", key, rows)


def _framed(name: str, key: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame([{"model": key, **row} for row in rows], columns=list(SCHEMAS[name]))
    return frame.astype(SCHEMAS[name])


def _arrays(key: str, statistics: Mapping[str, SiteStatistics]) -> dict[str, dict[str, Any]]:
    channels, histograms = {}, {}
    for site_id, found in statistics.items():
        for name, values in found.arrays().items():
            channels[f"{key}|{site_id}|{name}"] = values
        edges, counts = found.histogram.equal_bins()
        histograms[f"{key}|{site_id}|edges"] = edges
        histograms[f"{key}|{site_id}|counts"] = counts
    return {"channels": channels, "histograms": histograms}
