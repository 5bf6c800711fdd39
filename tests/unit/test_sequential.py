"""Intervals under repeated looking: coverage with a known truth, and the ends of the exact sets."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, norm

from vitsense.sensitivity import sequential
from vitsense.sensitivity.interval import paired_drop
from vitsense.sensitivity.sequential import Sample
from vitsense.sensitivity.strata import SHARES, stratify

REPETITIONS = 2000
LIMIT = 0.005  # half a point
LOOKS = (32, 64, 128, 256, 512, 1000)
FLOORS = (0.005, 0.3, 0.5, 0.62)  # nats to flip, as the shipped models have them
SIGMAS = (1.6, 1.45, 1.1, 0.9)  # of log divergence within strata, likewise
MEANS = (13.0, 2.5, 0.4, 0.1)
WRONG = (0.45, 0.3, 0.1, 0.01)  # share that full precision gets wrong


class Population:
    """Images whose divergence is log-normal in each stratum; some beyond the floor are changed."""

    def __init__(self, scale: float, rng: np.random.Generator) -> None:
        self.scale, self.rng = scale, rng
        self.edges = (*FLOORS, 0.69)
        truth = np.zeros(3)
        for h, share in enumerate(SHARES):
            _, flip, lost, gained, _ = self.draw(h, 400_000)
            exact = scale * MEANS[h]
            truth += share * np.array([exact, flip.mean(), lost.mean() - gained.mean()])
        self.kl, self.flips, self.drop = truth

    def draw(self, h: int, size):
        rng, sigma = self.rng, SIGMAS[h]
        noise = sigma * rng.standard_normal(size, dtype=np.float32)
        kl = self.scale * MEANS[h] * np.exp(noise - sigma**2 / 2)
        doubt = rng.uniform(self.edges[h], self.edges[h + 1], size)
        flip = (kl > doubt) & (rng.random(size) < 0.5)
        wrong = rng.random(size) < WRONG[h]
        return kl, flip, flip & ~wrong, flip & wrong & (rng.random(size) < 0.7), wrong


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 2e-2, 0.3])
def test_coverage_holds_for_whoever_stops_at_the_worst_look(scale: float) -> None:
    """A miss at any of the looks counts: no rule of stopping can do worse.

    And of cells that stop because their drop is known within half a point on the 1,000 images, or
    is surely more than that, few are wrong about it.
    """
    rng = np.random.default_rng(1)
    population = Population(scale, rng)
    strata = stratify(np.linspace(0, 0.69, 1000), 0)
    data = [population.draw(h, (REPETITIONS, size)) for h, size in enumerate(strata.sizes)]
    missed = np.zeros((3, REPETITIONS), dtype=bool)
    images = sum(d[2].sum(1) - d[3].sum(1) for d in data) / 1000  # the drop on these images
    errors = np.stack([d[4].sum(1) for d in data], 1).astype(float)
    stopped, wrong = np.zeros((2, REPETITIONS), dtype=bool)
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
        sample = Sample(sums, np.array(strata.sizes, dtype=float), np.array(FLOORS), errors)
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
        found = sequential.drop_to_come(sample, len(LOOKS), 0.95)
        half = np.maximum(found.high - found.value, found.value - found.low)
        known, beyond = half <= LIMIT, found.low > LIMIT
        off = np.where(known, np.abs(found.value - images) > LIMIT + 1e-9, images <= LIMIT)
        wrong |= ~stopped & (known | beyond) & off
        stopped |= known | beyond
    assert stopped.all()
    assert wrong.mean() <= 0.05
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


@pytest.mark.parametrize(("counts", "n"), [(0, 19), (3, 40), (40, 40), (12, 300)])
def test_the_limits_of_a_share_cut_jeffreys_posterior(counts: int, n: int) -> None:
    """Against the posterior summed up where the prior is flat: p is the square of a sine."""
    angle = (np.arange(200_000) + 0.5) / 200_000 * np.pi / 2
    p = np.sin(angle) ** 2
    log = counts * np.log(p) + (n - counts) * np.log1p(-p)
    mass = np.exp(log - log.max()).cumsum()
    found = sequential.share_limits(
        np.array(float(counts)), np.array(float(n)), 0.01, np.array(1.0)
    )
    low, high = np.interp([0.005, 0.995], mass / mass[-1], p)
    assert float(found.low) == pytest.approx(0.0 if counts == 0 else low, abs=2e-5)
    assert float(found.high) == pytest.approx(1.0 if counts == n else high, abs=2e-5)


def broken_cell(**changes: object) -> Sample:
    """Many images lost, as the shipped Swin's patch embedding at 2 bits; divergences too large to
    bound anything."""
    n = np.array([[36.0, 37.0, 31.0, 24.0]])
    sums = {"n": n, "labelled": n, "kl": 9 * n, "kl2": 100 * n}
    sums |= {"lost": np.array([[17.0, 10.0, 5.0, 1.0]]), "gained": np.array([[2.0, 1.0, 0.0, 0.0]])}
    sums |= {"agree": n - sums["lost"] - sums["gained"], **changes}
    wrong = np.array([12.0, 5.0, 2.0, 0.0])
    return Sample(sums, np.array([36.0, 72.0, 144.0, 468.0]), np.array(FLOORS), wrong)


def test_the_interval_of_a_drop_is_the_distances_of_its_strata_put_together() -> None:
    """A literal loop over strata, with the strata's sizes taken as known."""
    sample, alpha = broken_cell(), 0.05 / 6
    found = sequential.drop_to_come(sample, 6, 0.95)
    up = down = value = 0.0
    for h in range(4):
        n, size = float(sample["n"][0, h]), float(sample.sizes[h])
        weight, left = size / 720, 1 - n / size
        limits = []
        for name in ("lost", "gained"):
            k = float(sample[name][0, h])
            a, b = k + 0.5, n - k + 0.5
            low = beta.ppf(0.8 * alpha / 2, a, b) if k else 0.0
            limits.append((k / n, low, beta.ppf(1 - 0.8 * alpha / 2, a, b), a / b))
        (lost, lost_low, lost_high, odds), (gained, gained_low, gained_high, others) = limits
        wrong = float(sample.wrong[h]) / size  # only those can be gained, only others lost
        lost_high, gained_high = min(lost_high, 1 - wrong), min(gained_high, wrong)
        corr = -np.sqrt(odds * others)
        value += weight * (lost - gained)
        a, b = lost_high - lost, gained - gained_low
        up += weight**2 * left * (a * a + b * b - 2 * corr * a * b)
        a, b = lost - lost_low, gained_high - gained
        down += weight**2 * left * (a * a + b * b - 2 * corr * a * b)
    assert found.value[0] == pytest.approx(value)
    assert found.high[0] == pytest.approx(value + np.sqrt(up))
    assert found.low[0] == pytest.approx(value - np.sqrt(down))


