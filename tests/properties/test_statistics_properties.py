"""Statistics merge: any split of a sample gives the statistics of the whole."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vitsense.sites import Site, SiteRole
from vitsense.statistics.accumulate import Accumulator
from vitsense.statistics.histogram import BINS, RELATIVE_ERROR, SHIFT, Histogram
from vitsense.statistics.moments import Moments

GROUPS = 3
values = st.floats(-1e3, 1e3, width=32)
# below float32's smallest normal number bins have a fixed, not a relative, width
ordinary = st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda v: v == 0 or abs(v) > 2.0**-100)
samples = st.integers(1, 20).flatmap(
    lambda rows: arrays(np.float64, (rows, GROUPS), elements=values)
)
numbers = arrays(np.float32, st.integers(1, 200), elements=ordinary)


def moments_of(x: np.ndarray) -> Moments:
    d = x - x.mean(0)
    return Moments(
        count=np.full(x.shape[1], float(len(x))),
        mean=x.mean(0),
        m2=(d**2).sum(0),
        m3=(d**3).sum(0),
        m4=(d**4).sum(0),
        abs_sum=np.abs(x).sum(0),
        minimum=x.min(0),
        maximum=x.max(0),
    )


def histogram_of(x: np.ndarray) -> Histogram:
    counts = np.bincount(x.view(np.uint32) >> SHIFT, minlength=BINS)
    return Histogram(counts, float(x.min()), float(x.max()))


def assert_same(a: Moments, b: Moments) -> None:
    np.testing.assert_array_equal(a.count, b.count)
    np.testing.assert_array_equal(a.minimum, b.minimum)
    np.testing.assert_array_equal(a.maximum, b.maximum)
    # rounding grows with the spread of the values, not with the sum that is left after cancelling
    spread = max(float(np.abs([b.minimum, b.maximum]).max()), 1e-30)
    n = float(b.count.max())
    for power, name in ((1, "mean"), (1, "abs_sum"), (2, "m2"), (3, "m3"), (4, "m4")):
        atol = 64 * n * np.finfo(np.float64).eps * (2 * spread) ** power
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=atol)


@given(samples, samples)
def test_merging_moments_gives_the_moments_of_both_samples(a: np.ndarray, b: np.ndarray):
    assert_same(moments_of(a).merge(moments_of(b)), moments_of(np.concatenate([a, b])))


@given(samples, samples)
def test_merging_moments_is_commutative(a: np.ndarray, b: np.ndarray):
    assert_same(moments_of(a).merge(moments_of(b)), moments_of(b).merge(moments_of(a)))


@given(samples, samples, samples)
def test_merging_moments_is_associative(a: np.ndarray, b: np.ndarray, c: np.ndarray):
    x, y, z = moments_of(a), moments_of(b), moments_of(c)
    assert_same(x.merge(y).merge(z), x.merge(y.merge(z)))


@given(samples)
def test_collapsing_groups_gives_the_moments_of_the_whole(a: np.ndarray):
    assert_same(moments_of(a).collapse(), moments_of(a.reshape(-1, 1)))


@given(numbers, numbers)
def test_merging_histograms_is_the_histogram_of_both_samples(a: np.ndarray, b: np.ndarray):
    merged, joint = histogram_of(a).merge(histogram_of(b)), histogram_of(np.concatenate([a, b]))
    np.testing.assert_array_equal(merged.counts, joint.counts)
    assert (merged.minimum, merged.maximum) == (joint.minimum, joint.maximum)


@given(numbers, st.floats(0, 1))
def test_quantiles_have_the_stated_relative_error(x: np.ndarray, q: float):
    ordered = np.sort(x).astype(np.float64)
    # the rank is q·n; where that is nearly whole, rounding may take the neighbour
    ranks = {int(np.ceil(q * len(x) + nudge)) for nudge in (-1e-9, 0.0, 1e-9)}
    exact = ordered[[min(max(rank, 1), len(x)) - 1 for rank in ranks]]
    found = histogram_of(x).quantile(q)
    assert (np.abs(exact - found) <= RELATIVE_ERROR * np.abs(exact) + 1e-35).any()


@given(numbers, ordinary, st.floats(0, 1e30))
def test_shares_are_shares_and_shrink_with_the_radius(x: np.ndarray, centre: float, radius: float):
    h = histogram_of(x)
    near, far = h.tail_share(centre, radius), h.tail_share(centre, 2 * radius)
    slack = 1e-12
    assert -slack <= far <= near + slack <= 1 + 2 * slack


@given(numbers, st.integers(1, 70))
def test_equal_bins_lose_nothing(x: np.ndarray, n: int):
    edges, counts = histogram_of(x).equal_bins(n)
    assert len(edges) == n + 1
    assert (counts >= -1e-9).all()
    np.testing.assert_allclose(counts.sum(), len(x), rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 1000))
def test_the_split_into_batches_does_not_matter(sizes: list[int], seed: int):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), 5, 4, generator=generator) + 2
    at = Site(module="m", role=SiteRole.INPUT, tensor="m:input", channel_axis=-1)
    whole, split = Accumulator(at), Accumulator(at)
    whole.visit(x)
    for part in x.split(sizes):
        split.visit(part)
    (a, one), (b, many) = whole.finish(), split.finish()
    np.testing.assert_array_equal(one.counts, many.counts)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-5)
    # sums of 5 to 270 float32 terms about different shifts
    np.testing.assert_allclose(a.variance, b.variance, rtol=1e-4)
    np.testing.assert_array_equal(a.maximum, b.maximum)
