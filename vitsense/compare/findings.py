"""What the numbers say about the models, in sentences that carry their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vitsense.compare.tables import Comparison, tail_ratio
from vitsense.sensitivity.interval import Interval
from vitsense.verdict import loss_text

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

RESAMPLES = 2000
"""Bootstrap resamples of modules."""

LEAST_MODULES = 8
"""Groups of fewer modules are not compared by resampling: their intervals would be too short."""

_LABELS = {"mhsa": "attention (MHSA)", "ffn": "feed-forward (FFN)", "q": "Q", "k": "K", "v": "V"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One sentence and the numbers in it."""

    key: str
    headline: str
    """What was found, in a few words."""
    sentence: str
    """The numbers behind it, with intervals."""
    value: float
    low: float
    high: float


def findings(
    comparison: Comparison, joint: pd.DataFrame, families: Mapping[str, str]
) -> tuple[Finding, ...]:
    """Everything that can be said about a run's models.

    Args:
        comparison: Their tables.
        joint: ``joint.csv``; rows ``only-GROUP@BITS`` are whole groups quantized together.
        families: Model -> ``vit`` or ``convnet``.
    """
    found: list[Finding] = []
    for model in families:
        rows = joint[joint["model"] == model].set_index("plan")
        found += _groups(model, rows, ("mhsa", "ffn"))
        found += _groups(model, rows, ("q", "k", "v"))
        found += _per_module(model, comparison)
    names = list(families)
    for other in names[1:]:
        found += _pair(names[0], other, comparison)
    return tuple(found)


def _widths(rows: pd.DataFrame, groups: Sequence[str]) -> list[int]:
    """Widths at which every group was measured, wide to narrow."""
    names = [str(plan) for plan in rows.index if str(plan).startswith(f"only-{groups[0]}@")]
    widths = [int(name.rpartition("@")[2]) for name in names]
    return sorted(
        (w for w in widths if all(f"only-{g}@{w}" in rows.index for g in groups)), reverse=True
    )


def _groups(model: str, rows: pd.DataFrame, groups: Sequence[str]) -> list[Finding]:
    """Groups quantized alone, each as a whole: which costs most, and whether that is certain."""
    found = []
    for width in _widths(rows, groups):
        picked = {g: rows.loc[f"only-{g}@{width}"] for g in groups}
        order = sorted(groups, key=lambda g: -float(picked[g]["kl"]))
        first, second = (_divergence(picked[g]) for g in order[:2])
        value, low, high = ratio_of_means(first, second)
        parts = "; ".join(
            f"{_LABELS[g]} {loss_text(picked[g])}, divergence {_span(picked[g])} nats"
            for g in order
        )
        headline = (
            f"{model} at {width} bits: {_LABELS[order[0]]} is the most sensitive"
            if low > 1
            else f"{model} at {width} bits: {_LABELS[order[0]]} and {_LABELS[order[1]]} are not "
            "distinguishable"
        )
        ratio = (
            f" The divergence of {_LABELS[order[0]]} is {value:.2f} times ({low:.2f} to {high:.2f})"
            f" that of {_LABELS[order[1]]}."
            if math.isfinite(high)
            else ""
        )
        found.append(
            Finding(
                key=f"{model}-{'-'.join(groups)}-{width}",
                headline=headline,
                sentence=(
                    f"Quantized as whole groups, {int(picked[order[0]]['n'])} images: {parts}."
                    f"{ratio}"
                ),
                value=value,
                low=low,
                high=high,
            )
        )
    return found


def _divergence(row: Mapping[str, Any]) -> Interval:
    return Interval(float(row["kl"]), float(row["kl_low"]), float(row["kl_high"]))


def ratio_of_means(a: Interval, b: Interval) -> tuple[float, float, float]:
    """Ratio of two mean divergences with its 95 % interval.

    Their intervals are symmetric in the logarithm, so the squares of their half lengths add up.
    That takes both for independent; on the same images they go up and down together, and the
    interval is wider than it would have to be.

    Source: delta method on the logarithm of a ratio (Casella and Berger 2002, 5.5.4).
    """
    if min(a.low, b.low) <= 0 or not (math.isfinite(a.high) and math.isfinite(b.high)):
        return (a.value / b.value if b.value > 0 else math.inf), 0.0, math.inf
    halves = (math.log(end.high / end.low) / 2 for end in (a, b))
    factor = math.exp(math.hypot(*halves))
    value = a.value / b.value
    return value, value / factor, value * factor


def _span(row: Mapping[str, Any]) -> str:
    return f"{float(row['kl']):.2g} ({float(row['kl_low']):.2g} to {float(row['kl_high']):.2g})"


