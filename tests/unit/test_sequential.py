"""Intervals under repeated looking: coverage with a known truth, and the ends of the exact sets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import betaln, gammaln

from vitsense.sensitivity import sequential
from vitsense.sensitivity.sequential import CHANGED_PRIOR, SAME_PRIOR, Sample
from vitsense.sensitivity.strata import SHARES, stratify

REPETITIONS = 2000
LOOKS = (32, 64, 128, 256, 512, 1000)
FLOORS = (0.005, 0.3, 0.5, 0.62)  # nats to flip, as the shipped models have them
SIGMAS = (1.6, 1.45, 1.1, 0.9)  # of log divergence within strata, likewise
MEANS = (13.0, 2.5, 0.4, 0.1)


class Population:
    """Images whose divergence is log-normal in each stratum; some beyond the floor are changed."""

    def __init__(self, scale: float, rng: np.random.Generator) -> None:
        self.scale, self.rng = scale, rng
        self.edges = (*FLOORS, 0.69)
        truth = np.zeros(3)
        for h, share in enumerate(SHARES):
            _, flip, lost, gained = self.draw(h, 400_000)
            exact = scale * MEANS[h]
            truth += share * np.array([exact, flip.mean(), lost.mean() - gained.mean()])
        self.kl, self.flips, self.drop = truth

    def draw(self, h: int, size):
        rng, sigma = self.rng, SIGMAS[h]
        noise = sigma * rng.standard_normal(size, dtype=np.float32)
        kl = self.scale * MEANS[h] * np.exp(noise - sigma**2 / 2)
        doubt = rng.uniform(self.edges[h], self.edges[h + 1], size)
        flip = (kl > doubt) & (rng.random(size) < 0.5)
        kind = rng.random(size)
        return kl, flip, flip & (kind < 0.55), flip & (kind > 0.7)


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 2e-2])
def test_coverage_holds_for_whoever_stops_at_the_worst_look(scale: float) -> None:
    """A miss at any of the looks counts: no rule of stopping can do worse."""
    rng = np.random.default_rng(1)
    population = Population(scale, rng)
    strata = stratify(np.linspace(0, 0.69, 1000), 0)
    data = [population.draw(h, (REPETITIONS, size)) for h, size in enumerate(strata.sizes)]
    missed = np.zeros((3, REPETITIONS), dtype=bool)
    for look in LOOKS:
        counts = strata.counts(look)

        def total(k: int, power: int = 1, counts=counts) -> np.ndarray:
            return np.stack(
                [
                    (d[k][:, :n].astype(float) ** power).sum(1)
                    for d, n in zip(data, counts, strict=True)
                ],
                1,
            )

        n = np.tile(np.array(counts, dtype=float), (REPETITIONS, 1))
        sums = {"n": n, "labelled": n, "kl": total(0), "kl2": total(0, 2)}
        sums |= {"agree": n - total(1), "lost": total(2), "gained": total(3)}
        sample = Sample(sums, np.array(strata.sizes, dtype=float), np.array(FLOORS))
        for row, (estimate, truth) in enumerate(
            (
                (sequential.divergence(sample, len(LOOKS), 0.95), population.kl),
                (sequential.flips(sample, len(LOOKS), 0.95), population.flips),
                (sequential.drop(sample, len(LOOKS), 0.95), population.drop),
            )
        ):
            missed[row] |= (truth < estimate.low) | (truth > estimate.high)
            assert (estimate.low <= estimate.value).all()
            assert (estimate.value <= estimate.high).all()
    coverage = 1 - missed.mean(axis=1)
    assert (coverage >= 0.95).all(), coverage


def test_a_naive_interval_looked_at_as_often_would_not_hold() -> None:
    """The simulation can fail: Student's interval on the mean, looked at six times."""
    from scipy.stats import t

    rng = np.random.default_rng(2)
    values = np.exp(1.3 * rng.standard_normal((REPETITIONS, 1000)) - 1.3**2 / 2)
    missed = np.zeros(REPETITIONS, dtype=bool)
    for look in LOOKS:
        seen = values[:, :look]
        half = t.ppf(0.975, look - 1) * seen.std(axis=1, ddof=1) / np.sqrt(look)
        missed |= np.abs(seen.mean(axis=1) - 1) > half
    assert 1 - missed.mean() < 0.85


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.0, 0.0), (0.01, 0.004), (0.2, 0.05)])
def test_counts_are_covered_at_every_sample_size_at_once(p_lost: float, p_gained: float) -> None:
    """Exact and anytime-valid: looked at after every few images, up to 1,000."""
    rng = np.random.default_rng(3)
    draws = rng.random((REPETITIONS, 1000))
    lost = np.cumsum(draws < p_lost, axis=1)
    gained = np.cumsum(draws > 1 - p_gained, axis=1)
    missed = np.zeros(REPETITIONS, dtype=bool)
    for n in (1, 3, 8, 20, 40, 70, 120, 200, 350, 600, 1000):
        a, b = lost[:, n - 1].astype(float), gained[:, n - 1].astype(float)
        low, high = sequential.difference_bounds(a, b, np.array(float(n)), np.array(0.05))
        missed |= (p_lost - p_gained < low) | (p_lost - p_gained > high)
    assert 1 - missed.mean() >= 0.95


