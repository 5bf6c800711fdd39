"""A model's part of the first screen: the verdict in a sentence, cards, and what else to know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitsense.compare.plan_names import plan_name
from vitsense.decimals import listed
from vitsense.formats import format_of
from vitsense.report.document import Card, Status
from vitsense.report.formatters import (
    MINUS,
    known,
    loss_of,
    number,
    short,
    shortened,
    span,
    visible,
)
from vitsense.verdict import loss_text, worst_modules, worst_text

if TYPE_CHECKING:
    import pandas as pd

    from vitsense.plan.plan import Plan

_MOST_OF_IT = 33.0  # percent of the divergence from which one module is named alone
_LITTLE = 1.0  # points that are little to lose


def headline_of(joint: pd.DataFrame) -> str:
    """The verdict: what the recommended plan costs, beside equal bits everywhere.

    Args:
        joint: ``joint.csv`` of the model. Without a recommended plan the headline is empty.
    """
    plans = {row["plan"]: row for row in joint.to_dict("records")}
    chosen = plans.get("recommended")
    if chosen is None:
        return ""
    status, _ = _status(chosen)
    size = f"{chosen['avg_bits']:.1f} bits on average ({chosen['size_mb']:.2f} MB)"
    if status is Status.BAD:
        line = f"No plan that was found holds at {size}: the best one {_plainly(chosen)}"
    else:
        verb = "holds" if status is Status.GOOD else "may or may not hold"
        line = f"The recommended plan {verb} at {size}: it {_plainly(chosen)}"
    same = plans.get(f"uniform-{round(chosen['avg_bits'])}")
    if same is not None:
        line += f"; {round(chosen['avg_bits'])} bits everywhere {_plainly(same, short_form=True)}"
    return visible(f"{line}.")


def _plainly(row: Mapping[str, Any], *, short_form: bool = False) -> str:
    """What a plan loses, with the interval; near zero it says that nothing may be lost."""
    value, low, high = loss_of(row)
    if not known(row["drop"]):
        return loss_text(row)
    if low <= 0 <= high:
        verb, ends = "loses", f"{number(value)} points ({span(low, high)})"
        if number(value).startswith(MINUS):
            verb, ends = "gains", f"{number(-value)} points ({span(-high, -low)})"
        return f"{verb} {ends}" + ("" if short_form else ", which may be nothing")
    return loss_text(row)


def sentences_of(sensitivity: pd.DataFrame, joint: pd.DataFrame) -> list[str]:
    """What the cards do not say: the next plan that holds, and the modules that cost most."""
    worst = worst_modules(sensitivity)
    names = () if worst is None else worst[0]
    lines = (*_wider(joint), *worst_text(sensitivity))
    return [visible(_shortened(line, names)) for line in lines]


def _shortened(line: str, names: Iterable[str]) -> str:
    """A sentence whose long names have lost their middle; tables have them whole."""
    for name in names:
        line = line.replace(name, shortened(name))
    return line


def _wider(joint: pd.DataFrame) -> list[str]:
    """The smallest measured plan that holds, where the recommended one is not known to."""
    plans = joint.to_dict("records")
    chosen = next((row for row in plans if row["plan"] == "recommended"), None)
    if chosen is None or _status(chosen)[0] is Status.GOOD:
        return []
    wider = [
        row
        for row in plans
        if row["size_mb"] > chosen["size_mb"] and not str(row["plan"]).startswith("random-")
    ]
    holding = [row for row in wider if _status(row)[0] is Status.GOOD]
    if holding:
        best = min(holding, key=lambda row: row["size_mb"])
        return [f"The smallest measured plan that holds: {_sized(best)}.{_luck(best, wider)}"]
    if not wider:
        return []
    best = min(wider, key=lambda row: loss_of(row)[2])
    if all(_status(row)[0] is Status.BAD for row in wider):
        return [f"No measured plan holds. The one that loses least: {_sized(best)}."]
    lost = number(loss_of(best)[2])
    return [
        f"No measured plan is known to hold. The nearest: {_sized(best)}, so up to {lost} may be "
        "lost; more images would tell."
    ]


def _luck(best: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """That a plan holds by chance, as far as plans of less divergence are not known to hold."""
    less = [row for row in others if row["kl"] < best["kl"] and _status(row)[0] is not Status.GOOD]
    if not less:
        return ""
    which = "a plan" if len(less) == 1 else f"{len(less)} plans"
    return (
        f" Take this with care: {which} of less divergence cannot be told to hold, so some of it "
        "is luck with these images; more images would tell."
    )


def _sized(row: Mapping[str, Any]) -> str:
    size = f"{plan_name(str(row['plan']))}, {row['avg_bits']:.1f} bits on average"
    size += f", {row['size_mb']:.2f} MB"
    if not known(row["drop"]):
        return f"{size}, {loss_text(row)}"
    value, low, high = loss_of(row)
    if number(value).startswith(MINUS):
        return f"{size}, {number(-value)} points gained ({span(-high, -low)})"
    return f"{size}, {number(value)} points lost ({span(low, high)})"


_NAMED = 8


def widest_of(plan: Plan | None) -> list[str]:
    """Which modules keep the most bits in the plan."""
    if plan is None:
        return []
    forms = {module.name: format_of(module.format) for module in plan.modules}
    most = max(form.effective_bits for form in forms.values())
    wide = [module for module in plan.modules if forms[module.name].effective_bits == most]
    if len(wide) == len(forms):
        return []
    names = [shortened(m.name) + (" (pinned)" if m.pinned else "") for m in wide]
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    words = forms[wide[0].name].words
    return [visible(f"The plan keeps {words} for {', '.join(names[:_NAMED] + more)}.")]


def bits_of_worst(plan: Plan | None, sensitivity: pd.DataFrame) -> list[str]:
    """What the plan gives the most sensitive modules: the first to keep at more bits."""
    worst = worst_modules(sensitivity)
    if plan is None or worst is None:
        return []
    chosen = {module.name: module for module in plan.modules}
    given = [
        format_of(chosen[name].format).label + (" (pinned)" if chosen[name].pinned else "")
        for name in worst[0]
        if name in chosen
    ]
    if len(given) != len(worst[0]) or not given:
        return []
    _, first, _ = worst_modules(sensitivity, 1) or worst
    unit = " bits" if given[-1][0].isdecimal() else ""
    alone = f"The first alone causes {first:.0f} %. " if first >= _MOST_OF_IT else ""
    return [
        f"{alone}These {len(given)} are the first to keep at more bits; within its budget the plan "
        f"gives them, in this order, {', '.join(given)}{unit}."
    ]


def measured_worst(sensitivity: pd.DataFrame, causes: pd.DataFrame) -> list[str]:
    """Where the ranking is an estimate: what those of its first modules have that were measured."""
    worst = worst_modules(sensitivity)
    if worst is None or not (sensitivity["status"] == "estimated").any():
        return []
    rated = sensitivity[sensitivity["format"] == worst[2].name].set_index("module")["status"]
    sure = [shortened(name) for name in worst[0] if rated[name] == "measured"]
    if sure:
        return [
            f"The ranking rests on estimates but for {listed(sure)}, measured on all images: "
            "others that follow closely may change places."
        ]
    before = causes.dropna(subset=["kl_before"]).drop_duplicates("module").set_index("module")
    said = [
        f"{shortened(name)} {short(float(before.loc[name, 'kl_before']))}"
        for name in worst[0]
        if name in before.index
    ]
    if not said:
        return ["The ranking rests on estimates: modules that follow closely may change places."]
    return [
        f"The ranking rests on estimates. Measured alone, for their remedies: {', '.join(said)} "
        "nats; where this is far from the estimate, trust the measurement."
    ]


def cards_of(
    entry: Mapping[str, Any], joint: pd.DataFrame, sensitivity: pd.DataFrame
) -> list[Card]:
    """The numbers of the first screen."""
    cards = []
    fp = entry.get("fp")
    if fp:
        cards.append(
            Card(
                label="Full precision, top-1",
                value=f"{fp['top1']:.1f} %",
                detail=f"{span(fp['top1_low'], fp['top1_high'])} %, {fp['n']} images",
            )
        )
    plans = {row["plan"]: row for row in joint.to_dict("records")}
    for name, label in (("uniform-8", "8 bits everywhere"), ("uniform-4", "4 bits everywhere")):
        if name in plans:
            cards.append(_loss_card(label, plans[name]))
    if "recommended" in plans:
        row = plans["recommended"]
        label = f"Recommended, {row['avg_bits']:.1f} bits, {row['size_mb']:.2f} MB"
        cards.append(_loss_card(label, row))
    worst = worst_modules(sensitivity)
    if worst is not None:
        names, share, form = worst
        how = "estimated" if (sensitivity["status"] == "estimated").any() else "summed"
        cards.append(
            Card(
                label=f"{len(names)} worst modules",
                value=f"{share:.0f} %",
                detail=f"of the {how} divergence at {form.words}",
            )
        )
    return cards


def _loss_card(label: str, row: Mapping[str, Any]) -> Card:
    status, word = _status(row)
    value, low, high = loss_of(row)
    if known(row["drop"]):
        label = f"{label}: lost"
        shown, between = f"{number(value)} points", span(low, high)
    else:
        shown, between = f"{100 - value:.1f} % agree", f"{span(100 - high, 100 - low)} %"
    return Card(
        label=label,
        value=shown,
        detail=f"{between}; divergence {short(float(row['kl']))} nats",
        status=status,
        word=word,
    )


def _status(row: Mapping[str, Any]) -> tuple[Status, str]:
    _, low, high = loss_of(row)
    if low > _LITTLE:
        return Status.BAD, "breaks"
    return (Status.GOOD, "holds") if high <= _LITTLE else (Status.CAUTION, "uncertain")
