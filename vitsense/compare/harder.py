"""Which model is harder to quantize, and where: from plans and modules, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitsense.compare.change import difference, ratio
from vitsense.compare.finding import Finding
from vitsense.compare.groups import group_label
from vitsense.compare.tables import Comparison
from vitsense.decimals import difference as difference_words
from vitsense.decimals import number, short_span, span
from vitsense.sensitivity.interval import Interval

if TYPE_CHECKING:
    import pandas as pd


def harder(first: str, second: str, comparison: Comparison, joint: pd.DataFrame) -> list[Finding]:
    """Everything quantized alike: which of two models loses more, and whose classes move more.

    Args:
        first: Key of a model.
        second: Key of another model of the run.
        comparison: Modules of both.
        joint: ``joint.csv``: whole plans.
    """
    form = comparison.format
    plan = f"uniform-{form.label}"
    rows = {row["model"]: row for row in joint[joint["plan"] == plan].to_dict("records")}
    if not {first, second} <= set(rows):
        return []
    a, b = rows[first], rows[second]
    kls = [_interval(row, "kl") for row in (a, b)]
    if min(kl.value for kl in kls) <= 0 or not all(math.isfinite(kl.value) for kl in kls):
        return []
    times = ratio(kls[1], kls[0])
    words = {
        first: f"{short_span(kls[0].value, kls[0].low, kls[0].high)} nats",
        second: f"{short_span(kls[1].value, kls[1].low, kls[1].high)} nats",
    }
    apart, head = _of_losses(first, second, a, b, form.words)
    where = f"{_where(first, comparison, kls[0].value)} {_where(second, comparison, kls[1].value)}"
    return [
        Finding(
            key=f"{first}-{second}-harder",
            headline=head,
            sentence=(
                f"{apart}divergence {words[first]} for {first} and {words[second]} for {second}, "
                f"a ratio of {short_span(times.value, times.low, times.high)}. {where}"
            ),
            value=times.value,
            low=times.low,
            high=times.high,
        )
    ]


def _interval(row: Mapping[str, Any], name: str) -> Interval:
    return Interval(*(float(row[f"{name}{end}"]) for end in ("", "_low", "_high")))


def _of_losses(
    first: str, second: str, a: Mapping[str, Any], b: Mapping[str, Any], words: str
) -> tuple[str, str]:
    """The losses of both with their difference, and the headline it allows.

    The models see the same images; their losses are taken as independent, which makes the interval
    rather too wide.
    """
    name, what = "drop", "the drop is"
    if not all(math.isfinite(float(row["drop"])) for row in (a, b)):
        name, what = "agreement", "agreement is"
    losses = [_interval(row, name) for row in (a, b)]
    if name == "agreement":
        losses = [Interval(100 - x.value, 100 - x.high, 100 - x.low) for x in losses]
        what = "the loss of agreement is"
    change = difference(losses[1], losses[0])
    said = " and ".join(
        f"{number(x.value)} points ({span(x.low, x.high)}) for {key}"
        for x, key in zip(losses, (first, second), strict=True)
    )
    head = (
        f"Whether {first} or {second} is harder to quantize to {words} cannot be told by accuracy"
    )
    if change.low > 0 or change.high < 0:
        harder_one, other = (first, second) if change.value > 0 else (second, first)
        head = f"{harder_one} is harder to quantize to {words} than {other}"
    return (
        f"Everything at {words}: {what} {said}, a difference of "
        f"{difference_words(change.value, change.low, change.high)}; ",
        head,
    )


def _together(total: float, whole: float) -> str:
    """How errors of single modules add up where all are quantized."""
    return f" Quantized together, its modules diverge {number(whole / total)} times that sum."


def _where(model: str, comparison: Comparison, whole: float) -> str:
    """The role and the half of the depth that cause most of a model's divergence.

    Args:
        model: Its key.
        comparison: Modules of all models.
        whole: Divergence of the model with all modules quantized, nats.
    """
    part = comparison.per_module
    part = part[part["model"] == model]
    kl = part["kl"].fillna(0.0).astype(float)
    total = float(kl.sum())
    if total <= 0:
        return ""
    roles = kl.groupby(part["role"]).sum().sort_values(ascending=False, kind="stable")
    late = float(kl[part["depth"] > 0.5].sum()) / total
    half = "second" if late > 0.5 else "first"
    return (
        f"In {model}, {group_label(str(roles.index[0]))} modules cause "
        f"{100 * float(roles.iloc[0]) / total:.0f} % of the summed divergence, and the {half} half "
        f"of the depth {100 * max(late, 1 - late):.0f} %.{_together(total, whole)}"
    )
