"""What the slider over the Pareto front shows: the plan in force and measured plans beside it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitsense.compare.plan_names import plan_name
from vitsense.decimals import predicted
from vitsense.plan.measured import is_measured
from vitsense.report.compose_deploy import called
from vitsense.report.document import FrontPoint, PlanRow, WhatIf
from vitsense.report.formatters import known, loss_of, number, short_span, span
from vitsense.report.source import Source
from vitsense.verdict import judged, may_be_taken

if TYPE_CHECKING:
    import pandas as pd

    from vitsense.plan.plan import Plan


def what_if(
    source: Source,
    entry: Mapping[str, Any],
    plan: Plan | None,
    joint: pd.DataFrame,
    front: Sequence[FrontPoint],
    plans: Sequence[PlanRow],
) -> WhatIf | None:
    """The plan of the model's plan file among the points of its front; None without either.

    Args:
        source: The run.
        entry: The model's part of ``run.json``.
        plan: As it stands in the plan file: the recommended one, unless it was made again since.
        joint: ``joint.csv`` of the model.
        front: The points.
        plans: The whole plans of the report.
    """
    if plan is None or not front:
        return None
    bits = (plan.cost or {}).get("avg_bits")
    row = _row_of(plan)
    rows = joint.to_dict("records")
    deployable = {plan_name(str(one["plan"])) for one in filter(may_be_taken, rows)}
    sought = [one for one in rows if one["plan"] == "recommended"]
    again = not sought or not is_measured(plan, sought[0])
    on_line = {point.plan for point in front} | (set() if again else {row.name})
    first = source.is_first(entry)
    file = source.run.plan_path(None if first else entry["key"]).name
    which = [] if first else ["--model", entry["key"]]
    name = f"plan of {file}" if again else called(judged(joint).get("recommended"))
    return WhatIf(
        called=name,
        plan=replace(row, name=name) if again else row,
        place=sum(bits is not None and point.avg_bits < bits for point in front),
        file=file,
        folder=shlex.quote(source.shown_path),
        command=shlex.join(["vitsense", "plan", source.shown_path, *which, "--point"]),
        aside=tuple(row for row in plans if row.name in deployable - on_line),
    )


def _row_of(plan: Plan) -> PlanRow:
    """The plan with what its file says of it; a dash for what it does not."""
    made = {f"predicted_{name}": value for name, value in (plan.predicted or {}).items()}
    nothing = dict.fromkeys(("avg_bits", "size_mb", "bitops_g", "predicted_drop"), float("nan"))
    return plan_row(
        {"plan": "recommended", **nothing, **(plan.cost or {}), **made, **(plan.measured or {})}
    )


def plan_row(row: Mapping[str, Any], judged_as: str = "\u2013") -> PlanRow:
    """A row of ``joint.csv`` in words, and whether it holds; a dash for what is not known."""
    made = measured = nats = "\u2013"
    if known(row["predicted_drop"]):
        made = predicted(*(float(row[f"predicted_{end}"]) for end in ("drop", "low", "high")))
    if "kl" in row:
        value, low, high = loss_of(row)
        measured = f"{number(value)} ({span(low, high)})"
        nats = short_span(float(row["kl"]), float(row["kl_low"]), float(row["kl_high"]))
    return PlanRow(
        name=plan_name(str(row["plan"])),
        bits=_two(row["avg_bits"]),
        size=_two(row["size_mb"]),
        bitops=_two(row["bitops_g"]),
        predicted=made,
        measured=measured,
        divergence=nats,
        judged=judged_as,
    )


def _two(value: float) -> str:
    return number(value, 2) if known(value) else "\u2013"
