"""Fake quantization against torch's kernels and against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitsense.numerics.fake_quant import dequantize, fake_quantize, quantize
from vitsense.numerics.grid import Format, Grid

BITS = (2, 3, 4, 5, 6, 7, 8)


def tensor(seed: int = 0, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (5, 7)), generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [True, False])
def test_per_tensor_equals_torch(bits: int, signed: bool) -> None:
    x, form = tensor(), Format(bits, signed=signed)
    zero = 0 if signed else form.qmax // 2
    grid = Grid(form, torch.tensor(0.37), torch.tensor(float(zero)))
    expected = torch.fake_quantize_per_tensor_affine(x, 0.37, zero, form.qmin, form.qmax)
    assert torch.equal(fake_quantize(x, grid), expected)
    # the general path, which serves what torch's kernels do not
    assert torch.equal(dequantize(quantize(x, grid), grid), expected)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("axis", [0, 1])
def test_per_channel_equals_torch(bits: int, axis: int) -> None:
    x, form = tensor(1, 6, 5, 4), Format(bits)
    scales = torch.rand(x.shape[axis], generator=torch.Generator().manual_seed(2)) + 0.01
    shape = [1, 1, 1]
    shape[axis] = -1
    grid = Grid(form, scales.reshape(shape), torch.zeros_like(scales).reshape(shape))
    expected = torch.fake_quantize_per_channel_affine(
        x, scales, torch.zeros_like(scales, dtype=torch.int32), axis, form.qmin, form.qmax
    )
    assert torch.equal(fake_quantize(x, grid), expected)
    assert torch.equal(dequantize(quantize(x, grid), grid), expected)


@pytest.mark.parametrize("ties", [0.5, 1.5, 2.5, -0.5, -1.5])
def test_ties_go_to_even(ties: float) -> None:
    grid = Grid(Format(8), torch.tensor(1.0), torch.tensor(0.0))
    assert fake_quantize(torch.tensor([ties]), grid).item() == np.rint(ties)


def test_two_scales_per_tensor_take_the_general_path() -> None:
    """A grid with two long axes (groups) has no kernel in torch."""
    x, form = tensor(3, 4, 6), Format(4)
    scale = torch.rand(4, 6, generator=torch.Generator().manual_seed(5)) + 0.1
    grid = Grid(form, scale, torch.zeros_like(scale))
    for i in range(4):
        for j in range(6):
            one = torch.fake_quantize_per_tensor_affine(
                x[i, j], float(scale[i, j]), 0, form.qmin, form.qmax
            )
            assert fake_quantize(x, grid)[i, j] == one


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_keep_their_type(dtype: torch.dtype) -> None:
    grid = Grid(Format(4), torch.tensor(0.5), torch.tensor(0.0))
    x = tensor().to(dtype)
    found = fake_quantize(x, grid)
    assert found.dtype is dtype
    assert torch.equal(found * 2, (found * 2).round())


def test_sixteen_bits_are_nearly_exact() -> None:
    grid = Grid(Format(16), torch.tensor(1e-3), torch.tensor(0.0))
    x = tensor()
    assert (fake_quantize(x, grid) - x).abs().max() <= 0.5e-3 * (1 + 1e-4)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_and_values_equal_onnxruntime(signed: bool) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    x, form = tensor(7, 9, 11), Format(8, signed=signed)
    zero = 0 if signed else 101
    # a power of two, so that multiplying by the reciprocal and dividing agree in every bit
    scale = 0.03125
    kind = TensorProto.INT8 if signed else TensorProto.UINT8
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [
            helper.make_tensor_value_info("codes", kind, x.shape),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape),
        ],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]),
            helper.make_tensor("zero", kind, [], [zero]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    codes, y = session.run(None, {"x": x.numpy()})
    grid = Grid(form, torch.tensor(scale), torch.tensor(float(zero)))
    assert np.array_equal(quantize(x, grid).numpy(), codes.astype(np.int32))
    assert np.array_equal(fake_quantize(x, grid).numpy(), y)
