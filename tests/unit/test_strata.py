"""Strata hold every image once, rounds grow, and a plan's doubts are where they should be."""

from __future__ import annotations

import numpy as np
import pytest

from vitsense.sensitivity.relevance import deciding
from vitsense.sensitivity.stopping import rounds
from vitsense.sensitivity.strata import EFFORT, FEWEST, stratify


@pytest.mark.parametrize("images", [1, 2, 9, 24, 50, 163, 1000])
def test_every_image_is_in_one_stratum_and_is_seen_in_the_end(images: int) -> None:
    doubt = np.random.default_rng(0).random(images)
    strata = stratify(doubt, seed=0)
    assert sorted(strata.order.tolist()) == list(range(images))
    assert sum(strata.sizes) == images
    assert sum(strata.effort) == pytest.approx(sum(EFFORT))
    for start, stop, floor in zip(strata.edges, strata.edges[1:], strata.floors, strict=False):
        assert doubt[strata.order[start:stop]].min() == floor
    before = (0,) * len(strata.sizes)
    seen: list[int] = []
    for total in rounds(images):
        counts = strata.counts(total)
        assert all(a <= b for a, b in zip(before, counts, strict=True))
        assert sum(counts) <= max(total, FEWEST * len(counts))
        for span in strata.spans(before, counts):
            seen += range(span.start, span.stop)
        before = counts
    assert sorted(seen) == list(range(images))


def test_the_most_doubtful_come_first_and_get_the_most() -> None:
    strata = stratify(np.linspace(0.69, 0, 1000), seed=0)
    assert set(strata.order[:50]) == set(range(950, 1000))
    counts = strata.counts(128)
    shares = [n / size for n, size in zip(counts, strata.sizes, strict=True)]
    assert shares == sorted(shares, reverse=True)
    assert stratify(np.linspace(0.69, 0, 1000), seed=1).order.tolist() != strata.order.tolist()


BITS = np.array([2.0, 4.0, 8.0])


def test_what_is_known_well_enough_decides_nothing() -> None:
    kl = np.array([[1.0, 0.1, 0.001], [2.0, 0.3, 0.002]])
    found = deciding(kl, np.full(kl.shape, 0.001), BITS, np.ones(2), seed=0)
    assert (found == 0).all()


def test_a_module_whose_choice_is_open_decides_and_a_dominated_one_does_not() -> None:
    # the first module's exchange of 2 for 4 bits could be worth much or nothing
    kl = np.array([[1.0, 0.9, 0.001], [2.0, 0.3, 0.002]])
    error = np.array([[0.8, 0.8, 0.001], [0.001, 0.001, 0.001]])
    found = deciding(kl, error, BITS, np.ones(2), seed=0)
    assert found[0].max() > 0
    assert found[0].max() > 5 * found[1].max()


def test_widths_that_are_not_known_are_never_chosen() -> None:
    kl = np.array([[1.0, np.inf, 0.001], [2.0, 0.3, np.inf]])
    found = deciding(kl, np.full(kl.shape, 0.5), BITS, np.ones(2), seed=0)
    assert np.isfinite(found).all()
    assert found[0, 1] == 0
    assert found[1, 2] == 0
