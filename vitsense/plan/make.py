"""From the tables of a run to a plan with a reason for every module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vitsense.decimals import MINUS, short
from vitsense.formats import NumberFormat, format_of
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
    if problem.profile is not None:
        rows = problem.modules.to_dict("records")
        provenance = {**provenance, "latency": problem.profile.prediction(rows, assignment.formats)}
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
    weight, activation = stored_as(form, weighted=bool(row["params"]))
    return ModulePlan(
        name=name,
        bits=form.bits,
        role=row["role"],
        weight=weight,
        activation=activation,
        pinned=name in problem.pins,
        reason=reason,
    )


def stored_as(form: NumberFormat, *, weighted: bool) -> tuple[str | None, str]:
    """What a plan calls the formats of a module's weight, if it has one, and of its activations."""
    return form.name if weighted else None, f"u{form.name}" if form.is_integer else form.name


REASONS = {
    "cost": "{kl} nats at {at} ({share} % of the plan's sum)",
    "pinned": "pinned at {at}; {cost}",
    "narrowest": "narrowest width measured; {cost}",
    "below": "{cost}; {below} would cost {next}",
}
"""What a reason says; the report fills in the same words."""


def share_of(problem: Problem, assignment: Assignment, name: str) -> str:
    """Percent of the plan's summed divergence that one module causes, without digits: ``< 1``."""
    total = assignment.prediction.kl
    share = 100 * problem.divergence[name][assignment.formats[name]] / total if total > 0 else 0.0
    return f"{share:.0f}" if round(share) else "< 1"


def next_narrower(table: Mapping[str, float], chosen: str) -> str | None:
    """Of the next narrower formats the best; None if ``chosen`` is the narrowest."""
    form = format_of(chosen)
    narrower = [o for o in map(format_of, table) if o.effective_bits < form.effective_bits]
    if not narrower:
        return None
    return max(narrower, key=lambda other: (other.effective_bits, -table[other.name])).name


def nats(value: float) -> str:
    """A divergence in a reason."""
    return short(value).replace(MINUS, "-")


def _reasons(problem: Problem, assignment: Assignment) -> dict[str, str]:
    """One sentence per module from its divergence, in its format and one step narrower."""
    found = {}
    for name, chosen in assignment.formats.items():
        table, words = problem.divergence[name], format_of(chosen).words
        share = share_of(problem, assignment, name)
        cost = REASONS["cost"].format(kl=nats(table[chosen]), at=words, share=share)
        below = next_narrower(table, chosen)
        if name in problem.pins:
            found[name] = REASONS["pinned"].format(at=words, cost=cost)
        elif below is None:
            found[name] = REASONS["narrowest"].format(cost=cost)
        else:
            known = {"below": format_of(below).words, "next": nats(table[below])}
            found[name] = REASONS["below"].format(cost=cost, **known)
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
