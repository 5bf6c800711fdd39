"""Ranges of tensors that are extreme, empty or not finite, and what each method clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitsense.errors import MeasurementError, UserInputError
from vitsense.numerics import (
    Distribution,
    Format,
    PerChannel,
    PerGroup,
    PerTensor,
    RangeMethod,
    fake_quantize,
    grid_from_distribution,
    grid_from_tensor,
)
from vitsense.numerics.least_error import RANGE_LIMIT, SCALE_FLOOR
from vitsense.numerics.ranges import laplace_reach


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_reach_for_a_laplace_distribution_has_the_least_error(bits: int) -> None:
    """Noise of a uniform step inside and what is cut off outside, integrated as it stands."""

    def error(reach: float) -> float:
        step = 2 * reach / 2**bits
        x = np.linspace(reach, reach + 60, 200_001)
        density = np.exp(-np.sqrt(2) * x) / np.sqrt(2)
        return step**2 / 12 + 2 * np.trapezoid((x - reach) ** 2 * density, x)

    best = laplace_reach(bits)
    assert error(best) < min(error(0.97 * best), error(1.03 * best))


FORMATS = [Format(b, signed=s) for b in (2, 4, 8, 16) for s in (True, False)]
LARGEST = torch.finfo(torch.float32).max
EPS = torch.finfo(torch.float32).eps


def named(form: Format) -> str:
    return form.name


def distribution(x: np.ndarray) -> Distribution:
    values, counts = np.unique(x.astype(np.float64), return_counts=True)
    return Distribution(values, counts.astype(np.float64), float(x.min()), float(x.max()))


@pytest.mark.parametrize("method", RangeMethod)
@pytest.mark.parametrize("form", FORMATS, ids=named)
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 1e38, LARGEST])
def test_scales_are_finite_and_never_zero(method, form, value: float) -> None:
    for x in (
        torch.full((2, 8), value),
        torch.full((2, 8), -value),
        torch.tensor([[-value, value, 0.0, value / 3]]),
    ):
        of_rows = grid_from_tensor(x, form, PerChannel(0), method)
        of_bins = grid_from_distribution(distribution(x.numpy()), form, method)
        for grid in (of_rows, of_bins):
            assert (grid.scale >= SCALE_FLOOR).all()
            assert (grid.scale <= 2 * RANGE_LIMIT).all()
            assert ((grid.zero_point >= form.qmin) & (grid.zero_point <= form.qmax)).all()
            assert torch.isfinite(fake_quantize(x, grid)).all()
            assert torch.isfinite(torch.stack([grid.low, grid.high])).all()


@pytest.mark.parametrize("method", RangeMethod)
@pytest.mark.parametrize("form", FORMATS, ids=named)
@pytest.mark.parametrize("value", [1e-30, 0.3, 7.0, 1e30, -1e-30, -0.3, -7.0, -1e30])
def test_a_constant_comes_back(method, form, value: float) -> None:
    x = torch.full((3, 5), value)
    for grid in (
        grid_from_tensor(x, form, PerChannel(0), method),
        grid_from_distribution(distribution(x.numpy()), form, method),
    ):
        # the scale, its reciprocal and the product back are rounded once each
        torch.testing.assert_close(fake_quantize(x, grid), x, rtol=2 * EPS, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", RangeMethod)
def test_a_tensor_that_is_not_finite_is_refused(method, bad: float) -> None:
    x = torch.ones(3, 4)
    x[1, 2] = bad
    with pytest.raises(MeasurementError, match="not finite"):
        grid_from_tensor(x, Format(4), PerChannel(0), method)
    values = Distribution(np.array([1.0]), np.array([1.0]), min(bad, 0.0), bad)
    with pytest.raises(MeasurementError, match="finite"):
        grid_from_distribution(values, Format(4), method)


def test_nothing_has_no_range() -> None:
    with pytest.raises(MeasurementError, match="empty"):
        grid_from_tensor(torch.ones(3, 0), Format(4), PerChannel(0), RangeMethod.MINMAX)
    nothing = Distribution(np.zeros(0), np.zeros(0), 0.0, 0.0)
    with pytest.raises(MeasurementError, match="0 bins"):
        grid_from_distribution(nothing, Format(4), RangeMethod.MSE)


@pytest.mark.parametrize("share", [-0.1, 0.5, 1.0, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(share: float) -> None:
    x = torch.randn(3, 4)
    with pytest.raises(UserInputError, match="clipped share"):
        grid_from_tensor(x, Format(4), PerTensor(), RangeMethod.PERCENTILE, clipped_share=share)
    with pytest.raises(UserInputError, match="clipped share"):
        grid_from_distribution(
            distribution(x.numpy()), Format(4), RangeMethod.PERCENTILE, clipped_share=share
        )


def test_absmax_and_minmax_of_a_lopsided_tensor() -> None:
    x = torch.tensor([[-1.0, 0.5, 4.0], [-4.0, 1.0, 2.0]])

    def scales(form: Format, method: RangeMethod) -> list[float]:
        return grid_from_tensor(x, form, PerChannel(0), method).scale.flatten().tolist()

    signed, unsigned = Format(4), Format(4, signed=False)
    assert scales(signed, RangeMethod.ABSMAX) == pytest.approx([4 / 7, 4 / 7])
    assert scales(signed, RangeMethod.MINMAX) == pytest.approx([4 / 7, 4 / 8])
    assert scales(unsigned, RangeMethod.ABSMAX) == pytest.approx([8 / 15, 8 / 15])
    assert scales(unsigned, RangeMethod.MINMAX) == pytest.approx([5 / 15, 6 / 15])


@pytest.mark.parametrize("method", RangeMethod)
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_tensor_without_negative_values_gets_zero_point_zero(method, bits: int) -> None:
    x = np.random.default_rng(0).beta(0.5, 40, size=4000).astype(np.float32)
    form = Format(bits, signed=False)
    grids = (
        grid_from_tensor(torch.from_numpy(x), form, PerTensor(), method),
        grid_from_distribution(distribution(x), form, method),
    )
    for grid in grids:
        assert float(grid.zero_point) == 0
        assert float(grid.low) == 0


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.01, 0.2])
def test_percentiles_of_rows_equal_numpy(share: float) -> None:
    x = torch.randn(5, 333)
    form = Format(8, signed=False)
    grid = grid_from_tensor(x, form, PerChannel(0), RangeMethod.PERCENTILE, clipped_share=share)
    low, high = np.quantile(x.double().numpy(), [share, 1 - share], axis=1)
    torch.testing.assert_close(
        grid.scale.flatten(), torch.from_numpy((high - low) / 255).float(), rtol=4 * EPS, atol=0
    )


def test_percentiles_of_a_histogram_clip_what_they_say() -> None:
    x = np.arange(-500, 1501)
    grid = grid_from_distribution(
        distribution(x), Format(16, signed=False), RangeMethod.PERCENTILE, clipped_share=0.1
    )
    step = float(grid.scale)
    assert float(grid.low) == pytest.approx(-300, abs=1 + step)
    assert float(grid.high) == pytest.approx(1300, abs=1 + step)


def test_padding_of_a_short_group_is_not_counted_by_percentiles() -> None:
    x = torch.tensor([[9.0, 9.0, 9.0, 9.0, 1.0, 2.0]])
    grid = grid_from_tensor(
        x, Format(8, signed=False), PerGroup(4), RangeMethod.PERCENTILE, clipped_share=0.4
    )
    # 60 % of the way from 1 to 2; with two zeros counted it would be 0.8
    assert float(grid.scale[0, 5]) * 255 == pytest.approx(1.6)


def test_ranges_of_half_precision_weights_are_found_in_float32() -> None:
    x = torch.randn(4, 50).bfloat16()
    for method in RangeMethod:
        half = grid_from_tensor(x, Format(4), PerChannel(0), method)
        full = grid_from_tensor(x.float(), Format(4), PerChannel(0), method)
        assert torch.equal(half.scale, full.scale)


def test_a_weight_that_is_trained_is_left_out_of_the_graph() -> None:
    x = torch.randn(4, 5, requires_grad=True)
    for method in RangeMethod:
        assert not grid_from_tensor(x, Format(4), PerChannel(0), method).scale.requires_grad


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, 64)
    whole = grid_from_tensor(x, Format(3), PerChannel(0), RangeMethod.MSE)
    monkeypatch.setattr("vitsense.numerics.least_error._CPU_CHUNK", 3 * 64)
    pieces = grid_from_tensor(x, Format(3), PerChannel(0), RangeMethod.MSE)
    assert torch.equal(whole.scale, pieces.scale)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", RangeMethod)
def test_a_gpu_gives_the_same_grid_and_the_same_numbers(method) -> None:
    x = torch.randn(16, 64)
    for form in (Format(4), Format(4, signed=False)):
        here = grid_from_tensor(x, form, PerChannel(0), method)
        there = grid_from_tensor(x.cuda(), form, PerChannel(0), method)
        # sums in another order may decide between neighbouring parts of the range
        torch.testing.assert_close(there.scale.cpu(), here.scale, rtol=0.03, atol=0)
        moved = here.to(torch.device("cuda"))
        assert torch.equal(fake_quantize(x.cuda(), moved).cpu(), fake_quantize(x, here))
