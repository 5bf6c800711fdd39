"""What holds for every tensor, format and method."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitsense.errors import UserInputError
from vitsense.numerics.fake_quant import fake_quantize, quantize
from vitsense.numerics.grid import ALLOWED_BITS, Format, PerChannel, PerTensor
from vitsense.numerics.ranges import RangeMethod, grid_from_tensor

ARRAYS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=8),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)
FORMATS = st.builds(Format, st.sampled_from([2, 3, 4, 8]), signed=st.booleans())
METHODS = st.sampled_from(list(RangeMethod))


@settings(max_examples=60, deadline=None)
@given(ARRAYS, FORMATS, METHODS, st.booleans())
def test_fake_quantization_is_idempotent_and_stays_on_the_grid(
    x, form, method, per_channel
) -> None:
    tensor = torch.from_numpy(x)
    granularity = PerChannel(0) if per_channel else PerTensor()
    grid = grid_from_tensor(tensor, form, granularity, method)
    once = fake_quantize(tensor, grid)
    assert torch.equal(fake_quantize(once, grid), once)
    codes = quantize(tensor, grid)
    assert int(codes.min()) >= form.qmin
    assert int(codes.max()) <= form.qmax
    assert torch.isfinite(once).all()


@settings(max_examples=40, deadline=None)
@given(ARRAYS, st.sampled_from([3, 4, 6]))
def test_the_mse_range_is_never_worse_than_the_full_range(x, bits) -> None:
    tensor, form = torch.from_numpy(x), Format(bits)
    errors = [
        float(
            (fake_quantize(tensor, grid_from_tensor(tensor, form, PerChannel(0), m)) - tensor)
            .double()
            .square()
            .sum()
        )
        for m in (RangeMethod.MSE, RangeMethod.MINMAX)
    ]
    assert errors[0] <= errors[1] * (1 + 1e-5) + 1e-12


@given(st.sampled_from(ALLOWED_BITS), st.booleans())
def test_format_names_round_trip(bits: int, signed: bool) -> None:
    form = Format(bits, signed=signed)
    assert Format.parse(form.name) == form
    assert form.qmax - form.qmin + 1 == 2**bits


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 33, 99])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(UserInputError, match="use 2, 3, 4"):
        Format(bits)


@pytest.mark.parametrize("text", ["", "int", "float8", "int4x", "4", "INT4"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(UserInputError, match="no number format"):
        Format.parse(text)
