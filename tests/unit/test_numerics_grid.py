"""Formats, granularities and what they refuse."""

from __future__ import annotations

import pytest
import torch

from vitsense.errors import UserInputError
from vitsense.numerics import (
    ALLOWED_BITS,
    Format,
    Grid,
    PerChannel,
    PerGroup,
    PerHead,
    PerTensor,
    RangeMethod,
    fake_quantize,
    grid_from_tensor,
)


@pytest.mark.parametrize("bits", ALLOWED_BITS)
def test_codes_of_a_format(bits: int) -> None:
    assert (Format(bits).qmin, Format(bits).qmax) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    unsigned = Format(bits, signed=False)
    assert (unsigned.qmin, unsigned.qmax) == (0, 2**bits - 1)


@pytest.mark.parametrize("text", ["int1", "uint99", "int0", "int10"])
def test_a_format_of_another_width_names_the_allowed_ones(text: str) -> None:
    with pytest.raises(UserInputError, match=r"2, 3, 4, 5, 6, 7, 8, 16"):
        Format.parse(text)


def test_a_name_that_is_no_format_is_quoted_with_an_example() -> None:
    with pytest.raises(UserInputError, match=r"'fp8'.*2, 3, 4, 5, 6, 7, 8, 16.*int4"):
        Format.parse("fp8")


@pytest.mark.parametrize(
    ("granularity", "shape", "expected"),
    [
        (PerTensor(), (4, 6), ()),
        (PerChannel(0), (4, 6, 3, 3), (4, 1, 1, 1)),
        (PerChannel(-1), (4, 6), (1, 6)),
        (PerHead(-3, heads=3), (2, 3, 5, 7), (1, 3, 1, 1)),
        (PerHead(0, heads=2), (4, 6), (4, 1)),
        (PerGroup(4), (4, 6), (4, 6)),
        (PerGroup(2, axis=1), (4, 6, 3, 3), (4, 6, 3, 3)),
    ],
)
@pytest.mark.parametrize("method", RangeMethod)
def test_scales_have_the_promised_shape(granularity, shape, expected, method) -> None:
    x = torch.randn(shape)
    assert granularity.scale_shape(shape) == expected
    grid = grid_from_tensor(x, Format(4), granularity, method)
    assert grid.scale.shape == grid.zero_point.shape == expected
    assert grid.scale.dtype is torch.float32
    assert fake_quantize(x, grid).shape == shape


@pytest.mark.parametrize("heads", [0, 5, 8])
def test_heads_that_do_not_divide_the_axis_are_refused(heads: int) -> None:
    with pytest.raises(UserInputError, match=f"length 4, which {heads} heads do not divide"):
        grid_from_tensor(torch.ones(4, 6), Format(4), PerHead(0, heads), RangeMethod.MINMAX)


@pytest.mark.parametrize("size", [0, -1])
def test_a_group_without_members_is_refused(size: int) -> None:
    with pytest.raises(UserInputError, match="1 or more"):
        PerGroup(size)


def test_a_grid_of_another_shape_is_refused() -> None:
    grid = grid_from_tensor(torch.randn(4, 6), Format(4), PerChannel(0), RangeMethod.MINMAX)
    with pytest.raises(UserInputError, match=r"\(4, 1\) does not fit a tensor of shape \(6,\)"):
        fake_quantize(torch.randn(6), grid)


def test_the_ends_of_a_grid() -> None:
    grid = Grid(Format(4, signed=False), torch.tensor(0.5), torch.tensor(3.0))
    assert (float(grid.low), float(grid.high)) == (-1.5, 6.0)
    moved = grid.to(torch.device("meta"))
    assert moved.scale.device.type == moved.zero_point.device.type == "meta"
    assert moved.format == grid.format


def test_a_group_of_input_channels_of_a_convolution_shares_its_scale() -> None:
    x = torch.randn(2, 5, 3, 3)
    grid = grid_from_tensor(x, Format(8), PerGroup(2, axis=1), RangeMethod.ABSMAX)
    for channels in (slice(0, 2), slice(2, 4), slice(4, 5)):  # the last is short
        # along axis 1 only: every kernel position has groups of its own
        top = x[:, channels].abs().amax(1, keepdim=True) / 127
        torch.testing.assert_close(grid.scale[:, channels], top.expand_as(x[:, channels]))


def test_heads_and_short_groups_are_scaled_as_if_they_were_alone() -> None:
    x = torch.randn(12, 10) * torch.logspace(-1, 1, 12)[:, None]
    heads = grid_from_tensor(x, Format(4), PerHead(0, heads=3), RangeMethod.MINMAX)
    assert len(set(heads.scale.flatten().tolist())) == 3
    for h in range(3):
        rows = slice(4 * h, 4 * h + 4)
        one = grid_from_tensor(x[rows], Format(4), PerTensor(), RangeMethod.MINMAX)
        assert torch.equal(fake_quantize(x, heads)[rows], fake_quantize(x[rows], one))
    groups = grid_from_tensor(x, Format(4), PerGroup(4), RangeMethod.MINMAX)
    one = grid_from_tensor(x[2:3, 8:], Format(4), PerTensor(), RangeMethod.MINMAX)
    assert torch.equal(fake_quantize(x, groups)[2, 8:], fake_quantize(x[2, 8:], one))


@pytest.mark.parametrize("bits", ALLOWED_BITS)
@pytest.mark.parametrize("signed", [True, False])
def test_format_names_round_trip(bits: int, signed: bool) -> None:
    form = Format(bits, signed=signed)
    assert Format.parse(form.name) == form


@pytest.mark.parametrize("text", ["", "int", "float8", "int4x", "4", "INT4"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(UserInputError, match="no number format"):
        Format.parse(text)


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 33, 99])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(UserInputError, match="use 2, 3, 4"):
        Format(bits)
