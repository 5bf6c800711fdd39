"""Intervals that stay honest when a cell is looked at again and again and stopped at will.

Counts (images that change their class) use a confidence sequence that holds at all sample sizes at
once: the parameters under which the Dirichlet mixture of the multinomial likelihood is less than
1/alpha times as likely as the data (Robbins 1970; Lindon and Malek 2022, "Anytime-valid inference
for multinomial count data"; Ville's inequality). It is exact and needs no number of looks.

Mean divergences use Student's t on the logarithm, with alpha divided over a fixed number of looks
(Bonferroni), because they are skewed and have no upper bound. That is an approximation, as every
interval for an unbounded mean is: tests/unit/test_sequential.py shows its coverage by simulation.

Both meet in one fact: an image whose divergence is below `nats_to_flip` keeps its class. So the
share of images of a stratum that change is at most (upper end of the mean divergence) / (least nats
to flip), by Markov's inequality, which is far below what counting a few images could show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaln
from scipy.stats import norm
from scipy.stats import t as student

from vitsense.sensitivity.result import Outcome

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

CHANGED_PRIOR, SAME_PRIOR = 0.1, 4.0
"""Dirichlet weights of an image that is lost (or gained) and of one that stays: few change."""

# How alpha is divided: over the counts of each stratum, most doubtful first; over the mean
# divergences that bound what counts cannot; over the strata's own sizes, which are a sample too.
_COUNTS, _MEANS, _SIZES = (0.40, 0.20, 0.05, 0.05), 0.20, 0.10
_BISECTIONS = 45

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

    @classmethod
    def of(
        cls, outcomes: Sequence[Sequence[Outcome]], sizes: Sequence[int], floors: Sequence[float]
    ) -> Sample:
        """Gather outcomes by cell and stratum."""
        table = np.array([[o.to_list() for o in row] for row in outcomes], dtype=np.float64)
        names = [f.name for f in fields(Outcome)]
        return cls(
            {name: table[..., i] for i, name in enumerate(names)},
            np.asarray(sizes, dtype=np.float64),
            np.asarray(floors, dtype=np.float64),
        )

    def __getitem__(self, name: str) -> Array:
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
    n, lost, gained = sample["labelled"], sample["lost"], sample["gained"]
    weights, alpha = sample.weights, 1 - confidence
    most = most_that_flip(sample, looks, confidence)
    low, high = difference_bounds(lost, gained, n, _alphas(alpha, n.shape[1]))
    low, high = np.maximum(low, -most), np.minimum(high, most)
    value = (weights * (lost - gained) / n).sum(axis=1)
    shrunk = np.minimum((np.abs(lost - gained) + 1) / (n + 2), most)
    slack = _sizes_error(sample, shrunk, alpha)
    return Estimates(
        value,
        np.minimum((weights * low).sum(axis=1) - slack, value),
        np.maximum((weights * high).sum(axis=1) + slack, value),
    )


def flips(sample: Sample, looks: int, confidence: float) -> Estimates:
    """Share of images that change their class, 0 to 1."""
    n, changed = sample["n"], sample["n"] - sample["agree"]
    weights, alpha = sample.weights, 1 - confidence
    most = most_that_flip(sample, looks, confidence)
    low, high = share_bounds(changed, n, _alphas(alpha, n.shape[1]))
    high = np.minimum(high, np.maximum(most, low))
    value = (weights * changed / n).sum(axis=1)
    slack = _sizes_error(sample, np.minimum((changed + 1) / (n + 2), most), alpha)
    return Estimates(
        value,
        np.clip((weights * low).sum(axis=1) - slack, 0.0, value),
        np.maximum((weights * high).sum(axis=1) + slack, value),
    )


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


def most_that_flip(sample: Sample, looks: int, confidence: float) -> Array:
    """Upper bound of the share of a stratum's images that change class, `(cells, strata)`.

    Markov's inequality on the upper end of the stratum's mean divergence.
    """
    n = sample["n"]
    means, variances = _moments(sample)
    alpha = (1 - confidence) * _MEANS / looks / n.shape[1]
    quantile = student.ppf(1 - alpha, np.maximum(n - 1, 1))
    upper = _on_the_logarithm(means, quantile * np.sqrt(variances / n)).high
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(upper / sample.floors, nan=0.0, posinf=1.0).clip(max=1.0)


def difference_bounds(lost: Array, gained: Array, n: Array, alpha: Array) -> tuple[Array, Array]:
    """Anytime-valid ends for P(lost) - P(gained) of multinomial counts; arrays broadcast."""
    same = n - lost - gained
    priors = (CHANGED_PRIOR, CHANGED_PRIOR, SAME_PRIOR)
    least = _log_mixture((lost, gained, same), priors) + np.log(alpha)
    centre = (lost - gained) / n

    def inside(d: Array) -> NDArray[np.bool_]:
        linear = (lost + gained) * (1 - d) - 2 * d * (gained + same)
        q = (linear + np.sqrt(np.maximum(linear**2 + 8 * n * gained * d * (1 - d), 0))) / (4 * n)
        q = np.clip(np.nan_to_num(q), np.maximum(0.0, -d), (1 - d) / 2)
        likely = _xlogy(lost, q + d) + _xlogy(gained, q) + _xlogy(same, 1 - 2 * q - d)
        return np.asarray(likely >= least)

    return _edge(inside, centre, -1.0), _edge(inside, centre, 1.0)


def share_bounds(changed: Array, n: Array, alpha: Array) -> tuple[Array, Array]:
    """Anytime-valid ends for the probability of binomial counts; arrays broadcast."""
    least = _log_mixture((changed, n - changed), (CHANGED_PRIOR, SAME_PRIOR)) + np.log(alpha)

    def inside(p: Array) -> NDArray[np.bool_]:
        return np.asarray(_xlogy(changed, p) + _xlogy(n - changed, 1 - p) >= least)

    return _edge(inside, changed / n, 0.0), _edge(inside, changed / n, 1.0)


def _alphas(alpha: float, strata: int) -> Array:
    shares = np.array(_COUNTS[:strata])
    return np.asarray(alpha * sum(_COUNTS) * shares / shares.sum())


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


def _sizes_error(sample: Sample, shares: Array, alpha: float) -> Array:
    """What the sampling of the strata's sizes adds to an interval (multinomial, normal)."""
    weights = sample.weights
    spread = (weights * shares**2).sum(axis=1) - ((weights * shares).sum(axis=1)) ** 2
    quantile = float(norm.ppf(1 - alpha * _SIZES / 2))
    return np.asarray(quantile * np.sqrt(np.maximum(spread, 0) / sample.sizes.sum()))


def _log_mixture(counts: tuple[Array, ...], priors: tuple[float, ...]) -> Array:
    """Log of the likelihood averaged over the Dirichlet prior."""
    total, n = sum(priors), np.asarray(sum(counts))
    parts = sum(gammaln(a + x) - gammaln(a) for a, x in zip(priors, counts, strict=True))
    return np.asarray(gammaln(total) - gammaln(total + n) + parts)


def _xlogy(x: Array, y: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(x > 0, x * np.log(np.maximum(y, 0)), 0.0))


def _edge(inside: Callable[[Array], NDArray[np.bool_]], centre: Array, end: float) -> Array:
    """Where ``inside`` ends between ``centre`` (inside) and ``end``, by bisection."""
    near, far = np.array(centre, dtype=np.float64), np.full(np.shape(centre), end)
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2
        held = inside(middle)
        near, far = np.where(held, middle, near), np.where(held, far, middle)
    return np.asarray(far)
