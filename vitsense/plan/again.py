"""Solve again from a run's tables, under another budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsense.errors import SiteMismatchError
from vitsense.formats import FormatLike
from vitsense.plan.budget import Budget
from vitsense.plan.latency import LatencyProfile
from vitsense.plan.make import make_plan, tie_groups
from vitsense.plan.plan import Plan
from vitsense.plan.predict import DropModel
from vitsense.plan.solve import (
    Problem,
    default_pins,
    make_problem,
    planable_cells,
    planable_modules,
    solve,
)
from vitsense.settings import Part

if TYPE_CHECKING:
    from vitsense.runfolder import RunFolder


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
    record = run.read_run()
    entries = {entry["key"]: entry for entry in record["models"]}
    key = model or next(iter(entries))
    if key not in entries:
        raise SiteMismatchError(f"The run has no model {key!r}; it has {', '.join(entries)}.")
    entry = entries[key]
    wanted = Budget.parse(budget)
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
    fixed = default_pins(modules, free.divergence) if keep_default_pins else {}
    problem = make_problem(
        modules,
        sensitivity,
        entry["params"],
        pins={**fixed, **(pins or {})},
        ties=tie_groups(modules, tie) if tie else (),
        part=part,
    )
    latency = None if profile is None else LatencyProfile.load(profile)
    problem = replace(problem, profile=latency)
    solved = solve(problem, wanted, DropModel(**entry["drop_model"]))
    made = make_plan(
        problem,
        solved,
        wanted,
        model=_identity(entry),
        quantization={
            **record["settings"]["quant"],
            "weight": "symmetric",
            "activation": "affine, per tensor",
            "part": part.value,
        },
        provenance={
            "versions": record["provenance"]["versions"],
            "seed": record["settings"]["seed"],
            **({} if latency is None else _latency(problem, latency, solved.formats)),
        },
    )
    path = out or run.plan_path(None if key == next(iter(entries)) else key)
    made.save(path)
    return made, path


def _latency(
    problem: Problem, profile: LatencyProfile, formats: Mapping[str, str]
) -> dict[str, Any]:
    """The plan's latency, and whether it is an estimate, for the provenance."""
    rows = problem.modules[["module", "params", "macs"]].to_dict("records")
    total = sum(
        profile.milliseconds(
            str(row["module"]), int(row["params"]), int(row["macs"]), formats[str(row["module"])]
        )
        for row in rows
    )
    kind = "estimate" if profile.is_estimate else "measured per module"
    return {"latency": {"profile": profile.name, "ms": total, "kind": kind}}


def _identity(entry: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("key", "name", "weights_digest", "sites_digest", "num_classes")
    return {key: entry[key] for key in keys}
