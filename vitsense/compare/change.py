"""How far two numbers with intervals lie apart, and which of many such changes are certain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from vitsense.sensitivity.interval import Interval

FALSE_SHARE = 0.05
"""Share of false ones that is accepted among the changes called distinguishable."""

_Z = 1.959963984540054  # standard normal quantile of 0.975


@dataclass(frozen=True, slots=True)
class Change:
    """From a first value to a second, with its 95 % interval."""

    value: float
    low: float
    high: float
    p: float
    """Smallest level at which the interval would exclude no change, 0 to 1."""


def difference(first: Interval, second: Interval) -> Change:
    """Second minus first, two independent estimates in the same unit.

    Each end combines the distances of the ends that matter for it, so intervals may be lopsided;
    of two Wilson intervals it is Newcombe's method 10.

    Source: Zou and Donner 2008, "Construction of confidence limits about effect measures: a general
    approach", equation 6; Newcombe 1998, "Interval estimation for the difference between
    independent proportions".
    """
    value = second.value - first.value
    below = math.hypot(second.value - second.low, first.high - first.value)
    above = math.hypot(second.high - second.value, first.value - first.low)
    return Change(value, value - below, value + above, _level(value, below, above))


def ratio(first: Interval, second: Interval) -> Change:
    """Second by first, of two positive independent estimates: `difference` of their logarithms.

    Returns:
        The ratio with its interval; (0, infinity) where one of the intervals is open.
    """
    logs = [_logarithm(first), _logarithm(second)]
    value = second.value / first.value
    if not all(math.isfinite(x) for log in logs for x in (log.low, log.high)):
        return Change(value, 0.0, math.inf, 1.0)
    found = difference(*logs)
    return Change(value, math.exp(found.low), math.exp(found.high), found.p)


def _logarithm(interval: Interval) -> Interval:
    low = math.log(interval.low) if interval.low > 0 else -math.inf
    high = math.log(interval.high) if interval.high < math.inf else math.inf
    return Interval(math.log(interval.value), low, high)


def _level(value: float, below: float, above: float) -> float:
    """Two-sided level of no change: the half of the interval that faces it, taken as normal."""
    facing = below if value > 0 else above
    if value == 0 or not math.isfinite(facing):
        return 1.0
    if facing == 0:
        return 0.0
    return 2.0 * NormalDist().cdf(-abs(value) / (facing / _Z))


def adjusted(levels: Sequence[float]) -> list[float]:
    """Adjusted levels: of changes up to level q, a share of at most q is expected to be false.

    It holds for independent levels and for positively dependent ones, as modules on the same images
    are (Benjamini and Yekutieli 2001).

    Source: Benjamini and Hochberg 1995, "Controlling the false discovery rate".
    """
    count = len(levels)
    order = sorted(range(count), key=lambda i: -levels[i])
    found, least = [0.0] * count, 1.0
    for rank, i in zip(range(count, 0, -1), order, strict=True):
        least = min(least, levels[i] * count / rank)
        found[i] = least
    return found