def _per_module(model: str, comparison: Comparison) -> list[Finding]:
    """Mean divergence of an attention module over that of a feed-forward module."""
    part = comparison.per_module
    part = part[part["model"] == model]
    attention = part[part["group"] == "MHSA"]["kl"].dropna().to_numpy(dtype=float)
    ffn = part[part["group"] == "FFN"]["kl"].dropna().to_numpy(dtype=float)
    if min(len(attention), len(ffn)) < LEAST_MODULES or ffn.mean() <= 0:
        return []
    value, low, high = _bootstrap_ratio(attention, ffn, lambda x: float(np.mean(x)))
    words = _ratio_words(value, low, high)
    return [
        Finding(
            key=f"{model}-module-mhsa-ffn",
            headline=(
                f"{model} at {comparison.format.words}: a single attention module is "
                f"{_comparative(words)} a feed-forward layer"
            ),
            sentence=(
                f"One module at a time, its divergence is {value:.2f} times that of a feed-forward "
                f"layer ({low:.2f} to {high:.2f} over resampled modules; {len(attention)} and "
                f"{len(ffn)} modules)."
            ),
            value=value,
            low=low,
            high=high,
        )
    ]


def _ratio_words(value: float, low: float, high: float) -> str:
    if low <= 1.0 <= high:
        return "not distinguishable"
    return "more" if value > 1 else "less"


def _comparative(words: str) -> str:
    if words == "not distinguishable":
        return "not distinguishable from"
    return f"{words} sensitive than"


_PAIRS: tuple[tuple[str, str, str, str, Callable[[NDArray[np.float64]], float]], ...] = (
    (
        "kl",
        "spread",
        "sensitivity is {} uneven over its modules",
        "the 90th percentile of module sensitivity over the median",
        tail_ratio,
    ),
    (
        "activation_kurtosis",
        "kurtosis",
        "activations are {} heavy-tailed",
        "the median excess kurtosis of activations",
        lambda x: float(np.median(x)),
    ),
    (
        "weight_kurtosis",
        "weight-kurtosis",
        "weights are {} heavy-tailed",
        "the median excess kurtosis of weights",
        lambda x: float(np.median(x)),
    ),
    (
        "activation_channel_max_to_median",
        "outlier-channels",
        "activation channels stand out {}",
        "the median ratio of the largest to the typical activation channel",
        lambda x: float(np.median(x)),
    ),
)


def _pair(first: str, second: str, comparison: Comparison) -> list[Finding]:
    """Two models: spread of sensitivity, tails and outlier channels."""
    table = comparison.per_module
    found = []
    for column, key, name, words, statistic in _PAIRS:
        a, b = (
            table[table["model"] == model][column].dropna().to_numpy(dtype=float)
            for model in (first, second)
        )
        if min(len(a), len(b)) < LEAST_MODULES:
            continue
        left, right = statistic(a), statistic(b)
        if not (left > 0 and right > 0):
            continue
        value, low, high = _bootstrap_ratio(a, b, statistic)
        if not math.isfinite(high):
            continue
        where = f"At {comparison.format.words}, " if column == "kl" else ""
        found.append(
            Finding(
                key=f"{first}-{second}-{key}",
                headline=f"{first} against {second}: {_pair_words(name, value, low, high)}",
                sentence=(
                    f"{where}{words} is {left:.3g} against {right:.3g}, a ratio of {value:.2f} "
                    f"({low:.2f} to {high:.2f} over resampled modules)."
                ),
                value=value,
                low=low,
                high=high,
            )
        )
    return found


def _pair_words(name: str, value: float, low: float, high: float) -> str:
    words = _ratio_words(value, low, high)
    if words == "not distinguishable":
        return f"whether {name.format('more')} cannot be told"
    return name.format(words)


def _bootstrap_ratio(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], float],
) -> tuple[float, float, float]:
    """Ratio of a statistic of two samples with a 95 % percentile interval over their members.

    Source: Efron and Tibshirani 1993, chapter 13. The resampling is seeded.
    """
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(RESAMPLES):
        top = statistic(a[rng.integers(len(a), size=len(a))])
        bottom = statistic(b[rng.integers(len(b), size=len(b))])
        if bottom > 0 and math.isfinite(top):
            ratios.append(top / bottom)
    if len(ratios) < RESAMPLES // 2:
        return statistic(a) / statistic(b), 0.0, math.inf
    low, high = np.quantile(ratios, [0.025, 0.975])
    return statistic(a) / statistic(b), float(low), float(high)
