"""Solve again from a run's tables, under another budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsense.errors import SiteMismatchError
from vitsense.formats import FormatLike
from vitsense.plan.budget import Budget
from vitsense.plan.make import make_plan, tie_groups
from vitsense.plan.plan import Plan
from vitsense.plan.predict import DropModel
from vitsense.plan.solve import (
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
        },
    )
    path = out or run.plan_path(None if key == next(iter(entries)) else key)
    made.save(path)
    return made, path


def _identity(entry: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("key", "name", "weights_digest", "sites_digest", "num_classes")
    return {key: entry[key] for key in keys}
