"""Histogram: bins are leading bits of float32 patterns."""

from __future__ import annotations

import numpy as np
import pytest

from vitsense.statistics.histogram import BINS, RELATIVE_ERROR, SHIFT, Histogram


def histogram_of(values: np.ndarray) -> Histogram:
    x = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    counts = np.bincount(x.view(np.uint32) >> SHIFT, minlength=BINS)
    return Histogram(counts, float(x.min()), float(x.max()))


def test_every_value_lies_within_the_stated_error_of_its_bin():
    x = np.concatenate([s * np.geomspace(1e-30, 1e30, 5001) for s in (-1.0, 1.0)])
    for value in np.float32(x[::97]):
        centres, counts = histogram_of(
            np.array([value, 2 * abs(value), -2 * abs(value)])
        ).distribution()
        assert counts.sum() == 3
        assert np.abs(centres - value).min() <= RELATIVE_ERROR * abs(value)


def test_bins_come_in_ascending_order():
    x = np.random.default_rng(0).standard_cauchy(10_000)
    centres, counts = histogram_of(x).distribution()
    assert (np.diff(centres) > 0).all()
    assert counts.sum() == 10_000


def test_centres_stay_between_minimum_and_maximum():
    centres, _ = histogram_of(np.array([-1.0, 0.0, 1.0])).distribution()
    assert centres[0] == -1.0 <= centres[-1] <= 1.0


@pytest.mark.parametrize("q", [0.001, 0.01, 0.05, 0.5, 0.95, 0.99, 0.999])
def test_quantiles_have_the_stated_relative_error(q: float):
    x = np.float32(np.random.default_rng(1).normal(0.3, 2.0, 20_001))
    exact = float(np.quantile(x, q, method="inverted_cdf"))
    assert abs(histogram_of(x).quantile(q) - exact) <= RELATIVE_ERROR * abs(exact)


def test_quantiles_at_the_ends_are_the_outermost_bins():
    h = histogram_of(np.array([-8.0, 1.0, 9.0]))
    assert h.quantile(0.0) == pytest.approx(-8.0, rel=RELATIVE_ERROR)
    assert h.quantile(1.0) == pytest.approx(9.0, rel=RELATIVE_ERROR)


@pytest.mark.parametrize("sigmas", [3, 4, 6])
def test_share_of_outliers_equals_the_exact_share(sigmas: int):
    x = np.float32(np.random.default_rng(2).standard_t(4, 400_000))
    mean, std = float(x.mean()), float(x.std())
    exact = float((np.abs(x - mean) > sigmas * std).mean())
    # inside a bin of 2^-6 of its value the density of this law is flat to a few percent
    assert histogram_of(x).tail_share(mean, sigmas * std) == pytest.approx(
        exact, rel=0.03, abs=1e-5
    )


def test_share_beyond_a_radius_that_holds_everything_is_zero():
    assert histogram_of(np.array([-1.0, 2.0])).tail_share(0.0, 100.0) == 0.0


def test_share_beyond_no_radius_is_everything_elsewhere():
    h = histogram_of(np.array([0.0, 5.0, -5.0, 5.0]))
    assert h.tail_share(0.0, 1.0) == 0.75


def test_merging_adds_counts_and_widens_the_range():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=100), rng.normal(5, 1, size=50)
    merged = histogram_of(a).merge(histogram_of(b))
    joint = histogram_of(np.concatenate([a, b]))
    np.testing.assert_array_equal(merged.counts, joint.counts)
    assert (merged.minimum, merged.maximum) == (joint.minimum, joint.maximum)
    assert merged.total == 150


def test_equal_bins_share_everything_out_between_minimum_and_maximum():
    x = np.random.default_rng(4).normal(2.0, 1.0, 50_000)
    edges, counts = histogram_of(x).equal_bins(64)
    assert (len(edges), len(counts)) == (65, 64)
    assert (edges[0], edges[-1]) == (np.float32(x.min()), np.float32(x.max()))
    assert counts.sum() == pytest.approx(50_000, rel=1e-12)
    exact, _ = np.histogram(x, edges)
    # a bin's error is what straddles its two borders, below 2^-6 of |edge| wide on each side
    slack = 2 * exact.max() * (2.0**-6 * np.abs(edges).max() / (edges[1] - edges[0]))
    assert np.abs(counts - exact).max() <= slack
    assert np.abs(counts - exact).sum() <= 0.05 * 50_000


def test_equal_bins_show_no_comb_on_a_uniform_tensor():
    x = np.random.default_rng(5).uniform(0.0, 0.93, 1_000_000)
    _, counts = histogram_of(x).equal_bins(64)
    expected = 1_000_000 / 64
    assert np.abs(counts / expected - 1).max() < 0.05  # 6 standard errors of a count of 15625


def test_equal_bins_of_a_constant_tensor_hold_everything_in_the_first():
    edges, counts = histogram_of(np.full(7, 3.0)).equal_bins(4)
    np.testing.assert_array_equal(counts, [7, 0, 0, 0])
    assert edges[0] == 3.0


def test_zeros_stay_a_spike():
    x = np.concatenate([np.zeros(900), np.linspace(0.5, 1.0, 100)])
    edges, counts = histogram_of(x).equal_bins(10)
    assert counts[0] == pytest.approx(900)
    assert counts[1:4].sum() == 0
    assert edges[5] == pytest.approx(0.5)


def test_values_far_from_zero_are_told_apart_by_an_offset():
    x = np.random.default_rng(6).normal(1000.0, 0.5, 20_000).astype(np.float32)
    d = histogram_of(x - np.float32(1000))
    h = Histogram(d.counts, float(x.min()), float(x.max()), offset=1000.0)
    exact = float(np.quantile(x, 0.99, method="inverted_cdf"))
    assert abs(h.quantile(0.99) - exact) <= RELATIVE_ERROR * abs(exact - 1000)
    share = float((np.abs(x - 1000) > 1.0).mean())
    assert h.tail_share(1000.0, 1.0) == pytest.approx(share, rel=0.03)


def test_histograms_of_different_offsets_merge_by_their_centres():
    near, far = np.linspace(-1, 1, 50), np.float32(np.linspace(998, 1002, 70))
    d = histogram_of(far - np.float32(1000))
    offset = Histogram(d.counts, 998.0, 1002.0, offset=1000.0)
    merged = histogram_of(near).merge(offset)
    assert (merged.total, merged.offset) == (120, 0.0)
    assert (merged.minimum, merged.maximum) == (-1.0, 1002.0)
    assert merged.tail_share(0.0, 2.0) == pytest.approx(70 / 120)
    assert merged.quantile(0.9) == pytest.approx(1000, rel=2 * RELATIVE_ERROR)
