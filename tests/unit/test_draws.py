"""Which images an estimate looks at, and what each of them stands for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitsense.sensitivity import interval
from vitsense.sensitivity.draws import Draws
from vitsense.sensitivity.estimate import Estimate

DOUBT = np.concatenate([np.full(90, 0.65), np.linspace(0.0, 0.3, 10)])
"""Nats to flip of ninety sure images and ten unsure ones."""


def test_unsure_images_are_drawn_more_often_and_stand_for_less() -> None:
    draws = Draws.by_doubt(DOUBT, seed=0, least=2)
    assert (draws.images, len(draws)) == (100, 20)
    often = np.bincount(draws.numbers, minlength=100)
    assert often[90:].sum() > 8
    assert (np.diff(draws.numbers) >= 0).all()
    weight = dict(zip(draws.numbers.tolist(), draws.weights.tolist(), strict=True))
    assert max(w for i, w in weight.items() if i >= 90) < min(
        w for i, w in weight.items() if i < 90
    )


def test_the_weighed_mean_is_unbiased_for_any_value_of_an_image() -> None:
    values = np.random.default_rng(0).lognormal(sigma=2, size=100)
    found = []
    for seed in range(4000):
        draws = Draws.by_doubt(DOUBT, seed=seed, least=2)
        found.append(np.mean(draws.weights * values[draws.numbers]))
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - values.mean()) < 4 * error


@pytest.mark.parametrize("doubt", [np.zeros(5), np.full(5, math.log(2)), np.full(5, 9.0)])
def test_equal_doubt_draws_evenly(doubt: np.ndarray) -> None:
    draws = Draws.by_doubt(doubt, seed=1, least=2)
    np.testing.assert_allclose(draws.weights, 1)
    assert len(set(draws.numbers.tolist())) == len(draws) == 2


def test_of_few_images_none_is_saved() -> None:
    assert [len(Draws.by_doubt(np.full(n, 0.3), seed=0)) for n in (50, 200, 1000)] == [50, 128, 200]


def test_another_number_of_draws_can_be_asked_for() -> None:
    draws = Draws.by_doubt(DOUBT, seed=0, count=8)
    assert len(draws) == 8
    assert draws.weights.min() < 1 < draws.weights.max()


def test_one_image_is_drawn_once() -> None:
    assert Draws.by_doubt(np.array([0.3]), seed=0, least=2).numbers.tolist() == [0]


def test_the_interval_covers_the_mean_of_all_there_are() -> None:
    """Images with few large divergences, one random sign pattern each, drawn by a rough guess."""
    rng = np.random.default_rng(2)
    images, covered, naive, repeats = 200, 0, 0, 400
    truth = math.exp(0.5 * 1.5**2)
    for seed in range(repeats):
        kl = rng.lognormal(sigma=1.5, size=images)
        guess = np.clip(0.69 - 0.1 * kl * rng.uniform(0.3, 1, images), 0, None)
        draws = Draws.by_doubt(guess, seed=seed, least=2)
        value = kl[draws.numbers] * rng.normal(size=len(draws)) ** 2
        z = draws.weights * value
        sums = (z.sum(), (z * z).sum(), (z * value).sum())
        found = Estimate(len(draws), *map(float, sums)).over(images).kl_nats
        covered += found.low <= truth <= found.high
        of_draws = interval.mean(len(draws), float(sums[0]), float(sums[1]))
        naive += of_draws.low <= truth <= of_draws.high
    assert covered / repeats > 0.93
    assert covered >= naive
