"""The one rounding path against torch's kernels in every type, and against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitsense.numerics import (
    ALLOWED_BITS,
    Format,
    Grid,
    PerChannel,
    PerGroup,
    PerHead,
    PerTensor,
    RangeMethod,
    dequantize,
    fake_quantize,
    grid_from_tensor,
    quantize,
)

FORMATS = [Format(bits, signed=signed) for bits in ALLOWED_BITS for signed in (True, False)]
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def named(value: object) -> str:
    return value.name if isinstance(value, Format) else str(value).removeprefix("torch.")


def hard(dtype: torch.dtype) -> torch.Tensor:
    """Values of every size, of both signs, many near the middle between two codes of 0.1."""
    generator = torch.Generator().manual_seed(3)
    spread = torch.randn(12, 500, generator=generator) * torch.logspace(-3, 3, 12)[:, None]
    middles = (torch.arange(-3000, 3000) + 0.5).reshape(12, 500) * 0.1
    return torch.cat([spread, middles, -middles * (1 + 1e-7), torch.zeros(12, 2)], dim=1).to(dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=named)
@pytest.mark.parametrize("form", FORMATS, ids=named)
def test_every_type_and_format_equals_torch_per_tensor(form: Format, dtype: torch.dtype) -> None:
    x = hard(dtype)
    for zero in sorted({form.qmin, 0, form.qmax // 3, form.qmax}):
        for scale in (0.1, 0.125, 3e-4, 7.0):
            grid = Grid(form, torch.tensor(scale), torch.tensor(float(zero)))
            expected = torch.fake_quantize_per_tensor_affine(x, scale, zero, form.qmin, form.qmax)
            found = fake_quantize(x, grid)
            assert found.dtype is dtype
            if dtype is torch.float64:
                # this kernel of torch's rounds a float64 product to float32; its other does not
                found = found.float().double()
            assert torch.equal(found, expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", TYPES, ids=named)
@pytest.mark.parametrize("form", FORMATS, ids=named)
def test_every_type_and_format_equals_torch_per_channel(
    form: Format, dtype: torch.dtype, axis: int
) -> None:
    x = hard(dtype)[:, :600].reshape(12, 20, 30)
    generator = torch.Generator().manual_seed(4)
    count = x.shape[axis]
    scales = torch.rand(count, generator=generator) * 0.3 + 1e-3
    zeros = torch.randint(form.qmin, form.qmax + 1, (count,), generator=generator)
    shape = PerChannel(axis).scale_shape(tuple(x.shape))
    grid = Grid(form, scales.reshape(shape), zeros.float().reshape(shape))
    expected = torch.fake_quantize_per_channel_affine(
        x, scales, zeros.to(torch.int32), axis, form.qmin, form.qmax
    )
    assert torch.equal(fake_quantize(x, grid), expected)


@pytest.mark.parametrize(
    "granularity", [PerTensor(), PerChannel(1), PerHead(-3, heads=3), PerGroup(4)], ids=repr
)
@pytest.mark.parametrize("signed", [True, False])
def test_every_granularity_equals_torch_number_by_number(granularity, signed: bool) -> None:
    x = torch.randn(2, 3, 4, 6)
    form = Format(4, signed=signed)
    grid = grid_from_tensor(x, form, granularity, RangeMethod.MINMAX)
    scale, zero = (side.expand(x.shape).flatten() for side in (grid.scale, grid.zero_point))
    expected = torch.fake_quantize_per_channel_affine(
        x.flatten(), scale.contiguous(), zero.to(torch.int32), 0, form.qmin, form.qmax
    )
    assert torch.equal(fake_quantize(x, grid), expected.reshape(x.shape))


@pytest.mark.parametrize("form", FORMATS, ids=named)
def test_fake_quantization_is_dequantized_codes(form: Format) -> None:
    x = torch.randn(6, 40)
    grid = grid_from_tensor(x, form, PerChannel(0), RangeMethod.MINMAX)
    codes = quantize(x, grid)
    assert codes.dtype is torch.int32
    assert torch.equal(dequantize(codes, grid), fake_quantize(x, grid))
    assert torch.equal(quantize(dequantize(codes, grid), grid), codes)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=named)
def test_half_precision_up_to_eight_bits_is_idempotent(bits: int, dtype: torch.dtype) -> None:
    # 8 significant bits of bfloat16: a code up to 255 is off by less than half after rounding
    x = torch.randn(8, 300).to(dtype)
    grid = grid_from_tensor(x, Format(bits, signed=False), PerTensor(), RangeMethod.MINMAX)
    once = fake_quantize(x, grid)
    assert torch.equal(fake_quantize(once, grid), once)


def test_huge_values_are_clipped_to_the_near_end_and_nan_is_kept() -> None:
    """torch's kernels give one end of the grid for all of these: a deviation on purpose."""
    grid = Grid(Format(4, signed=False), torch.tensor(0.1), torch.tensor(3.0))
    x = torch.tensor([torch.inf, 3e38, 1e30, -torch.inf, -3e38, torch.nan])
    found = fake_quantize(x, grid)
    assert torch.equal(found[:3], grid.high.expand(3))
    assert torch.equal(found[3:5], grid.low.expand(2))
    assert torch.isnan(found[5])


