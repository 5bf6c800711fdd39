"""What the numbers say about the models, in sentences that carry their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitsense.compare.finding import Finding
from vitsense.compare.groups import additivity_finding, group_findings
from vitsense.compare.harder import HARDER, harder
from vitsense.compare.tables import Comparison
from vitsense.decimals import short, short_span

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 2000
"""Bootstrap resamples of modules."""

LEAST_MODULES = 8
"""Groups of fewer modules are not compared by resampling: their intervals would be too short."""


def findings(
    comparison: Comparison,
    groups: pd.DataFrame,
    additivity: pd.DataFrame,
    families: Mapping[str, str],
    joint: pd.DataFrame | None = None,
) -> tuple[Finding, ...]:
    """Everything that can be said about a run's models.

    Args:
        comparison: Their tables.
        groups: ``groups.csv``: whole groups quantized together, or spared.
        additivity: ``additivity.csv``: sums over modules against whole plans.
        families: Model -> ``vit`` or ``convnet``.
        joint: ``joint.csv``: whole plans; None leaves out which model is harder.

    Returns:
        Which model is harder comes first, then what is told, then what cannot be told.
    """
    found: list[Finding] = []
    names = list(families)
    for other in names[1:]:
        if joint is not None:
            found += harder(names[0], other, comparison, joint, additivity)
    for model in families:
        found += group_findings(model, groups)
        found += _per_module(model, comparison)
        found += additivity_finding(model, additivity)
    for other in names[1:]:
        found += _pair(names[0], other, comparison)
    return tuple(sorted(found, key=lambda f: not (f.told or f.key.endswith(HARDER))))


def _per_module(model: str, comparison: Comparison) -> list[Finding]:
    """Mean divergence of an attention module over that of a feed-forward module."""
    part = comparison.per_module
    part = part[part["model"] == model]
    attention = part[part["group"] == "MHSA"]["kl"].dropna().to_numpy(dtype=float)
    ffn = part[part["group"] == "FFN"]["kl"].dropna().to_numpy(dtype=float)
    if min(len(attention), len(ffn)) < LEAST_MODULES or ffn.mean() <= 0:
        return []
    value, low, high = _bootstrap_ratio(attention, ffn, _mean)
    words = _ratio_words(value, low, high)
    return [
        Finding(
            key=f"{model}-module-mhsa-ffn",
            headline=(
                f"{model} at {comparison.format.words}: a single attention module is "
                f"{_comparative(words)} a feed-forward layer"
            ),
            sentence=(
                f"One module at a time, its divergence is {short_span(value, low, high)} times "
                f"that of a feed-forward layer ({len(attention)} and {len(ffn)} modules, "
                "resampled)."
            ),
            value=value,
            low=low,
            high=high,
            told=not low <= 1.0 <= high,
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


Statistic = Callable[[NDArray[np.float64]], Any]
"""Of the last axis: of one sample a number, of many at once an array."""


def _median(values: NDArray[np.float64]) -> Any:
    return np.median(values, axis=-1)


def _mean(values: NDArray[np.float64]) -> Any:
    return np.mean(values, axis=-1)


def _unevenness(values: NDArray[np.float64]) -> Any:
    """90th percentile over the median, of positive values."""
    high, middle = np.quantile(values, [0.9, 0.5], axis=-1)
    return high / middle


_PAIRS: tuple[tuple[str, str, str, str, Statistic], ...] = (
    (
        "kl",
        "spread",
        "sensitivity is {} uneven over its modules",
        "the 90th percentile of module sensitivity over the median",
        _unevenness,
    ),
    (
        "activation_kurtosis",
        "kurtosis",
        "activations are {} heavy-tailed",
        "the median excess kurtosis of activations",
        _median,
    ),
    (
        "weight_kurtosis",
        "weight-kurtosis",
        "weights are {} heavy-tailed",
        "the median excess kurtosis of weights",
        _median,
    ),
    (
        "activation_channel_max_to_median",
        "outlier-channels",
        "activation channels stand out {}",
        "the median ratio of the largest to the typical activation channel",
        _median,
    ),
    (
        "activation_outliers_6",
        "outliers",
        "outliers of activations are {} frequent",
        "the mean share of activations beyond 6 standard deviations",
        _mean,
    ),
    (
        "activation_sdam_relative",
        "sdam",
        "channels of activations differ {} in magnitude",
        "the median SDAM of activations over their standard deviation",
        _median,
    ),
    (
        "activation_variance",
        "variance-spread",
        "the variance of activations is {} uneven over its modules",
        "the 90th percentile of the modules' activation variance over the median",
        _unevenness,
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
        if statistic is _unevenness:
            a, b = a[a > 0], b[b > 0]
        if min(len(a), len(b)) < LEAST_MODULES:
            continue
        left, right = float(statistic(a)), float(statistic(b))
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
                    f"{where}{words} is {short(left)} against {short(right)}, "
                    f"{short_span(value, low, high)} times (modules resampled)."
                ),
                value=value,
                low=low,
                high=high,
                told=not low <= 1.0 <= high,
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
    statistic: Statistic,
) -> tuple[float, float, float]:
    """Ratio of a statistic of two samples with a 95 % percentile interval over their members.

    Source: Efron and Tibshirani 1993, chapter 13. The resampling is seeded.
    """
    rng = np.random.default_rng(0)
    tops, bottoms = (statistic(x[rng.integers(len(x), size=(RESAMPLES, len(x)))]) for x in (a, b))
    value = float(statistic(a) / statistic(b))
    good = (bottoms > 0) & np.isfinite(tops)
    if good.sum() < RESAMPLES // 2:
        return value, 0.0, math.inf
    low, high = np.quantile(tops[good] / bottoms[good], [0.025, 0.975])
    return value, float(low), float(high)
