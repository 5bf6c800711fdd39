"""Intervals cover the truth as often as they say, and never lie at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitsense.sensitivity.interval import Interval, mean, paired_drop, proportion, ratio_db

REPETITIONS = 4000
# 95 % nominal; the worst case of small samples may fall short a little, never much
LEAST = 0.935


@pytest.mark.parametrize(
    ("n", "p_lost", "p_gained"),
    [(50, 0.1, 0.02), (200, 0.03, 0.03), (500, 0.01, 0.0), (1000, 0.2, 0.05), (100, 0.0, 0.0)],
)
def test_paired_drop_covers(n: int, p_lost: float, p_gained: float) -> None:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(n, [p_lost, p_gained, 1 - p_lost - p_gained], size=REPETITIONS)
    truth = p_lost - p_gained
    hits = 0
    for lost, gained, _ in draws:
        found = paired_drop(n, int(lost), int(gained))
        assert found.low <= found.value <= found.high
        hits += found.low <= truth <= found.high
    assert hits / REPETITIONS >= LEAST


@pytest.mark.parametrize(("n", "p"), [(50, 0.5), (100, 0.9), (500, 0.98)])
def test_proportion_covers(n: int, p: float) -> None:
    draws = np.random.default_rng(0).binomial(n, p, size=REPETITIONS)
    found = [proportion(int(k), n) for k in draws]
    assert np.mean([f.low <= p <= f.high for f in found]) >= 0.92


@pytest.mark.parametrize(
    ("law", "truth", "n", "least"),
    [
        # as Student's t would: 0.94, 0.95
        (lambda r, s: r.chisquare(1, s), 1.0, 128, 0.93),
        (lambda r, s: r.normal(1, 0.3, s), 1.0, 50, 0.935),
        # where Student's t covers 0.86, 0.88, 0.86 and 0.83
        (lambda r, s: r.chisquare(1, s), 1.0, 10, 0.90),
        (lambda r, s: r.gamma(0.2, 1.0, s), 0.2, 50, 0.905),
        (lambda r, s: r.lognormal(0, 1.5, s), math.exp(1.125), 128, 0.88),
        (lambda r, s: r.lognormal(0, 1.5, s), math.exp(1.125), 50, 0.845),
    ],
)
def test_mean_of_skewed_values_covers(law, truth: float, n: int, least: float) -> None:
    """Most images diverge little and a few diverge much: nothing covers fully on a few images."""
    x = law(np.random.default_rng(0), (REPETITIONS, n))
    hits = [
        i.low <= truth <= i.high
        for i in (
            mean(n, float(s), float(q)) for s, q in zip(x.sum(1), (x * x).sum(1), strict=True)
        )
    ]
    assert np.mean(hits) >= least


def test_the_mean_of_values_that_are_not_negative_stays_above_zero() -> None:
    found = mean(10, 5.0, 25.0)  # one image has all the divergence
    assert 0 < found.low < found.value < found.high
    assert found.low * found.high == pytest.approx(found.value**2)
    assert mean(10, 0.0, 0.0) == Interval(0.0, 0.0, 0.0)


def test_ratio_in_decibels_covers() -> None:
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(1000):
        signal = rng.gamma(20, 1.0, 80)
        noise = 0.01 * signal * rng.gamma(4, 0.25, 80)
        found = ratio_db(
            80,
            signal.sum(),
            noise.sum(),
            (signal**2).sum(),
            (noise**2).sum(),
            (signal * noise).sum(),
        )
        hits.append(found.low <= 20.0 <= found.high)
    assert np.mean(hits) >= 0.92


def test_agresti_min_by_hand() -> None:
    """n = 100, 9 lost, 2 gained: adjusted difference 7/102, error from the four half cells."""
    found = paired_drop(100, 9, 2)
    b, c = 9.5, 2.5
    error = math.sqrt(b + c - (b - c) ** 2 / 102) / 102
    assert found.value == pytest.approx(0.07)
    assert found.low == pytest.approx(7 / 102 - 1.959964 * error, rel=1e-6)
    assert found.high == pytest.approx(7 / 102 + 1.959964 * error, rel=1e-6)


def test_nothing_changed_is_not_distinguishable_from_zero() -> None:
    assert paired_drop(10, 0, 0).contains_zero
    assert paired_drop(1, 1, 0).high == 1.0


def test_one_image_has_no_interval() -> None:
    assert mean(1, 0.5, 0.25).high == math.inf
    assert ratio_db(1, 1.0, 0.1, 1.0, 0.01, 0.1).low == -math.inf


def test_without_noise_the_ratio_is_infinite() -> None:
    assert ratio_db(5, 1.0, 0.0, 1.0, 0.0, 0.0).value == math.inf