def profile(d: float, lost: int, gained: int, n: int) -> float:
    """Largest log likelihood with P(lost) - P(gained) = d, by a general search."""

    def loss(q: float) -> float:
        p = np.array([q + d, q, 1 - 2 * q - d])
        counts = np.array([lost, gained, n - lost - gained])
        with np.errstate(divide="ignore", invalid="ignore"):
            return -float(np.where(counts > 0, counts * np.log(np.maximum(p, 0)), 0).sum())

    bounds = (max(0.0, -d) + 1e-13, (1 - d) / 2 - 1e-13)
    return -float(
        minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).fun
    )


@pytest.mark.parametrize(("lost", "gained", "n"), [(0, 0, 50), (3, 1, 50), (1, 4, 16), (9, 0, 400)])
def test_the_ends_are_where_the_mixture_is_twenty_times_as_likely(lost, gained, n) -> None:
    low, high = (
        float(end[0])
        for end in sequential.difference_bounds(
            np.array([float(lost)]), np.array([float(gained)]), np.array([float(n)]), np.array(0.05)
        )
    )
    priors = np.array([CHANGED_PRIOR, CHANGED_PRIOR, SAME_PRIOR])
    counts = np.array([lost, gained, n - lost - gained])
    mixture = gammaln(priors.sum()) - gammaln(priors.sum() + n)
    mixture += (gammaln(priors + counts) - gammaln(priors)).sum()
    for end in (low, high):
        assert mixture - profile(end, lost, gained, n) == pytest.approx(np.log(20), abs=1e-3)
    assert low < (lost - gained) / n < high


def test_the_ends_of_a_share_are_where_the_mixture_is_twenty_times_as_likely() -> None:
    low, high = sequential.share_bounds(np.array([3.0]), np.array([40.0]), np.array(0.05))
    mixture = betaln(CHANGED_PRIOR + 3, SAME_PRIOR + 37) - betaln(CHANGED_PRIOR, SAME_PRIOR)
    for p in (float(low[0]), float(high[0])):
        likely = 3 * np.log(p) + 37 * np.log(1 - p)
        assert mixture - likely == pytest.approx(np.log(20), abs=1e-6)


def test_all_images_seen_give_the_plain_means() -> None:
    """The weights are no more than a detour when nothing is left out."""
    rng = np.random.default_rng(4)
    kl = rng.exponential(size=200)
    groups = np.split(kl, [10, 30, 70])
    sums = {
        "n": np.array([[float(len(g)) for g in groups]]),
        "kl": np.array([[g.sum() for g in groups]]),
        "kl2": np.array([[(g**2).sum() for g in groups]]),
    }
    sample = Sample(sums, np.array([10.0, 20.0, 40.0, 130.0]), np.array(FLOORS))
    found = sequential.divergence(sample, 1, 0.95)
    assert found.value[0] == pytest.approx(kl.mean())
    # what is left is the sampling of the images themselves
    half = np.log(found.value[0] / found.low[0]) * kl.mean()
    assert half == pytest.approx(1.97 * kl.std() / np.sqrt(200), rel=0.1)


def test_more_images_never_make_an_estimate_worse_by_much() -> None:
    widths = []
    for n, alpha in itertools.product((10, 100, 1000), (0.05,)):
        low, high = sequential.difference_bounds(
            np.array([0.01 * n]), np.array([0.0]), np.array([float(n)]), np.array(alpha)
        )
        widths.append(float(high[0] - low[0]))
    assert widths == sorted(widths, reverse=True)
