"""Intervals for the numbers measured on a sample of images. Standard library and scipy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

CONFIDENCE = 0.95
"""Coverage of every interval."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval, all in the same unit."""

    value: float
    low: float
    high: float

    @property
    def contains_zero(self) -> bool:
        """Whether the value is not distinguishable from zero."""
        return self.low <= 0.0 <= self.high

    def scaled(self, factor: float) -> Interval:
        """The interval in another unit (``factor`` must be positive)."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)


@lru_cache(maxsize=1024)
def t_quantile(degrees: int) -> float:
    """Upper 2.5 % point of Student's t with so many degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.5 + CONFIDENCE / 2, degrees))


_Z = 1.959963984540054  # standard normal quantile of 0.975


def paired_drop(
    n: float, lost: float, gained: float, *, added: float = 0.5, z: float = _Z
) -> Interval:
    """Difference of two proportions on the same images, -1 to 1.

    Args:
        n: Images.
        lost: Right in full precision, wrong quantized; of an estimate, not a whole number.
        gained: Wrong in full precision, right quantized.
        added: Images added to each of the four cells.
        z: Standard normal quantile of the upper end.

    Source: Agresti and Min 2005, "Simple improved confidence intervals for comparing matched
    proportions": Wald after adding 0.5 to each of the four cells. Deviation: the value given is
    the plain difference, and the interval is widened to contain it.
    """
    b, c, total = lost + added, gained + added, n + 4 * added
    centre = (b - c) / total
    error = math.sqrt(max(b + c - (b - c) ** 2 / total, 0.0)) / total
    value = (lost - gained) / n
    low, high = max(centre - z * error, -1.0), min(centre + z * error, 1.0)
    return Interval(value, min(low, value), max(high, value))


def proportion(successes: float, n: float, *, z: float = _Z) -> Interval:
    """A proportion, 0 to 1. Source: Wilson 1927."""
    p, z2 = successes / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(p, max(min(centre - half, p), 0.0), min(max(centre + half, p), 1.0))


def mean(n: int, total: float, squares: float) -> Interval:
    """A mean of non-negative values from their sum and sum of squares.

    Student's t on the logarithm of the mean: of values that are mostly small and sometimes large,
    as divergences are, a sample more often misses the large ones, so the interval reaches further
    up than down. It covers more than the plain interval at every sample size that was tried, and
    as much for symmetric values (tested). One value has no interval: it is (0, infinity).

    Source: delta method on the logarithm of a mean (Casella and Berger 2002, 5.5.4).
    """
    value = total / n
    if n < 2:
        return Interval(value, 0.0, math.inf)
    if value <= 0 or not math.isfinite(squares):
        return Interval(value, value, value)
    variance = max(squares - n * value * value, 0.0) / (n - 1)
    factor = math.exp(t_quantile(n - 1) * math.sqrt(variance / n) / value)
    return Interval(value, value / factor, value * factor)


def mean_difference(n: int, total: float, squares: float) -> Interval:
    """A mean of paired differences from their sum and sum of squares.

    Student's t; one value has no interval: it is minus to plus infinity.
    """
    value = total / n
    if n < 2:
        return Interval(value, -math.inf, math.inf)
    variance = max(squares - n * value * value, 0.0) / (n - 1)
    half = t_quantile(n - 1) * math.sqrt(variance / n)
    return Interval(value, value - half, value + half)


def ratio_db(
    n: int, signal: float, noise: float, signal2: float, noise2: float, cross: float
) -> Interval:
    """10·log10 of a ratio of sums over images, dB; infinite without noise.

    Args:
        n: Images.
        signal: Sum of the signal's energy.
        noise: Sum of the noise's energy.
        signal2: Sum of squares of the signal's energy.
        noise2: Sum of squares of the noise's energy.
        cross: Sum of products of both.

    Source: delta method on the logarithm of a ratio of means (Casella and Berger 2002, 5.5.4).
    """
    if noise <= 0:
        return Interval(math.inf, math.inf, math.inf)
    if signal <= 0:
        return Interval(-math.inf, -math.inf, -math.inf)
    value = 10 * math.log10(signal / noise)
    if n < 2:
        return Interval(value, -math.inf, math.inf)
    ms, mn = signal / n, noise / n
    relative = (
        (signal2 / n - ms * ms) / ms**2
        + (noise2 / n - mn * mn) / mn**2
        - 2 * (cross / n - ms * mn) / (ms * mn)
    )
    half = 10 / math.log(10) * t_quantile(n - 1) * math.sqrt(max(relative, 0.0) / (n - 1))
    return Interval(value, value - half, value + half)
