"""Range searches against brute force, over heavy tails, outliers and the statistics' histogram."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate

from vitsense.numerics import (
    Distribution,
    Format,
    PerChannel,
    PerGroup,
    PerHead,
    RangeMethod,
    fake_quantize,
    grid_from_distribution,
    grid_from_tensor,
)
from vitsense.numerics.least_error import _bins, _errors
from vitsense.statistics.histogram import BINS, SHIFT, Histogram

MEMBERS = 768


def rows(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, MEMBERS))
    if kind == "uniform":
        x = rng.uniform(-1, 1, size=(6, MEMBERS))
    if kind == "heavy":
        x = rng.standard_t(3, size=(6, MEMBERS))
    if kind == "outlier":
        x[:, 0] = 40 * np.sign(x[:, 1])
    return x.astype(np.float32)


def brute_rows(x: np.ndarray, form: Format) -> np.ndarray:
    """Least squared error of each row over 3,000 scales, float64, one row at a time."""
    best = np.full(len(x), np.inf)
    for i, row in enumerate(x.astype(np.float64)):
        full = max(-row.min() / -form.qmin, row.max() / form.qmax)
        for scale in full * np.geomspace(0.005, 1, 3000):
            codes = np.clip(np.rint(row / scale), form.qmin, form.qmax)
            best[i] = min(best[i], float(((codes * scale - row) ** 2).sum()))
    return best


@pytest.mark.parametrize("kind", ["normal", "uniform", "heavy", "outlier"])
# at 8 bits the best of 3,000 scales is a lucky fit to 768 values that 25 scales do not meet
@pytest.mark.parametrize(("bits", "slack"), [(2, 1.01), (3, 1.01), (4, 1.02), (8, 1.15)])
def test_the_search_over_rows_finds_the_least_error(kind: str, bits: int, slack: float) -> None:
    x, form = rows(kind), Format(bits)
    tensor = torch.from_numpy(x)
    grid = grid_from_tensor(tensor, form, PerChannel(0), RangeMethod.MSE)
    found = (fake_quantize(tensor, grid) - tensor).double().square().sum(1).numpy()
    assert (found <= brute_rows(x, form) * slack).all()


@pytest.mark.parametrize("granularity", [PerHead(0, heads=3), PerGroup(100)], ids=repr)
def test_shared_scales_are_searched_over_all_who_share_them(granularity) -> None:
    x, form = rows("heavy"), Format(3)
    tensor = torch.from_numpy(x)
    grid = grid_from_tensor(tensor, form, granularity, RangeMethod.MSE)
    squares = (fake_quantize(tensor, grid) - tensor).double().square().numpy()
    if isinstance(granularity, PerHead):
        found, members = squares.reshape(3, -1).sum(1), x.reshape(3, -1)
        assert (found <= brute_rows(members, form) * 1.01).all()
    else:
        for start in (0, 300, 700):  # the last group has 68 members
            part = slice(start, start + 100)
            best = brute_rows(x[:, part], form)
            # few members: luck decides more
            assert (squares[:, part].sum(1) <= best * 1.02).all()


def activations(kind: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = rng.normal(size=40_000)
    if kind == "gelu":
        x = x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
    if kind == "relu":
        x = np.maximum(x, 0)
    if kind == "massive":  # a few values a hundred times the rest, as some ViT blocks have
        x[:20] = 120
    if kind == "massive both":
        x[:20] = 120 * np.sign(x[:20])
    if kind == "attention":
        rising = np.exp(2 * rng.normal(size=(200, 200)))
        x = (rising / rising.sum(1, keepdims=True)).ravel()
    return x.astype(np.float32)


def seen(x: np.ndarray) -> Distribution:
    """``x`` as the statistics see it: bins of 6 mantissa bits."""
    counts = np.bincount(x.view(np.uint32) >> SHIFT, minlength=BINS)
    histogram = Histogram(counts, float(x.min()), float(x.max()))
    centres, weights = histogram.distribution()
    return Distribution(centres, weights.astype(np.float64), histogram.minimum, histogram.maximum)


def squared_error(x: np.ndarray, scale: float, zero: float, form: Format) -> float:
    codes = np.clip(np.rint(x / scale) + zero, form.qmin, form.qmax)
    return float((((codes - zero) * scale - x) ** 2).sum())


@pytest.mark.parametrize("kind", ["normal", "gelu", "relu", "massive", "massive both", "attention"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_search_over_both_ends_finds_the_least_error(kind: str, bits: int) -> None:
    x, form = activations(kind), Format(bits, signed=False)
    grid = grid_from_distribution(seen(x), form, RangeMethod.MSE)
    wide = x.astype(np.float64)
    found = squared_error(wide, float(grid.scale), float(grid.zero_point), form)
    low, high = min(wide.min(), 0.0), max(wide.max(), 0.0)
    few = wide[::10]  # brute force finds its ends on a tenth, and is judged on all
    tried = []
    for a in np.append(np.geomspace(0.01, 1, 24), 0) if low < 0 else [1.0]:
        for b in np.geomspace(0.01, 1, 40):
            scale = (high * b - low * a) / form.qmax
            zero = np.clip(np.rint(-low * a / scale), 0, form.qmax)
            tried.append((squared_error(few, scale, zero, form), scale, zero))
    best = min(squared_error(wide, s, z, form) for _, s, z in sorted(tried)[:10])
    assert found <= best * 1.02
    if low == 0:
        assert float(grid.zero_point) == 0


@pytest.mark.parametrize("form", [Format(3), Format(3, signed=False)], ids=lambda f: f.name)
def test_the_error_of_a_bin_is_the_integral_over_it(form: Format) -> None:
    centres = np.linspace(-2.0, 3.0, 401)
    counts = np.random.default_rng(2).integers(1, 9, size=401).astype(np.float64)
    bins = _bins(Distribution(centres, counts, -2.0, 3.0))
    low, high = -1.1, 1.9
    found = _errors(bins, form, np.array([[low]]), np.array([[high]]))[0]
    scale = max(-low / -form.qmin, high / form.qmax) if form.signed else (high - low) / form.qmax
    zero = 0.0 if form.signed else np.rint(-low / scale)

    def error(value: float) -> float:
        code = np.clip(np.rint(value / scale) + zero, form.qmin, form.qmax)
        return float(((code - zero) * scale - value) ** 2)

    expected = 0.0
    for start, end, count in zip(bins.low, bins.high, bins.counts, strict=True):
        if end == start:
            expected += count * error(start)
            continue
        kinks = [(code + 0.5 - zero) * scale for code in range(form.qmin, form.qmax)]
        inside = [kink for kink in kinks if start < kink < end] or None
        mean = integrate.quad(error, start, end, points=inside)[0] / (end - start)
        expected += count * mean
    assert found == pytest.approx(expected, rel=1e-9)


def test_bins_hold_what_the_distribution_holds() -> None:
    values = seen(activations("gelu"))
    bins = _bins(values)
    assert bins.counts.sum() == values.counts.sum()
    assert (bins.low <= bins.high).all()
    # halves of neighbouring gaps: bins never overlap by more than rounding
    assert (bins.low[1:] >= bins.high[:-1] - 1e-12).all()
    middle = (bins.low + bins.high) / 2
    assert middle @ bins.counts == pytest.approx(values.centres @ values.counts, rel=1e-3)


def test_a_few_discrete_values_are_points() -> None:
    """0, 1, 2, 3 fit two bits without error, and the search must see that."""
    values = Distribution(np.arange(4.0), np.array([9.0, 5.0, 3.0, 1.0]), 0.0, 3.0)
    grid = grid_from_distribution(values, Format(2, signed=False), RangeMethod.MSE)
    assert fake_quantize(torch.arange(4.0), grid).tolist() == [0, 1, 2, 3]
