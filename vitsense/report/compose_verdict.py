"""A model's part of the first screen: the verdict in a sentence, cards, and what else to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitsense.report.document import Card, Status
from vitsense.report.formatters import known, loss_of, number, short, span, visible
from vitsense.verdict import loss_text, verdict, worst_modules

if TYPE_CHECKING:
    import pandas as pd

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
    verb = {Status.GOOD: "holds", Status.BAD: "breaks"}.get(status, "may or may not hold")
    size = f"{chosen['avg_bits']:.1f} bits on average ({chosen['size_mb']:.2f} MB)"
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
        ends = f"{number(value)} points ({span(low, high)})"
        return f"loses {ends}" + ("" if short_form else ", which may be nothing")
    return loss_text(row)


def sentences_of(
    key: str, entry: Mapping[str, Any], sensitivity: pd.DataFrame, joint: pd.DataFrame
) -> list[str]:
    """The verdict without what the cards already say."""
    lines = [
        line.removeprefix(f"{key}: ")
        for line in verdict(key, entry.get("fp"), sensitivity, joint)[-2:]
    ]
    return [visible(line[:1].upper() + line[1:]) for line in lines]


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
        cards.append(
            Card(
                label=f"{len(names)} worst modules",
                value=f"{share:.0f} %",
                detail=f"of the summed divergence at {form.words}",
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
