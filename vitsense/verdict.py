"""The run in a few sentences, from its tables. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitsense.formats import NumberFormat, format_of
from vitsense.schemas import RATED, STATISTIC_WORDS

if TYPE_CHECKING:
    import pandas as pd

EXPLAINED = 12
"""Modules whose causes are looked for, the most sensitive first."""


def verdict(
    model: str,
    fp: Mapping[str, Any] | None,
    sensitivity: pd.DataFrame,
    joint: pd.DataFrame,
) -> list[str]:
    """Sentences about one model; numbers with their 95 % intervals.

    Args:
        model: Its key.
        fp: Full-precision accuracy (top1, top1_low, top1_high, n), None without labels.
        sensitivity: ``sensitivity.csv`` of the model.
        joint: ``joint.csv`` of the model.
    """
    lines = []
    if fp is not None:
        lines.append(
            f"{model}: full precision {fp['top1']:.1f} % top-1 "
            f"({fp['top1_low']:.1f} to {fp['top1_high']:.1f}, {fp['n']} images)."
        )
    plans = joint.set_index("plan")
    for name, words in (("uniform-8", "8 bits everywhere"), ("uniform-4", "4 bits everywhere")):
        if name in plans.index:
            lines.append(f"{model}: {words} {loss_text(plans.loc[name])}.")
    if "recommended" in plans.index:
        chosen = plans.loc["recommended"]
        lines.append(f"{model}: the recommended plan {_of_plan(chosen)}.")
        lines += [
            f"{model}: with more bits, a plan {_of_plan(row)}."
            for name, row in plans.iterrows()
            if str(name).startswith("pareto-") and row["avg_bits"] > chosen["avg_bits"] + 0.3
        ]
    return [*lines, *(f"{model}: {line}" for line in worst_text(sensitivity))]


def worst_text(sensitivity: pd.DataFrame) -> list[str]:
    """The modules that cost most, in a sentence; none where nothing was rated."""
    worst = worst_modules(sensitivity)
    if worst is None:
        return []
    names, share, form = worst
    how = "estimated" if (sensitivity["status"] == "estimated").any() else "summed"
    return [
        f"{len(names)} modules cause {share:.0f} % of the {how} divergence at {form.words}: "
        f"{', '.join(names)}."
    ]


def _of_plan(row: Mapping[str, Any]) -> str:
    return f"({row['avg_bits']:.2f} bits on average, {row['size_mb']:.2f} MB) {loss_text(row)}"


def loss_text(row: Mapping[str, Any]) -> str:
    """``loses 1.2 points (0.4 to 2.0)``, or agreement where there are no labels."""
    if row["drop"] is not None and not math.isnan(float(row["drop"])):
        value, low, high = (float(row[k]) for k in ("drop", "drop_low", "drop_high"))
        if low <= 0 <= high:
            return f"has a drop of {_points(value, low, high)}, not distinguishable from zero"
        if value < 0:
            return f"gains {_points(-value, -high, -low)}"
        return f"loses {_points(value, low, high)}"
    return (
        f"keeps the class of {float(row['agreement']):.1f} % of the images "
        f"({float(row['agreement_low']):.1f} to {float(row['agreement_high']):.1f})"
    )


def _points(value: float, low: float, high: float) -> str:
    text = f"{value + 0.0:.1f} points ({low + 0.0:.1f} to {high + 0.0:.1f})"
    return text.replace("-0.0", "0.0").replace("-", "\u2212")


def decisive_format(sensitivity: pd.DataFrame) -> NumberFormat | None:
    """Where modules are compared: at 4 bits if measured, else in the format nearest to it.

    Integers go before other formats of as many bits.
    """
    forms = [format_of(name) for name in sorted(set(sensitivity["format"]))]
    if not forms:
        return None
    return min(forms, key=lambda f: (abs(f.effective_bits - 4), not f.is_integer, f.effective_bits))


def worst_modules(
    sensitivity: pd.DataFrame, most: int = 5
) -> tuple[list[str], float, NumberFormat] | None:
    """The modules with the largest divergence in the decisive format, and their share of all."""
    good = sensitivity[sensitivity["status"].isin(RATED) & (sensitivity["part"] == "both")]
    form = decisive_format(good)
    if form is None:
        return None
    kl = good[good["format"] == form.name].set_index("module")["kl"].astype(float)
    if kl.sum() <= 0:
        return None
    top = kl.sort_values(ascending=False, kind="stable")[:most]
    return list(top.index), 100 * float(top.sum() / kl.sum()), form


def best_predictor(model: str, predictors: pd.DataFrame) -> str | None:
    """What ranked the modules most like the measured divergence did; None if nothing was compared.

    Args:
        model: Its key.
        predictors: ``predictors.csv`` of the model.
    """
    compared = predictors[(predictors["scope"] == "all") & (predictors["target"] == "kl")]
    form = decisive_format(compared)
    if form is None:
        return None
    rows = compared[compared["format"] == form.name]
    order = rows["spearman"].abs().sort_values(ascending=False, kind="stable").index
    first, *others = rows.loc[order].to_dict("records")
    cheap = next((row for row in others if not _estimates(row)), None)
    line = f"{model}: the sensitivity at {form.words} is ranked best by {_correlation(first)}"
    if _estimates(first) and cheap is not None:
        line += f"; of the statistics of tensors, by {_correlation(cheap)}"
    return f"{line}."


def _estimates(row: Mapping[str, Any]) -> bool:
    return str(row["statistic"]) in ("fisher_kl", "hessian_kl", "hessian_trace")


def _correlation(row: Mapping[str, Any]) -> str:
    name = STATISTIC_WORDS.get(str(row["statistic"]), str(row["statistic"]))
    numbers = (f"{float(row[k]):.2f}".replace("-", "\u2212") for k in ("spearman", "low", "high"))
    value, low, high = numbers
    return f"the {name} (rank correlation {value}, {low} to {high}, {int(row['n'])} modules)"
