"""Intervals that stay honest when a cell is looked at again and again and stopped at will.

A cell is looked at after fixed rounds only, so alpha is divided over them (Bonferroni): whatever
rule stops it, the interval at that round covers. Strata are put together by the method of variance
estimates recovery (Zou and Donner 2008, "Construction of confidence limits about effect measures: a
general approach"): distances of a stratum's limits from its estimate are added as the root of the
sum of squares. The limits of a share are Jeffreys' (Brown, Cai and DasGupta 2001, "Interval
estimation for a binomial proportion"); those of a mean divergence are Student's t on the logarithm,
because divergences are skewed and have no upper bound. Neither is exact at a few images of a
stratum: tests/unit/test_sequential.py shows by simulation that they cover.

Both meet in one fact: an image whose divergence is below `nats_to_flip` keeps its class. So the
share of images of a stratum that change is at most (upper end of the mean divergence) / (least nats
to flip), by Markov's inequality, which is far below what counting a few images could show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import beta, norm
from scipy.stats import t as student

from vitsense.sensitivity.result import Outcome
from vitsense.sensitivity.strata import Strata

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_COUNTS, _MEANS = 0.8, 0.2
"""How alpha is divided: over counts, and over mean divergences, which bound what counts cannot."""

UPWARDS = 1.5
"""How much longer the upper end of a mean divergence is, on the logarithm.

