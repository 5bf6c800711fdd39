"""Moments: a value type that unites groups exactly."""

from __future__ import annotations

import numpy as np
import pytest

from vitsense.errors import SiteMismatchError
from vitsense.statistics.moments import Moments


def moments_of(values: np.ndarray) -> Moments:
    """Moments of `(rows, G)` values from float64 power sums about zero."""
    x = values.astype(np.float64)
    return Moments.from_power_sums(
        count=float(len(x)),
        shift=np.zeros(x.shape[1]),
        sums=np.stack([(x**p).sum(0) for p in (1, 2, 3, 4)]),
        abs_sum=np.abs(x).sum(0),
        minimum=x.min(0),
        maximum=x.max(0),
    )


def test_derived_numbers_of_known_values():
    m = moments_of(np.array([[0.0], [0.0], [0.0], [4.0]]))
    assert m.mean[0] == 1.0
    assert m.variance[0] == 3.0  # population: 12 / 4, not 12 / 3
    assert m.std[0] == pytest.approx(3**0.5, rel=1e-15)
    assert m.skewness[0] == pytest.approx(6 / 3**1.5, rel=1e-12)
    assert m.kurtosis[0] == pytest.approx(21 / 9 - 3, rel=1e-12)
    assert (m.abs_mean[0], m.abs_max[0]) == (1.0, 4.0)


def test_shift_does_not_change_the_moments():
    x = np.random.default_rng(0).normal(3.0, 2.0, (500, 4))
    shift = np.array([3.0, 2.5, -1.0, 0.0])
    d = x - shift
    shifted = Moments.from_power_sums(
        count=500.0,
        shift=shift,
        sums=np.stack([(d**p).sum(0) for p in (1, 2, 3, 4)]),
        abs_sum=np.abs(x).sum(0),
        minimum=x.min(0),
        maximum=x.max(0),
    )
    plain = moments_of(x)
    for name in ("mean", "variance", "skewness", "kurtosis"):
        np.testing.assert_allclose(getattr(shifted, name), getattr(plain, name), rtol=1e-9)


def test_absolute_maximum_of_negative_values():
    assert moments_of(np.array([[-5.0], [1.0]])).abs_max[0] == 5.0


def test_equal_values_have_no_variance_and_no_kurtosis_whatever_rounding_left():
    lost = Moments.from_power_sums(
        count=10.0,
        shift=np.array([0.0999]),
        sums=np.array([[1e-3], [1.1e-7], [1e-11], [1e-15]]),  # as float32 would leave them
        abs_sum=np.array([1.0]),
        minimum=np.array([0.1]),
        maximum=np.array([0.1]),
    )
    assert lost.mean[0] == 0.1
    assert lost.variance[0] == 0.0
    assert np.isnan(lost.skewness[0])
    assert np.isnan(lost.kurtosis[0])


def test_collapse_gives_the_whole_tensor_and_neighbouring_parts():
    x = np.random.default_rng(1).normal(size=(64, 6)) * np.arange(1, 7) + np.arange(6)
    channels = moments_of(x)
    whole = channels.collapse()
    expected = moments_of(x.reshape(-1, 1))
    heads = channels.collapse(2)
    by_head = moments_of(x.reshape(64, 2, 3).transpose(0, 2, 1).reshape(-1, 2))
    for got, want in ((whole, expected), (heads, by_head)):
        assert got.groups == want.groups
        for name in ("count", "mean", "variance", "skewness", "kurtosis", "abs_sum"):
            np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-11)
        np.testing.assert_array_equal(got.minimum, want.minimum)
        np.testing.assert_array_equal(got.maximum, want.maximum)


def test_constant_channels_of_different_value_vary_as_a_tensor():
    whole = moments_of(np.tile([[1.0, 3.0]], (5, 1))).collapse()
    assert whole.variance[0] == 1.0
    assert whole.kurtosis[0] == pytest.approx(-2.0)


@pytest.mark.parametrize("parts", [0, 4])
def test_uneven_parts_are_refused(parts: int):
    with pytest.raises(SiteMismatchError, match="6 groups"):
        moments_of(np.ones((2, 6))).collapse(parts)


def test_merging_different_numbers_of_groups_is_refused():
    with pytest.raises(SiteMismatchError, match="3 and of 4"):
        moments_of(np.ones((2, 3))).merge(moments_of(np.ones((2, 4))))


def test_moments_are_values_that_cannot_be_written_to():
    source = np.arange(4.0).reshape(2, 2)
    m = moments_of(source)
    with pytest.raises(ValueError, match="read-only"):
        m.mean[0] = 1.0
    source[0, 0] = 7.0  # the caller's arrays stay writable
    with pytest.raises(AttributeError):
        m.mean = np.zeros(2)  # type: ignore[misc]
