"""What groups measured as a whole say: which costs most alone, and which gives most back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitsense.compare.change import ratio
from vitsense.compare.finding import Finding
from vitsense.compare.plan_names import plan_name
from vitsense.decimals import difference, short_span
from vitsense.formats import format_of
from vitsense.sensitivity.interval import Interval
from vitsense.settings import Direction, Part
from vitsense.verdict import loss_text

if TYPE_CHECKING:
    import pandas as pd

_LABELS = {"mhsa": "attention (MHSA)", "ffn": "feed-forward (FFN)", "q": "Q", "k": "K", "v": "V"}

PAPER_GROUPS = (("mhsa", "ffn"), ("q", "k", "v"))
"""The groups that the paper compares with each other."""


ADDITIVITY = "-additivity"
"""How the key of a finding about sums over modules ends."""


def group_label(name: str) -> str:
    """A group's name as readers know it; roles other than the paper's in plain words."""
    return _LABELS.get(name, name.replace("_", " ") if name.islower() and "." not in name else name)


def role_label(name: str) -> str:
    """A role's name where there is little room: ``FFN``, ``Q``, ``qk product``."""
    return name.upper() if name in _LABELS else group_label(name)


def shown_part(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of weights and activations together where that was measured, else of the part."""
    parts = list(dict.fromkeys(frame["part"]))
    wanted = Part.BOTH.value if Part.BOTH.value in parts else (parts or [""])[0]
    return frame[frame["part"] == wanted]


def group_findings(model: str, groups: pd.DataFrame) -> list[Finding]:
    """The paper's comparisons, in both directions and every format in which they were measured.

    Args:
        model: Its key.
        groups: ``groups.csv``.
    """
    good = groups[(groups["model"] == model) & (groups["status"] == "measured")]
    if good.empty:
        return []
    good = shown_part(good)
    found = []
    for names in PAPER_GROUPS:
        for form, rows in _compared(good, names, Direction.ALONE):
            found.append(_alone(model, form, rows))
        for form, rows in _compared(good, names, Direction.SPARED):
            whole = good[(good["by"] == "model") & (good["format"] == form)]
            found.append(_spared(model, form, rows, whole.to_dict("records")[0]))
    return found


_Rows = Mapping[str, Mapping[str, Any]]


def _compared(
    good: pd.DataFrame, names: Sequence[str], direction: Direction
) -> Iterator[tuple[str, _Rows]]:
    """Formats in which all groups were measured, with their rows."""
    some = good[(good["by"] == "role") & (good["direction"] == direction.value)]
    for form in dict.fromkeys(some["format"]):
        rows = {row["group"]: row for row in some[some["format"] == form].to_dict("records")}
        if all(name in rows for name in names):
            yield form, {name: rows[name] for name in names}


def _alone(model: str, form: str, rows: _Rows) -> Finding:
    """Groups quantized alone, each as a whole: which costs most, and whether that is certain."""
    order = sorted(rows, key=lambda name: -float(rows[name]["kl"]))
    first, second = (_divergence(rows[name]) for name in order[:2])
    value, low, high = ratio_of_means(first, second)
    parts = "; ".join(
        f"{group_label(name)} {loss_text(rows[name])}, divergence {_span(rows[name], 'kl')} nats"
        for name in order
    )
    times = (
        f" The divergence of {group_label(order[0])} is {short_span(value, low, high)} times that "
        f"of {group_label(order[1])}."
        if math.isfinite(high)
        else ""
    )
    images = int(rows[order[0]]["n"])
    return Finding(
        key=f"{model}-{'-'.join(rows)}-{format_of(form).label}",
        headline=_headline(model, form, order, low > 1, "is the most sensitive"),
        sentence=f"Quantized as whole groups, {images} images: {parts}.{times}",
        value=value,
        low=low,
        high=high,
        told=low > 1,
    )


def _divergence(row: Mapping[str, Any]) -> Interval:
    return Interval(float(row["kl"]), float(row["kl_low"]), float(row["kl_high"]))


def ratio_of_means(a: Interval, b: Interval) -> tuple[float, float, float]:
    """Ratio of two mean divergences with its 95 % interval.

    It takes both for independent; on the same images they go up and down together, and the
    interval is wider than it would have to be (see `vitsense.compare.change.ratio`).
    """
    if b.value <= 0 or a.value <= 0:
        return (a.value / b.value if b.value > 0 else math.inf), 0.0, math.inf
    found = ratio(b, a)
    return found.value, found.low, found.high


def _spared(model: str, form: str, rows: _Rows, whole: Mapping[str, Any]) -> Finding:
    """Everything quantized but one group: which gives back most, and whether that is certain."""
    order = sorted(rows, key=lambda name: -float(rows[name]["recovery_kl"]))
    first, second = rows[order[0]], rows[order[1]]
    certain = float(first["recovery_kl_low"]) > float(second["recovery_kl_high"])
    parts = "; ".join(
        f"sparing {group_label(name)} ({int(rows[name]['params']):,} weights) gives back "
        f"{_recovered(rows[name])} points, divergence "
        f"{_span(rows[name], 'recovery_kl')} nats"
        for name in order
    )
    gap = float(first["recovery_kl"]) - float(second["recovery_kl"])
    return Finding(
        key=f"{model}-spared-{'-'.join(rows)}-{format_of(form).label}",
        headline=_headline(model, form, order, certain, "gives back the most when it is spared"),
        sentence=f"Everything quantized {loss_text(whole)}, {int(first['n'])} images; {parts}.",
        value=gap,
        low=float(first["recovery_kl_low"]) - float(second["recovery_kl_high"]),
        high=float(first["recovery_kl_high"]) - float(second["recovery_kl_low"]),
        told=certain,
    )


def _recovered(row: Mapping[str, Any]) -> str:
    return difference(*(float(row[f"recovery{end}"]) for end in ("", "_low", "_high")))


def _place(name: str) -> int:
    """Where the paper has a group among those it compares."""
    return next(names.index(name) for names in PAPER_GROUPS if name in names)


def _headline(model: str, form: str, order: Sequence[str], certain: bool, what: str) -> str:
    first, second = (group_label(name) for name in order[:2])
    where = f"{model} at {format_of(form).words}"
    if certain and len(order) == 2:
        what = what.replace("the most sensitive", f"more sensitive than {second}")
        return f"{where}: {first} {what.replace('the most when', f'more than {second} when')}"
    if certain:
        among = [group_label(name) for name in sorted(order, key=_place)]
        of = f"{', '.join(among[:-1])} and {among[-1]}"
        return f"{where}: of {of}, {first} {what}"
    direction = "" if what.startswith("is") else " when they are spared"
    return f"{where}: {first} and {second} are not distinguishable{direction}"


def _span(row: Mapping[str, Any], column: str) -> str:
    return short_span(*(float(row[f"{column}{end}"]) for end in ("", "_low", "_high")))


def _ends(row: Mapping[str, Any], column: str, spec: str) -> str:
    return f"{_number(row[f'{column}_low'], spec)} to {_number(row[f'{column}_high'], spec)}"


def _number(value: Any, spec: str) -> str:
    return f"{float(value) + 0.0:{spec}}".replace("-", "\u2212")


def additivity_finding(model: str, additivity: pd.DataFrame) -> list[Finding]:
    """Whether sums over single modules over- or under-estimate whole plans.

    Args:
        model: Its key.
        additivity: ``additivity.csv``.
    """
    rows = additivity[(additivity["model"] == model)].dropna(subset=["ratio"])
    rows = rows[rows["ratio"].map(math.isfinite)]
    if len(rows) < 2:
        return []
    under = int((rows["ratio_low"] > 1).sum())
    over = int((rows["ratio_high"] < 1).sum())
    if under and not over:
        words = "under-estimates what whole plans do"
    elif over and not under:
        words = "over-estimates what whole plans do"
    elif under and over:
        words = "under-estimates some whole plans and over-estimates others"
    else:
        words = "agrees with whole plans within the error"
    least, most = rows.loc[rows["ratio"].idxmin()], rows.loc[rows["ratio"].idxmax()]
    middle = float(rows["ratio"].median())
    return [
        Finding(
            key=f"{model}{ADDITIVITY}",
            headline=f"{model}: adding up single modules {words}",
            sentence=(
                f"Over {len(rows)} measured plans, the divergence of the whole is {middle:.2f} "
                f"times the sum of its modules' at the median, from {_ratio(least)} for "
                f"{plan_name(str(least['plan']))} to {_ratio(most)} for "
                f"{plan_name(str(most['plan']))}. {_certain(under, over)}"
            ),
            value=middle,
            low=float(least["ratio"]),
            high=float(most["ratio"]),
        )
    ]


def _certain(above: int, below: int) -> str:
    """How many ratios are certain to be above, or below, 1."""
    if not above and not below:
        return "No plan's whole interval is above 1 or below 1."
    counts = [(above, "above"), (below, "below")]
    said = [f"{side} 1 for {count}" for count, side in counts if count]
    return f"With its whole interval, the ratio is {' and '.join(said)} of them."


def _ratio(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.2f} ({_ends(row, 'ratio', '.2f')})"
