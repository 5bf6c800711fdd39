"""What the numbers say about the models, in sentences that carry their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vitsense.compare.tables import Comparison, tail_ratio
from vitsense.verdict import loss_text

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

RESAMPLES = 2000
"""Bootstrap resamples of modules."""

_LABELS = {"mhsa": "attention (MHSA)", "ffn": "feed-forward (FFN)", "q": "Q", "k": "K", "v": "V"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One sentence and the numbers in it."""

    key: str
    sentence: str
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
        first, second = picked[order[0]], picked[order[1]]
        certain = float(first["kl_low"]) > float(second["kl_high"])
        parts = "; ".join(
            f"{_LABELS[g]} alone {loss_text(picked[g])}, divergence {_span(picked[g])} nats"
            for g in order
        )
        verdict = (
            f"{_LABELS[order[0]]} costs most (the intervals of the divergence do not overlap)"
            if certain
            else f"{_LABELS[order[0]]} and {_LABELS[order[1]]} are not distinguishable"
        )
        ratio = float(first["kl"]) / max(float(second["kl"]), 1e-12)
        found.append(
            Finding(
                key=f"{model}-{'-'.join(groups)}-{width}",
                sentence=f"{model} at {width} bits, {int(first['n'])} images: {verdict}. {parts}.",
                value=ratio,
                low=float(first["kl_low"]) / max(float(second["kl_high"]), 1e-12),
                high=float(first["kl_high"]) / max(float(second["kl_low"]), 1e-12),
            )
        )
    return found


def _span(row: Mapping[str, Any]) -> str:
    return f"{float(row['kl']):.2g} ({float(row['kl_low']):.2g} to {float(row['kl_high']):.2g})"


def _per_module(model: str, comparison: Comparison) -> list[Finding]:
    """Mean divergence of an attention module over that of a feed-forward module."""
    part = comparison.per_module
    part = part[part["model"] == model]
    attention = part[part["group"] == "MHSA"]["kl"].dropna().to_numpy(dtype=float)
    ffn = part[part["group"] == "FFN"]["kl"].dropna().to_numpy(dtype=float)
    if len(attention) < 3 or len(ffn) < 3 or ffn.mean() <= 0:
        return []
    value, low, high = _bootstrap_ratio(attention, ffn, lambda x: float(np.mean(x)))
    words = _ratio_words(value, low, high)
    return [
        Finding(
            key=f"{model}-module-mhsa-ffn",
            sentence=(
                f"{model} at {comparison.bits} bits, one module at a time: an attention module "
                f"costs {value:.2f} times the divergence of a feed-forward layer "
                f"({low:.2f} to {high:.2f} over resampled modules; {len(attention)} and {len(ffn)} "
                f"modules): {words}."
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


_PAIRS: tuple[tuple[str, str, str, Callable[[NDArray[np.float64]], float]], ...] = (
    ("kl", "spread", "the 90th percentile of module sensitivity over the median", tail_ratio),
    (
        "activation_kurtosis",
        "kurtosis",
        "the median excess kurtosis of activations",
        lambda x: float(np.median(x)),
    ),
    (
        "weight_kurtosis",
        "weight-kurtosis",
        "the median excess kurtosis of weights",
        lambda x: float(np.median(x)),
    ),
    (
        "activation_channel_max_to_median",
        "outlier-channels",
        "the median ratio of the largest to the typical activation channel",
        lambda x: float(np.median(x)),
    ),
)


def _pair(first: str, second: str, comparison: Comparison) -> list[Finding]:
    """Two models: spread of sensitivity, tails and outlier channels."""
    table = comparison.per_module
    found = []
    for column, key, words, statistic in _PAIRS:
        a, b = (
            table[table["model"] == name][column].dropna().to_numpy(dtype=float)
            for name in (first, second)
        )
        if len(a) < 3 or len(b) < 3:
            continue
        left, right = statistic(a), statistic(b)
        if not (left > 0 and right > 0):
            continue
        value, low, high = _bootstrap_ratio(a, b, statistic)
        if not math.isfinite(high):
            continue
        where = f"at {comparison.bits} bits " if column == "kl" else ""
        found.append(
            Finding(
                key=f"{first}-{second}-{key}",
                sentence=(
                    f"{first} against {second}: {where}{words} is {left:.3g} against {right:.3g}, "
                    f"a ratio of {value:.2f} ({low:.2f} to {high:.2f} over resampled modules): "
                    f"{_ratio_words(value, low, high)}."
                ),
                value=value,
                low=low,
                high=high,
            )
        )
    return found


def _bootstrap_ratio(
    a: NDArray[np.float64], b: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], float]
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
