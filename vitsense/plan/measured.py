"""Whole plans that a run measured, as plan files again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vitsense.decimals import listed
from vitsense.errors import UserInputError
from vitsense.formats import format_of
from vitsense.plan.again import AS_MEASURED, Bounds, Setting, previous_path, setting_of
from vitsense.plan.budget import Budget, BudgetKind
from vitsense.plan.plan import Plan
from vitsense.plan.solve import assignment_of
from vitsense.schemas import SCHEMAS

if TYPE_CHECKING:
    from vitsense.runfolder import RunFolder

_COSTS = ("avg_bits", "bitops_g", "predicted_kl")
"""What two plans have in common only if they are one, beside their formats."""


def plan_measured(
    run: RunFolder, name: str, *, model: str | None = None, out: Path | None = None
) -> tuple[Plan, Path]:
    """Write a whole plan that the run measured, with what it lost.

    Args:
        run: Must hold finished measurements.
        name: As in ``joint.csv``: ``uniform-6``, ``pareto-5`` or ``recommended``.
        model: Key; None is the first of the run.
        out: File; None is the run's own plan file.

    Raises:
        SiteMismatchError: the run has no such model.
        UserInputError: no such plan was measured, or its bits are not kept.
    """
    setting = setting_of(run, model, Bounds())
    made = measured_of(run, name, setting)
    if made is None:
        known = [o for o in _rows(run, setting) if measured_of(run, o, setting) is not None]
        raise UserInputError(
            f"--measured is {name!r}: the measured plans of {setting.entry['key']} whose bits are "
            f"kept are {listed(known) if known else 'none'}."
        )
    return made, setting.write(made, out)


def measured_of(run: RunFolder, name: str, setting: Setting) -> Plan | None:
    """A measured plan; None if there is none of this name, or its bits are not kept."""
    row = _rows(run, setting).get(name)
    if row is None:
        return None
    if name == "recommended":
        return _kept(setting, row)
    formats = _formats(run, name, row, setting)
    if formats is None:
        return None
    solved = assignment_of(setting.problem, formats, setting.curve)
    if not math.isclose(solved.cost.avg_bits, row["avg_bits"], rel_tol=1e-9):
        return None  # measured with other modules than those that are planned for
    budget = Budget(BudgetKind.AVG_BITS, solved.cost.avg_bits)
    if _uniform(name):  # pins do not hold where all modules are alike
        setting = replace(setting, problem=replace(setting.problem, pins={}))
    made = setting.plan(solved, budget, measured=_outcome(row))
    return replace(made, provenance={**made.provenance, AS_MEASURED: name})


def _rows(run: RunFolder, setting: Setting) -> dict[str, dict[str, Any]]:
    joint = run.table("joint")
    mine = joint[joint["model"] == setting.entry["key"]].to_dict("records")
    return {str(row["plan"]): dict(row) for row in mine}


def _uniform(name: str) -> str:
    """The format of a plan that has one everywhere, as its name says it; else nothing."""
    return name.removeprefix("uniform-") if name.startswith("uniform-") else ""


def _formats(
    run: RunFolder, name: str, row: Mapping[str, Any], setting: Setting
) -> dict[str, str] | None:
    """Module -> format of a plan that is not the searched one."""
    value = _uniform(name)
    if value:
        form = format_of(int(value) if value.isdecimal() else value).name
        known = all(form in table for table in setting.problem.divergence.values())
        return dict.fromkeys(setting.problem.modules["module"], form) if known else None
    if not name.startswith("pareto-"):
        return None
    key = setting.entry["key"]
    pareto, bits = run.table("pareto"), run.table("pareto_bits")
    for point in pareto[pareto["model"] == key].to_dict("records"):
        if same_plan(row, point):
            part = bits[(bits["model"] == key) & (bits["point"] == point["point"])]
            return dict(zip(part["module"], part["format"], strict=True))
    return None


def same_plan(row: Mapping[str, Any], point: Mapping[str, Any] | pd.Series) -> bool:
    """Whether a measured plan is a point of the front: all costs are equal."""
    return all(math.isclose(row[name], point[name], rel_tol=1e-9) for name in _COSTS)


def _kept(setting: Setting, row: Mapping[str, Any]) -> Plan | None:
    """The plan of the run, or the one before it, whichever is the one that was measured."""
    for path in (setting.path, previous_path(setting.path)):
        if path.is_file():
            plan = Plan.load(path)
            if is_measured(plan, row):
                return plan
    return None


def is_measured(plan: Plan, row: Mapping[str, Any]) -> bool:
    """Whether a plan file is of the plan that a row of ``joint.csv`` measured."""
    kl = (plan.measured or {}).get("kl")
    return kl is not None and math.isclose(float(kl), float(row["kl"]), rel_tol=1e-9)


def _outcome(row: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, as the plan file of an analysis has it: what is not known is null."""
    names = list(SCHEMAS["joint"])
    found = {name: row[name] for name in names[names.index("n") :]}
    return {name: None if pd.isna(value) else _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