def test_the_input_is_left_alone_and_no_gradient_is_needed() -> None:
    x = torch.randn(4, 5, requires_grad=True)
    before = x.detach().clone()
    grid = grid_from_tensor(x, Format(4), PerChannel(0), RangeMethod.MINMAX)
    with torch.no_grad():
        quiet = fake_quantize(x, grid)
    loud = fake_quantize(x, grid)
    loud.sum().backward()
    assert torch.equal(quiet, loud.detach())
    assert torch.equal(x.detach(), before)
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_strided_views_round_like_copies() -> None:
    x = torch.randn(2, 3, 6, 8)
    grid = grid_from_tensor(x, Format(4), PerHead(-3, heads=3), RangeMethod.MINMAX)
    view = x.transpose(-1, -2)
    assert torch.equal(fake_quantize(view, grid), fake_quantize(x, grid).transpose(-1, -2))


@pytest.mark.parametrize("ties", [0.5, 1.5, 2.5, -0.5, -1.5])
def test_ties_go_to_even(ties: float) -> None:
    grid = Grid(Format(8), torch.tensor(1.0), torch.tensor(0.0))
    assert fake_quantize(torch.tensor([ties]), grid).item() == np.rint(ties)


def by_onnxruntime(x: torch.Tensor, grid: Grid, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Codes and values of QuantizeLinear and DequantizeLinear, per tensor where axis is None."""
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, checker, helper, numpy_helper

    code_type = np.int8 if grid.format.signed else np.uint8
    kind = TensorProto.INT8 if grid.format.signed else TensorProto.UINT8
    shape = () if axis is None else (-1,)
    named_axis = {} if axis is None else {"axis": axis}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"], **named_axis),
            helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"], **named_axis),
        ],
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [
            helper.make_tensor_value_info("codes", kind, x.shape),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape),
        ],
        [
            numpy_helper.from_array(grid.scale.numpy().reshape(shape), "scale"),
            numpy_helper.from_array(
                grid.zero_point.numpy().reshape(shape).astype(code_type), "zero"
            ),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    checker.check_model(model)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    codes, values = session.run(None, {"x": x.numpy()})
    return codes.astype(np.int32), values


@pytest.mark.parametrize("signed", [True, False])
def test_codes_and_values_per_tensor_equal_onnxruntime(signed: bool) -> None:
    x = torch.randn(9, 11) * 3
    # a power of two, so that multiplying by the reciprocal and dividing agree in every bit
    zero = torch.tensor(0.0 if signed else 101.0)
    grid = Grid(Format(8, signed=signed), torch.tensor(0.03125), zero)
    codes, values = by_onnxruntime(x, grid, None)
    assert np.array_equal(quantize(x, grid).numpy(), codes)
    assert np.array_equal(fake_quantize(x, grid).numpy(), values)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("signed", [True, False])
def test_codes_per_channel_equal_onnxruntime(axis: int, signed: bool) -> None:
    """ONNX divides by the scale, torch multiplies: codes may differ where that decides a tie."""
    x = torch.randn(40, 60, generator=torch.Generator().manual_seed(5)) * 2
    form = Format(8, signed=signed)
    grid = grid_from_tensor(x, form, PerChannel(axis), RangeMethod.MINMAX)
    codes, values = by_onnxruntime(x, grid, axis)
    found = quantize(x, grid)
    differ = found.numpy() != codes
    steps = x.double() / grid.scale.double()
    # division and multiplication by the rounded reciprocal differ by 2^-23 of up to 255 steps
    tie = ((steps - steps.floor()) - 0.5).abs().numpy() < 255 * 2.0**-22
    assert not (differ & ~tie).any()
    assert np.array_equal(fake_quantize(x, grid).numpy()[~differ], values[~differ])
