"""What holds for every finite tensor, tiny and huge ones included, at every granularity."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitsense.numerics import (
    ALLOWED_BITS,
    Distribution,
    Format,
    PerChannel,
    PerGroup,
    PerHead,
    PerTensor,
    RangeMethod,
    cosine,
    fake_quantize,
    grid_from_distribution,
    grid_from_tensor,
    kl_nats,
    quantize,
)

SHAPE = (2, 3, 5)
ANY_FLOAT = st.floats(allow_nan=False, allow_infinity=False, width=32)
ARRAYS = hnp.arrays(np.float32, SHAPE, elements=ANY_FLOAT)
FORMATS = st.builds(Format, st.sampled_from(ALLOWED_BITS), signed=st.booleans())
METHODS = st.sampled_from(list(RangeMethod))
GRANULARITIES = st.sampled_from(
    [PerTensor(), PerChannel(0), PerChannel(-1), PerHead(1, heads=3), PerGroup(2), PerGroup(2, 1)]
)
LOGITS = hnp.arrays(np.float32, (3, 6), elements=st.floats(-1e4, 1e4, width=32))


@settings(max_examples=200, deadline=None)
@given(ARRAYS, FORMATS, GRANULARITIES, METHODS)
def test_rounding_is_idempotent_finite_and_on_the_grid(x, form, granularity, method) -> None:
    tensor = torch.from_numpy(x)
    grid = grid_from_tensor(tensor, form, granularity, method)
    assert ((grid.scale > 0) & grid.scale.isfinite()).all()
    assert torch.equal(grid.zero_point, grid.zero_point.round())
    codes = quantize(tensor, grid)
    assert form.qmin <= int(codes.min()) <= int(codes.max()) <= form.qmax
    once = fake_quantize(tensor, grid)
    assert torch.isfinite(once).all()
    assert torch.equal(fake_quantize(once, grid), once)
    assert torch.equal(quantize(once, grid), codes)


@settings(max_examples=100, deadline=None)
@given(ARRAYS, FORMATS, GRANULARITIES, METHODS)
def test_zero_stays_zero(x, form, granularity, method) -> None:
    tensor = torch.from_numpy(x)
    grid = grid_from_tensor(tensor, form, granularity, method)
    assert (fake_quantize(torch.zeros_like(tensor), grid) == 0).all()


@settings(max_examples=100, deadline=None)
@given(ARRAYS, FORMATS, GRANULARITIES)
def test_minmax_is_off_by_at_most_a_step(x, form, granularity) -> None:
    # an affine grid is moved by up to half a step so that zero is on it, and rounding adds half
    tensor = torch.from_numpy(np.clip(x, -1e37, 1e37))
    grid = grid_from_tensor(tensor, form, granularity, RangeMethod.MINMAX)
    steps = ((fake_quantize(tensor, grid) - tensor) / grid.scale).abs()
    slack = 4 * torch.finfo(torch.float32).eps * form.qmax
    assert steps.max() <= (0.5 if form.signed else 1.0) + slack


@settings(max_examples=60, deadline=None)
@given(ARRAYS, FORMATS)
def test_the_mse_range_is_never_worse_than_the_full_range(x, form) -> None:
    tensor = torch.from_numpy(np.clip(x, -1e4, 1e4))
    errors = []
    for method in (RangeMethod.MSE, RangeMethod.MINMAX):
        grid = grid_from_tensor(tensor, form, PerChannel(0), method)
        errors.append(float((fake_quantize(tensor, grid) - tensor).double().square().sum()))
    assert errors[0] <= errors[1] * (1 + 1e-5) + 1e-12


@settings(max_examples=100, deadline=None)
@given(ARRAYS, FORMATS, METHODS)
def test_a_range_scales_with_its_tensor(x, form, method) -> None:
    tensor = torch.from_numpy(np.clip(x, -1e20, 1e20))
    tensor = torch.where(tensor.abs() < 1e-15, 0.0, tensor)
    grids = [grid_from_tensor(t, form, PerChannel(1), method) for t in (tensor, tensor * 2.0**10)]
    some = tensor.abs().amax((0, 2)) > 0  # all-zero channels have the smallest scale instead
    small, large = (grid.scale.flatten()[some] for grid in grids)
    assert torch.equal(small * 2.0**10, large)


@settings(max_examples=100, deadline=None)
@given(ARRAYS, FORMATS, METHODS)
def test_histograms_give_scales_that_are_finite_with_zero_on_the_grid(x, form, method) -> None:
    centres, counts = np.unique(x.astype(np.float64), return_counts=True)
    values = Distribution(centres, counts.astype(np.float64), float(centres[0]), float(centres[-1]))
    grid = grid_from_distribution(values, form, method)
    assert 0 < float(grid.scale) < np.inf
    assert form.qmin <= float(grid.zero_point) <= form.qmax
    assert float(fake_quantize(torch.zeros(()), grid)) == 0
    if values.minimum >= 0:
        assert float(grid.zero_point) == 0


@settings(max_examples=100, deadline=None)
@given(LOGITS, LOGITS)
def test_distances_stay_in_their_ranges(a, b) -> None:
    one, other = torch.from_numpy(a), torch.from_numpy(b)
    divergence = kl_nats(one, other)
    assert torch.isfinite(divergence).all()
    assert (divergence >= 0).all()
    assert (kl_nats(one, one) == 0).all()
    assert (cosine(one, other).abs() <= 1).all()
