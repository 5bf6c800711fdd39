"""From the tables of a run to a plan with a reason for every module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vitsense.formats import format_of
from vitsense.plan.budget import Budget
from vitsense.plan.plan import ModulePlan, Plan
from vitsense.plan.solve import Assignment, Problem

if TYPE_CHECKING:
    import pandas as pd


def make_plan(
    problem: Problem,
    assignment: Assignment,
    budget: Budget,
    *,
    model: Mapping[str, Any],
    quantization: Mapping[str, Any],
    provenance: Mapping[str, Any],
    measured: Mapping[str, Any] | None = None,
) -> Plan:
    """A plan that says why each module gets its bits."""
    reasons = _reasons(problem, assignment)
    modules = tuple(
        _module_plan(row, assignment, problem, reasons[row["module"]])
        for row in problem.modules.to_dict("records")
    )
    prediction = asdict(assignment.prediction)
    return Plan(
        modules=modules,
        model=dict(model),
        quantization=dict(quantization),
        budget=budget.text,
        cost=asdict(assignment.cost),
        predicted=prediction,
        measured=None if measured is None else dict(measured),
        provenance=dict(provenance),
    )


def _module_plan(
    row: Mapping[str, Any], assignment: Assignment, problem: Problem, reason: str
) -> ModulePlan:
    name = row["module"]
    form = format_of(assignment.formats[name])
    return ModulePlan(
        name=name,
        bits=form.bits,
        role=row["role"],
        weight=form.name if row["params"] else None,
        activation=f"u{form.name}" if form.is_integer else form.name,
        pinned=name in problem.pins,
        reason=reason,
    )


def _reasons(problem: Problem, assignment: Assignment) -> dict[str, str]:
    """One sentence per module from its divergence, in its format and one step narrower."""
    total = assignment.prediction.kl
    found = {}
    for name, chosen in assignment.formats.items():
        table, form = problem.divergence[name], format_of(chosen)
        narrower = [
            other for other in map(format_of, table) if other.effective_bits < form.effective_bits
        ]
        share = 100 * table[chosen] / total if total > 0 else 0.0
        costs = f"{table[chosen]:.2g} nats at {form.words} ({share:.0f} % of the plan's sum)"
        if name in problem.pins:
            found[name] = f"pinned at {form.words}; {costs}"
        elif not narrower:
            found[name] = f"narrowest width measured; {costs}"
        else:
            # of the next narrower ones the best
            below = max(narrower, key=lambda other: (other.effective_bits, -table[other.name]))
            found[name] = f"{costs}; {below.words} would cost {table[below.name]:.2g}"
    return found


def tie_groups(modules: pd.DataFrame, by: str) -> list[list[str]]:
    """Groups of modules that must have equal bits: ``qkv`` of one projection, or ``block``."""
    if by == "qkv":
        rows = modules[modules["role"].isin(["q", "k", "v"])]
        keys = rows["module"].str.replace(r"\.[qkv]$", "", regex=True)
    else:
        rows = modules[modules["block"] != ""]
        keys = rows["block"]
    groups = [list(part["module"]) for _, part in rows.groupby(keys, sort=False)]
    return [group for group in groups if len(group) > 1]