def test_a_cell_that_loses_a_third_of_what_it_saw_is_sure_to_lose() -> None:
    """It once was "not distinguishable": one sure bound for every stratum, added up."""
    found = sequential.drop(broken_cell(), 6, 0.95)
    assert found.low[0] > 0
    assert found.high[0] - found.low[0] < 0.35


def test_many_images_give_the_interval_of_the_stratified_mean() -> None:
    """Cochran 1977, 5.3 and 12.2: independent of Jeffreys and of what bounds small samples."""
    rng = np.random.default_rng(7)
    n = np.full((1, 4), 4000.0)
    sizes = np.array([40_000.0, 80_000.0, 160_000.0, 520_000.0])
    rates = np.array([[0.3, 0.2, 0.1, 0.05]])
    lost = rng.binomial(4000, rates).astype(float)
    gained = rng.binomial(4000, rates / 3).astype(float)
    sums = {"n": n, "labelled": n, "kl": 9 * n, "kl2": 100 * n, "lost": lost, "gained": gained}
    found = sequential.drop(Sample(sums, sizes, np.array(FLOORS)), 1, 0.95)
    weights, shares = sizes / sizes.sum(), (lost - gained) / n
    variances = (lost + gained) / n - shares**2
    seen = (weights**2 * variances / n * (1 - n / sizes)).sum()
    value = (weights * shares).sum()
    drawn = ((weights * (lost + gained) / n).sum() - value**2) / sizes.sum()
    half = np.hypot(norm.ppf(0.98) * np.sqrt(seen), norm.ppf(0.985) * np.sqrt(drawn))
    assert found.high[0] - found.value[0] == pytest.approx(half, rel=0.02)
    assert found.value[0] - found.low[0] == pytest.approx(half, rel=0.02)


def test_nothing_is_left_to_learn_when_every_image_was_seen() -> None:
    n = np.array([[36.0, 72.0, 144.0, 468.0]])
    sample = broken_cell(n=n, labelled=n, agree=n - 1)
    for found in (
        sequential.drop_to_come(sample, 6, 0.95),
        sequential.flips_to_come(sample, 6, 0.95),
    ):
        assert found.low == pytest.approx(found.value)
        assert found.high == pytest.approx(found.value)
    about_others = sequential.drop(sample, 1, 0.95)
    exact = paired_drop(720, 33, 3)  # as mode exact says it, and a little wider
    assert 1.0 < (about_others.high - about_others.low)[0] / (exact.high - exact.low) < 1.15


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
