"""Solve again from a run's tables, under another budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsense.errors import SiteMismatchError, UserInputError
from vitsense.formats import FormatLike, format_of
from vitsense.plan.budget import Budget, BudgetKind
from vitsense.plan.latency import LatencyProfile
from vitsense.plan.make import make_plan, tie_groups
from vitsense.plan.plan import Plan
from vitsense.plan.predict import DropModel
from vitsense.plan.solve import (
    Assignment,
    Problem,
    assignment_of,
    default_pins,
    make_problem,
    planable_cells,
    planable_modules,
    solve,
)
from vitsense.runfolder import atomic_write
from vitsense.schemas import RATED
from vitsense.settings import Granule, Part

if TYPE_CHECKING:
    from vitsense.runfolder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a plan has to keep besides its budget; see `plan_again`."""

    pins: Mapping[str, FormatLike] = field(default_factory=dict)
    keep_default_pins: bool = True
    tie: str | None = None
    profile: Path | None = None


def plan_again(
    run: RunFolder,
    budget: str,
    *,
    model: str | None = None,
    pins: Mapping[str, FormatLike] | None = None,
    keep_default_pins: bool = True,
    tie: str | None = None,
    profile: Path | None = None,
    out: Path | None = None,
) -> tuple[Plan, Path]:
    """Write a plan for one model of a run.

    Args:
        run: Must hold finished measurements.
        budget: As `Budget.parse` reads it.
        model: Its key; None is the first of the run.
        pins: Modules fixed at given bits or formats.
        keep_default_pins: Whether the first and last module stay at 8 bits.
        tie: ``qkv`` or ``block``: equal bits within these groups.
        profile: A latency profile, for a budget of ``latency-ms``; also gives the plan's latency.
        out: File; None is the run's own plan file.

    Raises:
        SiteMismatchError: the run has no such model, or a pinned module does not exist.
        UserInputError: the budget is wrong or cannot be met.
    """
    bounds = Bounds(pins=pins or {}, keep_default_pins=keep_default_pins, tie=tie, profile=profile)
    again = solved_again(run, budget, model, bounds)
    made = again.setting.plan(again.solved, again.budget)
    return made, again.setting.write(made, out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """What was solved from a run's tables."""

    setting: Setting
    budget: Budget
    solved: Assignment


def solved_again(run: RunFolder, budget: str, model: str | None, bounds: Bounds) -> Again:
    """Solve for one model of a run; arguments and errors are those of `plan_again`."""
    wanted = Budget.parse(budget)
    setting = setting_of(run, model, bounds)
    return Again(
        setting=setting, budget=wanted, solved=solve(setting.problem, wanted, setting.curve)
    )


def plan_at(
    run: RunFolder, point: int, *, model: str | None = None, out: Path | None = None
) -> tuple[Plan, Path]:
    """Write the plan of one point of a model's Pareto front, as the report's slider shows it.

    Args:
        run: Must hold finished measurements.
        point: Its number in ``pareto.csv``.
        model: Key; None is the first of the run.
        out: File; None is the run's own plan file.

    Raises:
        SiteMismatchError: the run has no such model.
        UserInputError: the front has no such point.
    """
    plans, path = front_plans(run, model=model)
    if point not in plans:
        known = f"0 to {max(plans)}" if plans else "none: this run has no front"
        raise UserInputError(f"There is no point {point} on the front; the points are {known}.")
    if out is None:
        _keep(path)
    path = out or path
    made = plans[point].plan()
    made.save(path)
    return made, path


AS_MEASURED = "plan"
"""Of a plan made again from the run's tables, where its provenance says which one it is."""


def previous_path(path: Path) -> Path:
    """Where the plan that stood in a run's plan file ``path`` is kept when another replaces it."""
    return path.with_suffix(".previous.json")


def _keep(path: Path) -> None:
    """Keep a plan that is about to be replaced.

    One that was searched for and measured as a whole is what the analysis paid for, and is not
    pushed out by one that the same command makes again in a second from the run's tables.
    """
    if not path.is_file():
        return
    kept = previous_path(path)
    plan = Plan.load(path)
    if not kept.is_file() or (plan.measured is not None and AS_MEASURED not in plan.provenance):
        atomic_write(kept, path.read_bytes())


def nothing_wider(run: RunFolder, plan: Plan) -> bool:
    """Whether a budget of bits or bytes is left over because no wider format was measured."""
    budget, cost = Budget.parse(plan.budget), plan.cost or {}
    spent = cost.get(budget.kind.value.replace("-", "_"))
    if spent is None or spent > 0.999 * budget.value:
        return False
    cells = run.table("sensitivity")
    cells = cells[(cells["model"] == plan.model["key"]) & cells["status"].isin(RATED)]
    widest = {
        module: max(format_of(name).effective_bits for name in forms)
        for module, forms in cells.groupby("module")["format"]
    }
    return all(
        one.pinned or format_of(one.format).effective_bits >= widest.get(one.name, 0.0)
        for one in plan.modules
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPlan:
    """A point of the front, with what a plan is made from."""

    assignment: Assignment
    setting: Setting

    @property
    def problem(self) -> Problem:
        """What was planned for."""
        return self.setting.problem

    @property
    def budget(self) -> Budget:
        """The average bits that the point has."""
        return Budget(BudgetKind.AVG_BITS, self.assignment.cost.avg_bits)

    def plan(self) -> Plan:
        """The plan, which was not measured, with a reason for every module.

        It is made when it is asked for: of all points of a front, one is written.
        """
        return self.setting.plan(self.assignment, self.budget)


def front_plans(run: RunFolder, *, model: str | None = None) -> tuple[dict[int, FrontPlan], Path]:
    """Every point of a model's front, and the run's plan file.

    Raises:
        SiteMismatchError: the run has no such model or no finished measurement of it.
    """
    setting = setting_of(run, model, Bounds())
    bits = run.table("pareto_bits")
    bits = bits[bits["model"] == setting.entry["key"]]
    found = {}
    for point, part in bits.groupby("point"):
        chosen = dict(zip(part["module"], part["format"], strict=True))
        assignment = assignment_of(setting.problem, chosen, setting.curve)
        found[int(point)] = FrontPlan(assignment=assignment, setting=setting)
    return found, setting.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One model of a run, ready to be planned for."""

    record: Mapping[str, Any]
    entry: Mapping[str, Any]
    problem: Problem
    part: Part
    curve: DropModel
    path: Path

    def write(self, plan: Plan, out: Path | None) -> Path:
        """Save a plan in a file, or in the run, where the one before is kept; where that is."""
        if out is None:
            _keep(self.path)
        plan.save(out or self.path)
        return out or self.path

    def plan(
        self,
        assignment: Assignment,
        budget: Budget,
        *,
        measured: Mapping[str, Any] | None = None,
        search: Mapping[str, Any] | None = None,
    ) -> Plan:
        """An assignment as a plan, with what was measured of it and how it was searched for."""
        record = self.record
        searched = {} if search is None else {"search": dict(search)}
        return make_plan(
            self.problem,
            assignment,
            budget,
            model=_identity(self.entry),
            quantization={
                **record["settings"]["quant"],
                "weight": "symmetric",
                "activation": "affine, per tensor",
                "part": self.part.value,
            },
            provenance={
                "versions": record["provenance"]["versions"],
                "seed": record["settings"]["seed"],
                **searched,
            },
            measured=measured,
        )


def setting_of(run: RunFolder, model: str | None, bounds: Bounds) -> Setting:
    """What is planned for: one model of a run, from its tables. Errors: see `plan_again`."""
    record = run.read_run()
    entries = {entry["key"]: entry for entry in record["models"]}
    key = model or next(iter(entries))
    if key not in entries:
        raise SiteMismatchError(f"The run has no model {key!r}; it has {', '.join(entries)}.")
    entry = entries[key]
    modules, sensitivity = (
        frame[frame["model"] == key] for frame in (run.table("modules"), run.table("sensitivity"))
    )
    if modules.empty or "drop_model" not in entry:
        raise SiteMismatchError(
            f"{run.path} holds no finished measurement of {key}; continue it with vitsense analyze "
            f"--out {run.path}."
        )
    parts = list(dict.fromkeys(sensitivity["part"]))
    part = Part.BOTH if "both" in parts else Part(parts[0])
    sensitivity = planable_cells(sensitivity, part)
    modules = planable_modules(modules, part)
    free = make_problem(modules, sensitivity, entry["params"], pins={}, part=part)
    granule = record["settings"]["quant"].get("weight_granularity")
    per_tensor = granule == Granule.TENSOR.value
    fixed = default_pins(modules, free.divergence) if bounds.keep_default_pins else {}
    problem = make_problem(
        modules,
        sensitivity,
        entry["params"],
        pins={**fixed, **bounds.pins},
        ties=tie_groups(modules, bounds.tie) if bounds.tie else (),
        part=part,
        per_tensor=per_tensor,
    )
    latency = None if bounds.profile is None else LatencyProfile.load(bounds.profile)
    return Setting(
        record=record,
        entry=entry,
        problem=replace(problem, profile=latency),
        part=part,
        curve=DropModel(**entry["drop_model"]),
        path=run.plan_path(None if key == next(iter(entries)) else key),
    )


def _identity(entry: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("key", "name", "weights_digest", "sites_digest", "num_classes")
    return {key: entry[key] for key in keys}
