"""Accumulator: every layout of a tensor gives the right groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vitsense.errors import MeasurementError
from vitsense.sites import Site, SiteRole
from vitsense.statistics import accumulate
from vitsense.statistics.accumulate import Accumulator


def site(role: SiteRole, channel_axis: int | None, head_axis: int | None = None) -> Site:
    return Site(
        module="blocks.0.fc",
        role=role,
        tensor="blocks.0.fc:t",
        channel_axis=channel_axis,
        head_axis=head_axis,
    )


INPUT = site(SiteRole.INPUT, -1)


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def by_group(x: torch.Tensor, axes: tuple[int, ...]) -> np.ndarray:
    """`(elements, G)`, groups running over ``axes`` in that order."""
    rest = [a for a in range(x.dim()) if a not in [b % x.dim() for b in axes]]
    moved = x.permute(*rest, *[a % x.dim() for a in axes])
    return moved.reshape(-1, math.prod(x.shape[a] for a in axes)).double().numpy()


LAYOUTS = {
    "linear input": (INPUT, (4, 7, 12), (-1,)),
    "linear input of one row per image": (INPUT, (4, 12), (-1,)),
    "convolution input": (site(SiteRole.INPUT, -3), (2, 5, 6, 7), (-3,)),
    "linear weight": (site(SiteRole.WEIGHT, -2), (8, 12), (0,)),
    "convolution weight": (site(SiteRole.WEIGHT, -4), (8, 3, 2, 2), (0,)),
    "query": (site(SiteRole.QUERY, -1, -3), (2, 3, 7, 4), (-3, -1)),
    "transposed key": (site(SiteRole.KEY, -2, -3), (2, 3, 4, 7), (-3, -2)),
    "attention of flattened heads": (site(SiteRole.KEY, -2), (6, 4, 7), (-2,)),
    "probabilities": (site(SiteRole.ATTENTION_PROBS, None, -3), (2, 3, 7, 7), (-3,)),
    "windowed probabilities": (site(SiteRole.ATTENTION_PROBS, None, -3), (2, 4, 3, 5, 5), (-3,)),
}


@pytest.mark.parametrize("chunk", [5, 1 << 18])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_are_the_channels_or_the_heads(
    layout: str, chunk: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(accumulate, "_CHUNK", chunk)
    at, shape, axes = LAYOUTS[layout]
    x = seeded(*shape) * 2 + 1
    accumulator = Accumulator(at)
    accumulator.visit(x)
    moments, histogram = accumulator.finish()
    groups = by_group(x, axes)
    assert moments.groups == groups.shape[1]
    np.testing.assert_array_equal(moments.count, len(groups))
    np.testing.assert_allclose(moments.mean, groups.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.variance, groups.var(0), rtol=1e-5)
    np.testing.assert_allclose(moments.abs_mean, np.abs(groups).mean(0), rtol=1e-5)
    np.testing.assert_array_equal(moments.minimum, groups.min(0))
    np.testing.assert_array_equal(moments.maximum, groups.max(0))
    assert histogram.total == x.numel()


def test_operands_without_channels_and_heads_are_one_group():
    accumulator = Accumulator(site(SiteRole.LEFT, None))
    x = seeded(3, 4, 5)
    accumulator.visit(x)
    moments, _ = accumulator.finish()
    assert moments.groups == 1
    assert moments.mean[0] == pytest.approx(float(x.double().mean()), rel=1e-5)
    assert accumulator.heads is None


def test_heads_are_read_from_the_head_axis():
    accumulator = Accumulator(site(SiteRole.QUERY, -1, -3))
    accumulator.visit(seeded(2, 3, 7, 4))
    assert accumulator.heads == 3


def test_a_slice_of_a_fused_projection_is_read_in_place():
    fused = seeded(2, 7, 3, 2, 4)  # (B, N, 3, H, D)
    query = fused.permute(2, 0, 3, 1, 4)[0]
    grouped = accumulate._grouped(query, site(SiteRole.QUERY, -1, -3))
    assert grouped.data_ptr() == query.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_read_as_float32(dtype: torch.dtype):
    x = seeded(16, 12).to(dtype)
    accumulator = Accumulator(INPUT)
    accumulator.visit(x)
    moments, histogram = accumulator.finish()
    np.testing.assert_allclose(moments.variance, x.float().double().numpy().var(0), rtol=1e-5)
    assert histogram.total == x.numel()


def test_several_visits_count_as_one_concatenated_tensor():
    parts = [seeded(3, 5, 12), seeded(1, 5, 12) * 4 + 2, seeded(2, 5, 12) - 9]
    accumulator = Accumulator(INPUT)
    for part in parts:
        accumulator.visit(part)
    moments, _ = accumulator.finish()
    whole = torch.cat(parts).double().reshape(-1, 12).numpy()
    np.testing.assert_allclose(moments.variance, whole.var(0), rtol=1e-5)
    np.testing.assert_array_equal(moments.count, 30)


def test_a_weight_counts_once_however_often_it_is_used():
    accumulator = Accumulator(site(SiteRole.WEIGHT, -2))
    for _ in range(3):
        accumulator.visit(seeded(8, 12))
    moments, histogram = accumulator.finish()
    assert moments.count.sum() == histogram.total == 96


def test_tiny_weights_keep_their_kurtosis():
    # dead channels of trained models: the fourth power would vanish in float32
    x = seeded(4, 500) * 1e-15
    accumulator = Accumulator(site(SiteRole.WEIGHT, -2))
    accumulator.visit(x)
    moments, _ = accumulator.finish()
    d = x.double().numpy() - x.double().numpy().mean(1, keepdims=True)
    exact = (d**4).mean(1) / (d**2).mean(1) ** 2 - 3
    np.testing.assert_allclose(moments.kurtosis, exact, rtol=1e-6)


def test_memory_does_not_grow_with_the_number_of_visits():
    accumulator = Accumulator(INPUT)
    sizes = set()
    for _ in range(4):
        accumulator.visit(seeded(64, 12))
        state = accumulator._sums
        assert state is not None
        assert accumulator._counts is not None
        sizes.add(state.sums.nbytes + state.shift.nbytes + accumulator._counts.nbytes)
    assert len(sizes) == 1


def test_the_tensor_is_left_as_it_was():
    x = seeded(4, 7, 12)
    before = x.clone()
    Accumulator(INPUT).visit(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("visit", [0, 1])
def test_values_that_are_not_finite_are_an_error_that_names_the_site(bad: float, visit: int):
    accumulator = Accumulator(INPUT)
    for number in range(2):
        x = seeded(4, 12)
        if number == visit:
            x[2, 3] = bad
        accumulator.visit(x)
    with pytest.raises(MeasurementError, match=r"blocks\.0\.fc:input.*not finite"):
        accumulator.finish()


def test_values_whose_fourth_power_overflows_are_an_error_that_says_so():
    accumulator = Accumulator(INPUT)
    accumulator.visit(seeded(4, 12) * 1e12)
    with pytest.raises(MeasurementError, match=r"blocks\.0\.fc:input.*range of float32"):
        accumulator.finish()


def test_a_site_that_saw_nothing_is_an_error_that_names_it():
    with pytest.raises(MeasurementError, match=r"blocks\.0\.fc:input.*saw no tensor"):
        Accumulator(INPUT).finish()


def test_large_tensors_are_sampled_and_small_ones_counted_whole():
    small, large = seeded(1 << 17), seeded(1 << 19)
    for x, most in ((small, len(small)), (large, accumulate._COUNTED)):
        accumulator = Accumulator(site(SiteRole.LEFT, None))
        accumulator.visit(x)
        _, histogram = accumulator.finish()
        assert 0.75 * most <= histogram.total <= most


@pytest.mark.parametrize("shape", [(16, 197, 192), (8, 197, 768), (64, 49, 384), (4, 64, 112, 112)])
def test_the_sample_meets_every_channel_equally(shape: tuple[int, ...]):
    elements, last = math.prod(shape), shape[-1]
    met = np.bincount(np.arange(0, elements, accumulate._stride(elements)) % last, minlength=last)
    assert met.max() - met.min() <= 1


def test_a_sampled_share_agrees_within_its_standard_error():
    x = seeded(1 << 21)
    accumulator = Accumulator(site(SiteRole.LEFT, None))
    accumulator.visit(x)
    _, histogram = accumulator.finish()
    p = 0.1
    error = math.sqrt(p * (1 - p) / histogram.total)
    beyond = float((x < histogram.quantile(p)).double().mean())
    # five standard errors, and the width of one bin around the quantile (density 0.175)
    assert abs(beyond - p) <= 5 * error + 0.175 * 1.28 * 2.0**-6


@pytest.mark.parametrize(("mean", "offset"), [(0.0, 0.0), (2.0, 0.0), (-1000.0, -1000.0)])
def test_only_values_far_from_zero_are_counted_from_their_mean(mean: float, offset: float):
    accumulator = Accumulator(site(SiteRole.LEFT, None))
    for _ in range(2):
        accumulator.visit(seeded(4000) + mean)
    _, histogram = accumulator.finish()
    assert histogram.offset == pytest.approx(offset, abs=0.1 if offset else 0)
    assert histogram.total == 8000
    assert histogram.quantile(0.5) == pytest.approx(mean, abs=0.1)
