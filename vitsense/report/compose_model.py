"""One model's part of the document."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitsense.compare.best_known import better_formats
from vitsense.compare.groups import role_label
from vitsense.decimals import listed
from vitsense.formats import NumberFormat, format_of
from vitsense.plan.measured import is_measured
from vitsense.plan.plan import Plan
from vitsense.report.chapters import model_chapters
from vitsense.report.chapters.training import training_lines
from vitsense.report.compose_deploy import headline_of, plan_to_deploy
from vitsense.report.compose_front import front_of
from vitsense.report.compose_prices import more_bits
from vitsense.report.compose_sheets import sheets
from vitsense.report.compose_verdict import cards_of, measured_worst, sentences_of
from vitsense.report.compose_what_if import plan_row, what_if
from vitsense.report.document import HeatCell, ModelReport, ModuleRow, PlanRow
from vitsense.report.formatters import (
    count,
    known,
    loss_of,
    number,
    short,
    short_span,
    span,
    spelled,
)
from vitsense.report.sheet import Sheet
from vitsense.report.source import Source
from vitsense.verdict import judged, may_be_taken, worst_modules

if TYPE_CHECKING:
    import pandas as pd


WORST = 12
"""Modules whose distributions are shown."""

LEVELS = 20
_MANY = 1000  # images from which a hundredth of a point is a tenth of an image
_ESTIMATING = ("fast", "hessian")  # modes whose cells hold estimates
_LEAST_KL, _MOST_KL = 1e-4, 3.0  # ends of the colour scale, nats


def compose_model(source: Source, entry: Mapping[str, Any]) -> ModelReport:
    """Everything about the model of ``entry`` (one of ``run.json``'s models)."""
    key = entry["key"]
    run = source.run
    mine = {name: frame[frame["model"] == key] for name, frame in source.tables().items()}
    plan_path = run.plan_path(None if source.is_first(entry) else key)
    plan = Plan.load(plan_path) if plan_path.is_file() else None
    planned = () if plan is None else plan.modules
    planned_bits = {m.name: m.bits for m in planned if format_of(m.format).is_integer}
    sensitivity = _shown(mine["sensitivity"])
    forms = sorted(map(format_of, sorted(set(sensitivity["format"]))), key=_wide_first)
    better = better_formats(run.table("sensitivity"), mine["sensitivity"])
    joint = mine["joint"]
    labelled = source.labelled(key)
    plan_json = plan_path.read_text(encoding="utf-8") if plan is not None else ""
    taken = plan_to_deploy(source, entry, plan_json)
    front, writer = front_of(source, entry)
    plans = tuple(_plan_rows(joint))
    rows = _rows(mine["modules"], sensitivity, plan, forms, sheets(source, key, planned_bits))
    prices = more_bits(mine["modules"], sensitivity, plan)
    rows = [
        replace(row, more=prices.get(row.name, "") + _since(row, better) + _averaged(row))
        for row in rows
    ]
    measured = [cell for row in rows for cell in row.cells if cell.nats]
    by_divergence = bool(measured) and all(cell.noise for cell in measured)
    return ModelReport(
        key=key,
        name=entry["name"],
        family="vision transformer" if entry["family"] == "vit" else "ConvNet",
        loss="drop of top-1" if labelled else "loss of agreement",
        loss_unit="percentage points" if labelled else "% of images",
        facts=_facts(entry, sensitivity),
        headline=headline_of(joint),
        verdict=(
            *sentences_of(
                sensitivity, joint, plan, taken, source.record["data"].get("images_total")
            ),
            *measured_worst(sensitivity, mine["causes"]),
            *_plan_note(plan, joint),
            *training_lines(source, key),
        ),
        cards=tuple(cards_of(entry, joint, sensitivity)),
        seen=_seen(sensitivity),
        columns=tuple((form.label, form.bits) for form in forms),
        by_divergence=by_divergence,
        estimated=bool((sensitivity["status"] == "estimated").any()),
        some_measured=bool((sensitivity["status"] == "measured").any()),
        rows=tuple(_with_divergence(row) for row in rows) if by_divergence else tuple(rows),
        roles=tuple((role_label(name), name) for name in dict.fromkeys(mine["modules"]["role"])),
        worst=_worst(mine["modules"], sensitivity),
        plans=plans,
        front=front,
        writer=writer,
        what_if=what_if(source, entry, plan, joint, front, plans),
        marks=tuple(_marks(_once(joint[~joint["plan"].str.startswith("random-")]))),
        coverage=tuple(
            (row["name"], row["operation"], row["reason"], count(int(row["params"])))
            for row in mine["coverage"].to_dict("records")
        ),
        plan_json=plan_json,
        deployed=taken,
        chapters=model_chapters(source, key),
    )


def _wide_first(form: NumberFormat) -> tuple[bool, float, str]:
    """Order of the columns: integers, then the others, each from wide to narrow."""
    return (not form.is_integer, -form.effective_bits, form.name)


def _plan_note(plan: Plan | None, joint: pd.DataFrame) -> list[str]:
    """A warning where the plan was solved again, so that nobody takes it for the measured one."""
    rows = joint[joint["plan"] == "recommended"].to_dict("records")
    if plan is None or not rows or is_measured(plan, rows[0]):
        return []
    known = "" if plan.measured is not None else " and not measured as a whole"
    return [
        f"The plan file was made again ({plan.budget or 'by hand'}){known}: the module table shows "
        "its bits, everything else the plan that the run searched for."
    ]


def _shown(sensitivity: pd.DataFrame) -> pd.DataFrame:
    """The part that is shown: weights and activations together where that was measured."""
    parts = list(dict.fromkeys(sensitivity["part"]))
    part = "both" if "both" in parts else parts[0]
    return sensitivity[sensitivity["part"] == part].assign(part="both")


def _seen(sensitivity: pd.DataFrame) -> str:
    counts = sensitivity["n"].dropna().astype(int)
    counts = counts[counts > 0]
    if counts.empty:
        return "0"
    least, most = counts.min(), counts.max()
    return f"{least}" if least == most else f"{least} to {most}"


def _facts(entry: Mapping[str, Any], sensitivity: pd.DataFrame) -> tuple[tuple[str, str], ...]:
    size = "x".join(map(str, entry["input_size"]))
    estimated = bool((sensitivity["status"] == "estimated").any())
    weights = {
        "hub": "pretrained, from the hub",
        "file": f"from the file {entry['checkpoint']}",
        "random": "random",
        "zoo": "shipped with vitsense",
        "factory": "as the factory gave them",
    }.get(entry["weights"], entry["weights"])
    return (
        ("Architecture", f"{entry['name']} ({entry['source']})"),
        ("Weights", f"{weights}, digest {entry['weights_digest']}"),
        ("Parameters", f"{entry['params']:,}"),
        ("Input", f"{size}, {entry['interpolation']}, crop {entry['crop_pct']:g}"),
        ("Classes", str(entry["num_classes"])),
        (
            "Modules estimated" if estimated else "Modules measured",
            str(sensitivity["module"].nunique()),
        ),
    )


def _rows(
    modules: pd.DataFrame,
    sensitivity: pd.DataFrame,
    plan: Plan | None,
    forms: Sequence[NumberFormat],
    sheet_of: Mapping[str, Sheet],
) -> list[ModuleRow]:
    planned = {m.name: m for m in plan.modules} if plan is not None else {}
    cells = {(r["module"], r["format"]): r for r in sensitivity.to_dict("records")}
    rows = []
    for row in modules.sort_values("index").to_dict("records"):
        name = row["module"]
        chosen = planned.get(name)
        rows.append(
            ModuleRow(
                index=int(row["index"]),
                name=name,
                role=role_label(row["role"]),
                block=row["block"] or row["stage"],
                params=count(int(row["params"])) if row["params"] else "none",
                bits=chosen.bits if chosen else 0,
                label=format_of(chosen.format).label if chosen else "\u2013",
                pinned=chosen.pinned if chosen else False,
                reason=spelled(chosen.reason) if chosen else "",
                cells=tuple(_cell(form, cells.get((name, form.name))) for form in forms),
                sheet=sheet_of[name],
            )
        )
    return rows


def _since(row: ModuleRow, better: Mapping[str, Mapping[str, float]]) -> str:
    """What the cells show in place of the numbers by which a plan was chosen."""
    known = {w: short(kl) for w, kl in better.get(row.name, {}).items() if w in row.reason}
    if not any(nats not in row.reason for nats in known.values()):
        return ""
    return (
        f"; chosen before {listed(list(known))} were measured on all images: "
        f"{listed([f'{nats} nats' for nats in known.values()])}"
    )


def _averaged(row: ModuleRow) -> str:
    """That a plan took averages of estimates, where its numbers are not those of the cells."""
    other = any(
        cell.text.startswith("~")
        and f"{cell.label} bits" in row.reason
        and short(cell.sort) not in row.reason
        for cell in row.cells
    )
    return "; averages, as fewer bits seem to cost less than more" if other else ""


def _with_divergence(row: ModuleRow) -> ModuleRow:
    """The row with divergences in its cells, where single losses say nothing."""
    return replace(row, cells=tuple(_by_divergence(cell) for cell in row.cells))


def _by_divergence(cell: HeatCell) -> HeatCell:
    if not cell.nats:
        return cell
    bound = "\u2264" if cell.text.startswith("\u2264") else ""
    return replace(cell, text=bound + short(cell.sort))


def _cell(form: NumberFormat, row: Mapping[str, Any] | None) -> HeatCell:
    if row is not None and row["status"] == "estimated":
        return _estimated(form, row)
    if row is not None and row["status"] == "bounded":
        return _bounded_cell(row)
    if row is None or row["status"] != "measured":
        reason = "it was not measured" if row is None else str(row["reason"])
        return HeatCell(
            bits=form.bits,
            label=form.label,
            text="\u2013",
            detail=f"not measured: {reason}",
            nats="",
            sort=-1,
            level=0,
            noise=False,
        )
    value, low, high = loss_of(row)
    kl = float(row["kl"])
    # not <= 0 alone: a change to the better can be as certain as one to the worse; rounded,
    # because 100 minus an agreement of 100 may miss zero by the last bit
    noise = bool(round(low, 9) <= 0 <= round(high, 9))
    digits = 2 if int(row["n"]) >= _MANY else 1
    return HeatCell(
        bits=form.bits,
        label=form.label,
        # beside estimates, which have a divergence only, the loss of one cell would be misread
        text=short(kl) if row["mode"] in _ESTIMATING else number(value),
        detail=f"{number(value, digits)} ({span(low, high, digits)})"
        + (f", {int(row['n'])} images" if row["mode"] != "exact" else ""),
        nats=_nats(row),
        sort=float(f"{kl:.3g}"),
        level=heat_level(kl),
        noise=noise and row["mode"] not in _ESTIMATING,
    )


def _nats(row: Mapping[str, Any]) -> str:
    """Divergence with its interval, nats."""
    return short_span(float(row["kl"]), float(row["kl_low"]), float(row["kl_high"]))


def _estimated(form: NumberFormat, row: Mapping[str, Any]) -> HeatCell:
    """A cell of which only the divergence is known, and that by estimate."""
    kl = float(row["kl"])
    reason = str(row["reason"])  # given where other cells of the table are measured
    return HeatCell(
        bits=form.bits,
        label=form.label,
        text=f"~{short(kl)} nats" if reason else f"~{short(kl)}",
        detail=f"the drop was not measured{': ' + reason if reason else ''}; estimated",
        nats=_nats(row),
        sort=float(f"{kl:.3g}"),
        level=heat_level(kl),
        noise=False,
    )


def _bounded_cell(row: Mapping[str, Any]) -> HeatCell:
    """A cell that was not looked at: its bounds, marked as such."""
    drop, kl = row["drop_high"], float(row["kl_high"])
    most = float(drop) if known(drop) else 100 - float(row["agreement_low"])
    return HeatCell(
        bits=int(row["bits"]),
        label=format_of(str(row["format"])).label,
        text=f"\u2264{number(most)}",
        detail=str(row["reason"]),
        nats=f"at most {short(kl)}",
        sort=float(f"{kl:.3g}"),
        level=heat_level(kl),
        noise=True,
    )


def heat_level(kl: float) -> int:
    """Colour of a divergence, 0 to 20, on a logarithmic scale from 0.0001 to 3 nats."""
    if kl <= _LEAST_KL:
        return 0
    place = math.log(kl / _LEAST_KL) / math.log(_MOST_KL / _LEAST_KL)
    return round(LEVELS * min(place, 1.0))


def _worst(modules: pd.DataFrame, sensitivity: pd.DataFrame) -> tuple[int, ...]:
    worst = worst_modules(sensitivity, WORST)
    places = {name: i for i, name in enumerate(modules.sort_values("index")["module"])}
    return () if worst is None else tuple(places[name] for name in worst[0])


def _once(joint: pd.DataFrame) -> pd.DataFrame:
    """Whole plans without the solved ones that turned out to be equal bits everywhere."""
    equal = joint[joint["plan"].str.startswith("uniform-")]
    same = ["avg_bits", "size_mb", "bitops_g", "predicted_kl", "kl"]
    known_as = set(map(tuple, equal[same].to_numpy().tolist()))
    twice = [tuple(row) in known_as for row in joint[same].to_numpy().tolist()]
    solved = joint["plan"].str.startswith("pareto-")
    return joint[[not (s and t) for s, t in zip(solved, twice, strict=True)]]


def _plan_rows(joint: pd.DataFrame) -> Iterator[PlanRow]:
    known_of = judged(joint)
    for row in _once(joint).to_dict("records"):
        yield plan_row(row, known_of[row["plan"]].value if may_be_taken(row) else "\u2013")


def _marks(plans: pd.DataFrame) -> list[tuple[str, float, float, float, float]]:
    found = []
    for row in plans.to_dict("records"):
        value, low, high = loss_of(row)
        found.append((str(row["plan"]), float(row["size_mb"]), value, low, high))
    return found
