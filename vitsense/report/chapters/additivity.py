"""Whether single modules add up: their sum against whole plans that were measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vitsense.compare.best_known import better_formats
from vitsense.compare.groups import additivity_finding
from vitsense.compare.plan_names import plan_name
from vitsense.formats import format_of
from vitsense.report.formatters import number, short, short_span, span
from vitsense.report.section import Finding, Section, Table

if TYPE_CHECKING:
    from vitsense.report.source import Source


def additivity_chapter(source: Source, model: str) -> Section | None:
    """One table of all measured plans; None where there are none."""
    frame = source.table("additivity", model)
    if frame.empty:
        return None
    rows = []
    for row in frame.to_dict("records"):
        ratio = sums = loss_sum = "\u2013"
        if math.isfinite(row["sum_kl"]):
            sums = short_span(row["sum_kl"], row["sum_kl_low"], row["sum_kl_high"])
        if math.isfinite(row["sum_loss"]):
            loss_sum = number(row["sum_loss"])
        if math.isfinite(row["ratio"]):
            high = "any" if math.isinf(row["ratio_high"]) else number(row["ratio_high"], 2)
            ratio = f"{number(row['ratio'], 2)} ({number(row['ratio_low'], 2)} to {high})"
        rows.append(
            (
                plan_name(row["plan"]),
                number(row["avg_bits"], 2),
                sums,
                short_span(row["kl"], row["kl_low"], row["kl_high"]),
                ratio,
                loss_sum,
                f"{number(row['loss'])} ({span(row['loss_low'], row['loss_high'])})",
            )
        )
    loss = "drop" if source.labelled(model) else "loss of agreement"
    found = [
        Finding(headline=f.headline, numbers=f.sentence) for f in additivity_finding(model, frame)
    ]
    table = Table(
        title="The sum over single modules against the plan as a whole",
        head=(
            "Plan",
            "Average bits",
            "Sum of divergences (nats)",
            "Measured divergence (nats)",
            "Measured over sum",
            f"Sum of {'drops' if loss == 'drop' else 'losses'} (points)",
            f"Measured {loss} (points)",
        ),
        rows=tuple(rows),
        reading=(
            "Above 1, modules make each other worse: the sum under-estimates the plan. The "
            "interval of a sum lets the errors of all its modules go the same way, and that of the "
            "ratio takes the farthest ends: it is wider than 95 %." + _other_sums(source, model)
        ),
    )
    return Section(key="additivity", title="Do single modules add up?", blocks=(*found, table))


def _other_sums(source: Source, model: str) -> str:
    """That the table of modules adds up to other sums, where it knows cells better than the plans.

    Args:
        source: The run.
        model: Key of a model.
    """
    known = source.table("sensitivity", model)
    better = better_formats(source.run.table("sensitivity"), known)
    count = sum(map(len, better.values()))
    if not count:
        return ""
    changed = {words for forms in better.values() for words in forms}
    both = known[known["part"] == "both"]
    sums = [
        f"{words} everywhere {short(float(rows['kl'].sum()))} nats"
        for form, rows in both.groupby("format", sort=False)
        if (words := format_of(str(form)).words) in changed and rows["kl"].notna().all()
    ]
    return (
        " Sums are of the numbers by which plans were chosen; "
        f"{count} of them {'was' if count == 1 else 'were'} measured on more images since, and the "
        f"table of modules shows those{': ' if sums else ''}{', '.join(sums)}."
    )
