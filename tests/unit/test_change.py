"""Changes between independent numbers with intervals, and the adjustment for many of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, norm

from vitsense.compare.change import FALSE_SHARE, adjusted, difference, ratio
from vitsense.sensitivity.interval import Interval, mean, proportion


def test_a_difference_of_proportions_is_newcombes_example() -> None:
    """Newcombe 1998, table II, row (a), method 10: 56/70 against 48/80."""
    found = difference(proportion(48, 80), proportion(56, 70))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_a_difference_of_symmetric_intervals_is_the_usual_one() -> None:
    found = difference(Interval(1.0, 0.7, 1.3), Interval(2.0, 1.6, 2.4))
    assert (found.low, found.high) == pytest.approx((0.5, 1.5))
    assert found.p == pytest.approx(2 * norm.sf(1.0 / (0.5 / norm.ppf(0.975))))


def test_a_ratio_is_the_same_in_both_directions() -> None:
    a, b = mean(100, 20.0, 9.0), mean(50, 25.0, 30.0)
    there, back = ratio(a, b), ratio(b, a)
    assert there.value * back.value == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)
    assert there.p == pytest.approx(back.p)


def test_an_open_interval_says_nothing_about_a_ratio() -> None:
    found = ratio(Interval(0.1, 0.0, math.inf), Interval(0.2, 0.1, 0.4))
    assert (found.value, found.low, found.high, found.p) == (2.0, 0.0, math.inf, 1.0)


_positive = st.floats(1e-6, 1e3)


@given(_positive, _positive, st.floats(1.001, 9.0), st.floats(1.001, 9.0))
def test_the_level_is_small_exactly_when_the_interval_excludes_no_change(
    first: float, second: float, wide: float, high: float
) -> None:
    a = Interval(first, first / wide, first * high)
    b = Interval(second, second / high, second * wide)
    found = ratio(a, b)
    assert found.low <= found.value <= found.high
    excluded = found.low > 1 or found.high < 1
    assert excluded == (found.p < FALSE_SHARE) or math.isclose(found.p, FALSE_SHARE, rel_tol=1e-6)


def test_intervals_of_ratios_cover_as_often_as_they_say() -> None:
    """Means of skewed values, as divergences are, in two independent samples."""
    rng = np.random.default_rng(5)
    n, rounds, inside = 200, 400, 0
    first, second = (rng.lognormal(0.0, 1.0, (rounds, n)) for _ in range(2))
    for a, b in zip(first, 1.5 * second, strict=True):
        found = ratio(*(mean(n, float(x.sum()), float((x * x).sum())) for x in (a, b)))
        inside += found.low <= 1.5 <= found.high
    assert inside / rounds == pytest.approx(0.95, abs=0.03)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_adjusted_levels_are_scipys(levels: list[float]) -> None:
    assert adjusted(levels) == pytest.approx(list(false_discovery_control(levels)), abs=1e-12)


def test_without_levels_nothing_is_adjusted() -> None:
    assert adjusted([]) == []
