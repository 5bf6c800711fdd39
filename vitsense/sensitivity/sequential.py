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

from vitsense.sensitivity.interval import paired_drop, proportion
from vitsense.sensitivity.result import Outcome
from vitsense.sensitivity.strata import Strata

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_COUNTS, _MEANS = 0.8, 0.2
"""How alpha is divided: over counts, and over mean divergences, which bound what counts cannot."""

_DRAWN, _MORE = 0.6, 1.0
"""Share of alpha, and images added to the lost and to the gained, for what drawing images adds.

With all of alpha and half an image, as in mode exact, intervals missed the drop of resampled images
of the shipped models in up to 6 % of a width's cells and in 15 % of one: losses of one image or two
in a thousand are often in none. With these, 3 % and 6 %, by 300 repetitions (not kept).
"""

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

    Two samples lie between a cell and the truth. What was looked at is one of the evaluation images
    (`_unseen`); when to stop is decided by it, so its alpha is divided over the looks. The
    evaluation images are one of all images (`_drawn`); stopping does not touch them, so the
    interval of mode exact holds. With ``finite`` the second is left out.

    Source: as independent errors, distances are added as the root of the sum of squares (Zou and
    Donner 2008).
    """
    shares = [sample[name] / sample[of] for name in counts]
    totals = [(sample.weights * share).sum(axis=1) for share in shares]
    value = totals[0] - totals[1] if len(counts) > 1 else totals[0]
    down, up = _unseen(sample, counts, of, looks, confidence)
    if not finite:
        low, high = _drawn(totals, float(sample.sizes.sum()), confidence)
        down, up = np.hypot(down, low), np.hypot(up, high)
    least = -1.0 if len(counts) > 1 else 0.0
    return Estimates(value, np.maximum(value - down, least), np.minimum(value + up, 1.0))


def _unseen(
    sample: Sample, counts: tuple[str, ...], of: str, looks: int, confidence: float
) -> tuple[Array, Array]:
    """How far below and above the estimate the value for all evaluation images can be.

    Source: Zou and Donner 2008 with weights; shares of one sample are correlated, as in Newcombe
    1998 for paired proportions; distances are shortened by the root of the share that was not
    looked at (finite population correction; Cochran 1977, 2.6).
    """
    n, weights = sample[of], sample.weights
    alpha = (1 - confidence) / looks
    most = most_that_flip(sample, looks, confidence)
    can = _what_can(sample)
    plus, *others = (
        share_limits(sample[name], n, alpha * _COUNTS, np.minimum(most, can.get(name, 1.0)))
        for name in counts
    )
    down, up = (plus.value - plus.low) ** 2, (plus.high - plus.value) ** 2
    for minus in others:
        together = 2 * np.sqrt(_odds(plus.value, n) * _odds(minus.value, n))
        low, high = minus.value - minus.low, minus.high - minus.value
        down = down + high**2 + together * (plus.value - plus.low) * high
        up = up + low**2 + together * (plus.high - plus.value) * low
    left = weights**2 * (1 - n / sample.sizes)
    return np.sqrt((left * down).sum(axis=1)), np.sqrt((left * up).sum(axis=1))


def _drawn(totals: Sequence[Array], images: float, confidence: float) -> tuple[Array, Array]:
    """How far below and above a value for all evaluation images that for all images can be.

    As in mode exact, but for `_DRAWN`.
    """
    z = float(norm.ppf(1 - (1 - confidence) * _DRAWN / 2))
    counts = zip(*(images * shares for shares in totals), strict=True)
    if len(totals) > 1:
        found = [paired_drop(images, *each, added=_MORE, z=z) for each in counts]
    else:
        found = [proportion(changed, images, z=z) for (changed,) in counts]
    ends = np.array([(one.value - one.low, one.high - one.value) for one in found]).reshape(-1, 2)
    return ends[:, 0], ends[:, 1]


def _what_can(sample: Sample) -> dict[str, Array]:
    """Shares of each stratum that can be gained and lost: wrong images are gained, right ones lost.

    Full precision saw all evaluation images, so this is known.
    """
    if sample.wrong is None:
        return {}
    wrong = sample.wrong / sample.sizes
    return {"gained": wrong, "lost": 1 - wrong}


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
