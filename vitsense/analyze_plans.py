"""The planning stage of one model: uniform widths, the drop curve, the solver, and its choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from vitsense import provenance
from vitsense.analyze_refine import refinement_rows
from vitsense.analyze_tables import framed
from vitsense.errors import UserInputError
from vitsense.formats import FormatLike, format_of
from vitsense.models import LoadedModel
from vitsense.plan.additivity import additivity_rows, random_plans
from vitsense.plan.budget import Budget
from vitsense.plan.latency import LatencyProfile
from vitsense.plan.make import make_plan
from vitsense.plan.plan import Plan
from vitsense.plan.predict import DropModel, fit_drop_model
from vitsense.plan.refine import Refined
from vitsense.plan.solve import (
    PIN_BITS,
    Assignment,
    Problem,
    assignment_of,
    make_problem,
    narrowest,
    pareto,
    planable_cells,
    planable_modules,
    solve,
    summed_divergence,
    uniform,
)
from vitsense.sensitivity.result import Outcome
from vitsense.settings import AnalyzeSettings, Granule
from vitsense.sites import SiteCatalog


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Planned:
    """The plans of one model and what was measured of them."""

    problem: Problem
    drop_model: DropModel
    recommended: Assignment
    budget: Budget
    note: str
    outcomes: dict[str, Outcome]
    joint: pd.DataFrame
    additivity: pd.DataFrame
    refinement: pd.DataFrame
    front: pd.DataFrame
    front_bits: pd.DataFrame


def plan_and_measure(
    model: LoadedModel,
    settings: AnalyzeSettings,
    modules: pd.DataFrame,
    sensitivity: pd.DataFrame,
    measure: Any,
    search: Callable[[Problem, Budget, DropModel, Assignment], Refined | None],
    *,
    hurried: bool = False,
) -> Planned:
    """Measure uniform and random plans, fit the drop curve, solve, search on, measure the choice.

    Random plans lie between the uniform ones, of which the wide ones often lose nothing and the
    narrow ones everything: without them the curve would be a guess where plans are chosen.
    ``hurried``, when time is up, leaves them out, and the plans of other budgets.
    """
    budget = Budget.parse(settings.budget)
    planable = planable_cells(sensitivity, settings.planned_part)
    problem = make_problem(
        planable_modules(modules, settings.planned_part),
        planable,
        model.params,
        part=settings.planned_part,
        per_tensor=settings.quant.weight_granularity is Granule.TENSOR,
    )
    if settings.profile is not None:
        problem = replace(problem, profile=LatencyProfile.load(settings.profile))
    forms = sorted(map(format_of, settings.format_names), key=lambda f: -f.effective_bits)
    choices: dict[str, Mapping[str, FormatLike]] = {
        f"uniform-{form.label}": uniform(problem, form.name) for form in forms
    }
    choices |= {} if hurried else random_plans(problem, settings.seed)
    outcomes = measure(choices, last=False)
    chance = 100.0 / model.num_classes
    first = next(iter(outcomes.values()))
    ceiling = max(first.fp_top1.value - chance, 1.0) if first.fp_top1 is not None else 100.0
    curve = _fitted(planable, problem, choices, outcomes, ceiling)
    problem, recommended, note = recommend(problem, budget, curve)
    front = pareto(problem, curve)
    found = search(problem, budget, curve, recommended)
    extra = _named(recommended, () if hurried else front)
    if found is not None and dict(found.formats) != dict(recommended.formats):
        recommended = assignment_of(problem, found.formats, curve)
        extra = {"recommended": recommended.formats, "solved": extra.pop("recommended"), **extra}
    plans = choices | extra
    outcomes |= measure(extra, last=True)
    if len({outcome.n for outcome in outcomes.values()}) > 1:  # time that is left is for all
        outcomes |= measure(plans, last=True)
    rows = [
        _outcome_row(name, outcomes[name], assignment_of(problem, bits, curve))
        for name, bits in plans.items()
    ]
    joint = framed("joint", model.key, rows)
    # what was measured since makes the front, and plans solved later, better than these predictions
    # (not the searched plan: it was chosen to diverge less than its modules say)
    summed = {k: v for k, v in plans.items() if k != "recommended" or "solved" not in plans}
    curve = _fitted(planable, problem, summed, outcomes, ceiling)
    front = [assignment_of(problem, point.formats, curve) for point in front]
    return Planned(
        problem=problem,
        drop_model=curve,
        recommended=recommended,
        budget=budget,
        note=note,
        refinement=framed("refinement", model.key, refinement_rows(found)),
        outcomes=outcomes,
        joint=joint,
        additivity=framed("additivity", model.key, additivity_rows(planable, joint, plans)),
        front=framed("pareto", model.key, [_front_row(i, a) for i, a in enumerate(front)]),
        front_bits=framed(
            "pareto_bits",
            model.key,
            [
                {"point": i, "module": name, "bits": a.bits[name], "format": form}
                for i, a in enumerate(front)
                for name, form in a.formats.items()
            ],
        ),
    )


def _named(
    recommended: Assignment, front: Sequence[Assignment]
) -> dict[str, Mapping[str, FormatLike]]:
    """The plans to measure besides: the recommended one, and the front near some averages."""
    found: dict[str, Mapping[str, FormatLike]] = {"recommended": recommended.formats}
    for value in (3.0, 5.0, 6.0):
        near = [a for a in front if abs(a.cost.avg_bits - value) < 0.3]
        if near:
            best = min(near, key=lambda a: abs(a.cost.avg_bits - value))
            found[f"pareto-{value:g}"] = best.formats
    return found


def _fitted(
    planable: pd.DataFrame,
    problem: Problem,
    plans: Mapping[str, Mapping[str, FormatLike]],
    outcomes: Mapping[str, Outcome],
    ceiling: float,
) -> DropModel:
    return fit_drop_model(
        planable[planable["status"] == "measured"],
        pd.DataFrame([_outcome_row(name, outcomes[name]) for name in plans]),
        np.array([summed_divergence(problem, bits) for bits in plans.values()], dtype=np.float64),
        ceiling,
    )


def recommend(
    problem: Problem, budget: Budget, curve: DropModel
) -> tuple[Problem, Assignment, str]:
    """The plan of the budget, the problem it solves, and a note where the budget was too small.

    Hours of measuring must not end in an error about the budget. The first and the last weights
    are free where 8 bits for them leave too little (a classifier may be half of a small model);
    where even that does not help, every module gets its narrowest width.
    """
    try:
        return problem, solve(problem, budget, curve), ""
    except UserInputError as error:
        reason = str(error)
    free = replace(problem, pins={})
    try:
        solved = solve(free, budget, curve)
    except UserInputError:
        note = f"{reason} The plan has the narrowest widths instead."
        return problem, narrowest(problem, curve), note
    return (
        free,
        solved,
        f"The budget {budget.text} cannot be met with the first and the last weights at "
        f"{PIN_BITS} bits; their bits were chosen like all others.",
    )


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


def full_precision(outcomes: Mapping[str, Outcome]) -> dict[str, Any] | None:
    """Full-precision accuracy for ``run.json``; None without labels."""
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


def finished_plan(
    model: LoadedModel, settings: AnalyzeSettings, planned: Planned, catalog: SiteCatalog
) -> Plan:
    """The recommended plan, ready to be saved."""
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
            "part": settings.planned_part.value,
        },
        provenance={"versions": provenance.versions(), "seed": settings.seed},
        measured=row,
    )