A few images of a skewed quantity rather miss its tail than meet it. With 1, intervals missed 10 to
12 % of the means of resampled divergences of the shipped models, nearly all above; with 1.5, 4 %.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Sums over the images seen of every cell and stratum."""

    sums: dict[str, Array]
    """Field of `Outcome` -> `(cells, strata)`."""
    sizes: Array
    """Images in each stratum, seen or not, `(strata,)`."""
    floors: Array
    """Least nats that can change the class of an image of the stratum, `(strata,)`."""
    wrong: Array | None = None
    """Images of each stratum that full precision gets wrong, `(strata,)`; None if not known."""

    @classmethod
    def of(cls, outcomes: Sequence[Sequence[Outcome]], strata: Strata) -> Sample:
        """Gather outcomes by cell and stratum."""
        table = np.array([[o.to_list() for o in row] for row in outcomes], dtype=np.float64)
        names = [f.name for f in fields(Outcome)]
        return cls(
            {name: table[..., i] for i, name in enumerate(names)},
            np.asarray(strata.sizes, dtype=np.float64),
            np.asarray(strata.floors, dtype=np.float64),
            None if strata.wrong is None else np.asarray(strata.wrong, dtype=np.float64),
        )

    def __getitem__(self, name: str) -> Array:
        if name == "changed":
            return np.asarray(self.sums["n"] - self.sums["agree"])
        return self.sums[name]

    @property
    def weights(self) -> Array:
        """Share of each stratum, `(strata,)`."""
        return np.asarray(self.sizes / self.sizes.sum())

    def mean(self, name: str) -> Array:
        """Weighted mean over all images of a summed field, `(cells,)`."""
        return np.asarray((self.weights * self[name] / self["n"]).sum(axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class Estimates:
    """Values with the ends of their intervals, `(cells,)` each."""

    value: Array
    low: Array
    high: Array


def divergence(sample: Sample, looks: int, confidence: float) -> Estimates:
    """Mean divergence over all images, nats.

    Source: variance of double sampling for stratification (Cochran 1977, 12.2); degrees of freedom
    of Satterthwaite 1946; the interval is symmetric on the logarithm (delta method).

    Args:
        sample: Sums of `kl` and `kl2`.
        looks: How often the same cell is looked at, at most.
        confidence: Coverage over all looks together.
    """
    n, weights = sample["n"], sample.weights
    means, variances = _moments(sample)
    value = (weights * means).sum(axis=1)
    between = (weights * (means - value[:, None]) ** 2).sum(axis=1)
    terms = weights**2 * variances / n
    seen = (terms * (1 - n / sample.sizes)).sum(axis=1)
    drawn = ((weights * variances).sum(axis=1) + between) / sample.sizes.sum()
    error = np.sqrt(seen + drawn)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = terms.sum(axis=1) ** 2 / (terms**2 / np.maximum(n - 1, 1)).sum(axis=1)
    freedom = np.nan_to_num(freedom, nan=1.0).clip(min=1.0)
    quantile = student.ppf(1 - (1 - confidence) / looks / 2, freedom)
    return _on_the_logarithm(value, quantile * error)


def drop(sample: Sample, looks: int, confidence: float) -> Estimates:
    """Share of labelled images lost minus share gained, -1 to 1."""
    return _difference(sample, ("lost", "gained"), "labelled", looks, confidence)


def flips(sample: Sample, looks: int, confidence: float) -> Estimates:
    """Share of images that change their class, 0 to 1."""
    return _difference(sample, ("changed",), "n", looks, confidence)


def drop_to_come(sample: Sample, looks: int, confidence: float) -> Estimates:
    """The drop on the evaluation images themselves, of which some were not looked at yet.

    Narrower than `drop`, which is about images like these: nothing of it is left when all are seen.
    """
    return _difference(sample, ("lost", "gained"), "labelled", looks, confidence, finite=True)


def flips_to_come(sample: Sample, looks: int, confidence: float) -> Estimates:
    """Share of the evaluation images themselves that change their class; see `drop_to_come`."""
    return _difference(sample, ("changed",), "n", looks, confidence, finite=True)


def sqnr_db(sample: Sample, looks: int, confidence: float) -> Estimates:
    """10 log10 of the ratio of mean signal to mean noise energy, dB.

    Source: `vitsense.sensitivity.interval.ratio_db`, with the variances of a stratified sample.
    """
    n, weights = sample["n"], sample.weights
    signal, noise = sample.mean("signal"), sample.mean("noise")
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = 1 / signal[:, None], 1 / noise[:, None]
        # the linearized log ratio of an image: signal / mean - noise / mean
        squares = a * a * sample["signal2"] + b * b * sample["noise2"] - 2 * a * b * sample["cross"]
        centre = (a * sample["signal"] - b * sample["noise"]) / n
        spread = np.maximum(squares / n - centre**2, 0) * n / np.maximum(n - 1, 1)
        error = np.sqrt((weights**2 * spread / n).sum(axis=1))
        value = 10 * np.log10(signal / noise)
    freedom = np.maximum(n.sum(axis=1) - n.shape[1], 1)
    quantile = student.ppf(1 - (1 - confidence) / looks / 2, freedom)
    half = np.where(np.isfinite(value), 10 / np.log(10) * quantile * error, 0.0)
    return Estimates(value, value - half, value + half)


def _difference(
    sample: Sample,
    counts: tuple[str, ...],
    of: str,
    looks: int,
    confidence: float,
    *,
    finite: bool = False,
) -> Estimates:
    """Weighted share of the first count, less that of the second if there is one.

    Source: Zou and Donner 2008 with weights; shares of one sample are correlated, as in Newcombe
    1998 for paired proportions. `finite` shortens a stratum's distances by the root of the share
    that was not looked at (finite population correction; Cochran 1977, 2.6).
    """
    n, weights = sample[of], sample.weights
    alpha = (1 - confidence) / looks
    most = most_that_flip(sample, looks, confidence)
    can = _what_can(sample, alpha * _COUNTS, finite=finite)
    ends = [
        share_limits(sample[name], n, alpha * _COUNTS, np.minimum(most, can.get(name, 1.0)))
        for name in counts
    ]
    ends.append(Estimates(*np.zeros((3, *n.shape))))  # without a second count nothing is taken off
    plus, minus = ends[0], ends[1]
    together = 2 * np.sqrt(_odds(plus.value, n) * _odds(minus.value, n))

    def squares(a: Array, b: Array) -> Array:
        return np.asarray(a**2 + b**2 + (together * a * b if len(counts) > 1 else 0))

    down = squares(plus.value - plus.low, minus.high - minus.value)
    up = squares(plus.high - plus.value, minus.value - minus.low)
    shares = plus.value - minus.value
    value = (weights * shares).sum(axis=1)
    left = 1 - n / sample.sizes if finite else np.ones_like(n)
    sizes = np.zeros(len(n))
    if not finite:
        sizes = _sizes_variance(sample, shares, most, n) * norm.ppf(1 - alpha * _COUNTS / 2) ** 2
    low, high = (np.sqrt((weights**2 * left * d).sum(axis=1) + sizes) for d in (down, up))
    least = -1.0 if len(counts) > 1 else 0.0
    return Estimates(value, np.maximum(value - low, least), np.minimum(value + high, 1.0))


def _what_can(sample: Sample, alpha: float, *, finite: bool) -> dict[str, Array]:
    """Upper limits of what can be gained and lost: only wrong images are gained, right ones lost.

    Full precision saw all evaluation images, so this is known far better than what changes.
    """
    if sample.wrong is None:
        return {}
    sizes, free = sample.sizes, np.array(1.0)
    wrong = sample.wrong / sizes
    if finite:
        return {"gained": wrong, "lost": 1 - wrong}
    limits = share_limits(sample.wrong, sizes, alpha, free)
    return {"gained": limits.high, "lost": 1 - limits.low}


def share_limits(counts: Array, n: Array, alpha: float, most: Array) -> Estimates:
    """A share with Jeffreys' limits, and at most ``most`` or what was seen; arrays broadcast.

    Source: Brown, Cai and DasGupta 2001, 4.1, with their change at counts of 0 and ``n``.
    """
    low = beta.ppf(alpha / 2, counts + 0.5, n - counts + 0.5)
    high = beta.ppf(1 - alpha / 2, counts + 0.5, n - counts + 0.5)
    low, high = np.where(counts > 0, low, 0.0), np.where(counts < n, high, 1.0)
    value = counts / n
    return Estimates(value, np.asarray(low), np.maximum(np.minimum(high, most), value))


def most_that_flip(sample: Sample, looks: int, confidence: float) -> Array:
    """Upper limit of the share of a stratum's images that change class, `(cells, strata)`.

    Markov's inequality on the upper end of the stratum's mean divergence.
    """
    n = sample["n"]
    means, variances = _moments(sample)
    quantile = student.ppf(1 - (1 - confidence) * _MEANS / looks, np.maximum(n - 1, 1))
    upper = _on_the_logarithm(means, quantile * np.sqrt(variances / n)).high
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(upper / sample.floors, nan=0.0, posinf=1.0).clip(max=1.0)


def _odds(share: Array, n: Array) -> Array:
    """Odds of a share, kept off zero and one by half an image."""
    shrunk = (share * n + 0.5) / (n + 1)
    return np.asarray(shrunk / (1 - shrunk))


def _moments(sample: Sample) -> tuple[Array, Array]:
    """Mean and variance of the divergence in each stratum; infinite variance of one image."""
    n = sample["n"]
    means = sample["kl"] / n
    with np.errstate(divide="ignore", invalid="ignore"):
        variances = np.maximum(sample["kl2"] - n * means**2, 0) / (n - 1)
    return means, np.where(n > 1, variances, np.inf)


def _on_the_logarithm(value: Array, half: Array) -> Estimates:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        relative = np.where(value > 0, half / value, 0.0)
        return Estimates(value, value * np.exp(-relative), value * np.exp(UPWARDS * relative))


def _sizes_variance(sample: Sample, shares: Array, most: Array, n: Array) -> Array:
    """What the sampling of the strata's sizes adds to a variance (multinomial).

    Shares of a few images are taken as no smaller than one image more would make them.
    """
    weights = sample.weights
    shrunk = np.minimum((np.abs(shares) * n + 1) / (n + 2), np.maximum(most, np.abs(shares)))
    spread = (weights * shrunk**2).sum(axis=1) - ((weights * shrunk).sum(axis=1)) ** 2
    return np.asarray(np.maximum(spread, 0) / sample.sizes.sum())
