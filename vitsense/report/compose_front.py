"""The Pareto front, and what the page needs to write any of its plans as the program would."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vitsense.compare.plan_names import plan_name
from vitsense.formats import NumberFormat, format_of
from vitsense.plan.again import FrontPlan, front_plans
from vitsense.plan.make import nats, next_narrower, share_of, stored_as
from vitsense.plan.plan import Plan
from vitsense.report.document import FrontPoint, PlanWriter
from vitsense.report.formatters import loss_of, number, span
from vitsense.report.source import Source
from vitsense.runfolder import json_text

if TYPE_CHECKING:
    import pandas as pd

_CHANGING = ("modules", "budget", "cost", "predicted")
"""The parts of a plan file that differ from point to point, in the order of the file."""

_FIRST_LETTER = 48
NOT_PLANNED = -1
"""Choice of a module that the plan leaves in float."""


def letter(value: int) -> str:
    """A small whole number as one character, so that a row of them is a short text."""
    return chr(_FIRST_LETTER + value)


def front_of(source: Source, entry: Any) -> tuple[tuple[FrontPoint, ...], PlanWriter | None]:
    """The points of a model's front, and how their plans are written; None if they cannot be."""
    key = entry["key"]
    pareto, bits = source.table("pareto", key), source.table("pareto_bits", key)
    order = list(source.table("modules", key).sort_values("index")["module"])
    plans: dict[int, FrontPlan] = {}
    if "drop_model" in entry and len(pareto):
        plans, _ = front_plans(source.run, model=key)
    tables = next(iter(plans.values())).problem.divergence.values() if plans else ()
    names = tuple(dict.fromkeys(name for table in tables for name in table))
    kinds = _kinds(plans)
    by_point = {
        int(p): dict(zip(g["module"], map(format_of, g["format"]), strict=True))
        for p, g in bits.groupby("point")
    }
    points = tuple(
        _point(
            row,
            by_point[int(row["point"])],
            order,
            _written(plans.get(int(row["point"])), order, kinds),
        )
        for row in _measured(pareto, source.table("joint", key)).to_dict("records")
    )
    if not plans:
        return points, None
    first = next(iter(plans.values()))
    plan = first.plan()
    return points, PlanWriter(
        parts=_parts(plan),
        cost=tuple(plan.cost or ()),
        predicted=tuple(plan.predicted or ()),
        formats=tuple(_choice(*kind, names) for kind in kinds),
        pinned=tuple(sorted(order.index(name) for name in first.problem.pins)),
        words=tuple((format_of(name).label, format_of(name).words) for name in names),
        nats=tuple(_nats(first.problem.divergence.get(name, {}), names) for name in order),
    )


def _nats(table: Mapping[str, float], names: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """Divergence in every format of ``names``, and the place of the next narrower one."""
    found = []
    for name in names:
        below = next_narrower(table, name) if name in table else None
        found.append((nats(table.get(name, 0.0)), -1 if below is None else names.index(below)))
    return tuple(found)


Choice = tuple[int, str | None, str | None, int]


Kind = tuple[str, bool]
"""A format, and whether the module that has it has a weight."""


def _kinds(plans: Mapping[int, FrontPlan]) -> dict[Kind, int]:
    """Every combination that occurs, with its place."""
    found: dict[Kind, int] = {}
    for made in plans.values():
        for kind in _kind_of(made).values():
            found.setdefault(kind, len(found))
    return found


def _kind_of(made: FrontPlan) -> dict[str, Kind]:
    """The combination that each module of a plan has."""
    frame, formats = made.problem.modules, made.assignment.formats
    weighted = zip(frame["module"].to_numpy(), frame["params"].to_numpy(), strict=True)
    return {name: (formats[name], bool(params)) for name, params in weighted}


def _choice(form: str, weighted: bool, names: tuple[str, ...]) -> Choice:
    stored = stored_as(format_of(form), weighted=weighted)
    return format_of(form).bits, *stored, names.index(form)


def _written(
    made: FrontPlan | None, order: Sequence[str], kinds: Mapping[Kind, int]
) -> dict[str, str]:
    """What differs between the plan files of two points, as the file has it."""
    if made is None:
        return dict.fromkeys(("choices", "shares", "budget", "cost", "predicted"), "")
    own, solved = _kind_of(made), made.assignment
    return {
        "choices": "".join(letter(kinds[own[n]] if n in own else NOT_PLANNED) for n in order),
        "shares": "".join(
            letter(_percent(share_of(made.problem, solved, n)) if n in own else 0) for n in order
        ),
        "budget": json.dumps(made.budget.text),
        "cost": " ".join(map(json.dumps, asdict(solved.cost).values())),
        "predicted": " ".join(map(json.dumps, asdict(solved.prediction).values())),
    }


def _point(
    row: dict[str, Any],
    forms: Mapping[str, NumberFormat],
    order: Sequence[str],
    written: Mapping[str, str],
) -> FrontPoint:
    return FrontPoint(
        number=int(row["point"]),
        # rounded up: as a budget it must still admit this point
        avg_bits=math.ceil(1e6 * float(row["avg_bits"]) - 1e-3) / 1e6,
        size_mb=round(float(row["size_mb"]), 4),
        bitops_g=round(float(row["bitops_g"]), 4),
        drop=round(float(row["predicted_drop"]), 3),
        low=round(float(row["predicted_low"]), 3),
        high=round(float(row["predicted_high"]), 3),
        bits=tuple(forms[name].bits if name in forms else 0 for name in order),
        labels=tuple(forms[name].label if name in forms else "\u2013" for name in order),
        measured=row["measured"],
        plan=row["plan"],
        **written,
    )


def _percent(share: str) -> int:
    """Of a share as a reason says it; 0 stands for less than 1."""
    return int(share) if share.isdecimal() else 0


def _measured(pareto: pd.DataFrame, joint: pd.DataFrame) -> pd.DataFrame:
    """Columns with name and measured loss of the points that were measured as whole plans."""
    # one of equal bits is called so, also where the solver found the same
    plans = joint[~joint["plan"].str.startswith("only-")].to_dict("records")

    def found(point: Mapping[str, Any]) -> tuple[str, str]:
        for row in plans:
            same = (
                math.isclose(row[k], point[k], rel_tol=1e-9)
                for k in ("avg_bits", "bitops_g", "predicted_kl")
            )
            if all(same):
                value, low, high = loss_of(row)
                return plan_name(str(row["plan"])), f"{number(value)} ({span(low, high)})"
        return "", ""

    known = [found(point) for point in pareto.to_dict("records")]
    return pareto.assign(plan=[name for name, _ in known], measured=[loss for _, loss in known])


def _parts(plan: Plan) -> tuple[str, ...]:
    """What stands in every plan file before, between and after the parts that change."""
    return _split(json_text({**plan.to_json(), **{n: f"\0{n}" for n in _CHANGING}}))


def _split(text: str) -> tuple[str, ...]:
    parts = []
    for name in _CHANGING:
        before, _, text = text.partition(json.dumps(f"\0{name}"))
        parts.append(before)
    return (*parts, text)
