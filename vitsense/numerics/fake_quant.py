"""Rounding to a grid and back."""

from __future__ import annotations

import torch
from torch import Tensor

from vitsense.numerics.grid import Grid


def quantize(x: Tensor, grid: Grid) -> Tensor:
    """Integer codes of ``x``, `x.shape`, int32, between ``qmin`` and ``qmax``.

    Source: Jacob et al. 2018, eq. 1 and 12; ties to even, as torch and ONNX do. Deviation: the
    product with the reciprocal of the scale, as `torch.fake_quantize_per_tensor_affine` computes.
    """
    codes = torch.round(x * (1.0 / grid.scale)) + grid.zero_point
    return codes.clamp(grid.format.qmin, grid.format.qmax).to(torch.int32)


def dequantize(codes: Tensor, grid: Grid) -> Tensor:
    """Real numbers of integer codes, `codes.shape`.

    Source: Jacob et al. 2018, eq. 1.
    """
    return (codes - grid.zero_point) * grid.scale


def fake_quantize(x: Tensor, grid: Grid) -> Tensor:
    """``x`` rounded to the grid, `x.shape`: `dequantize` of `quantize` in one pass where possible.

    torch's fused kernels are used for float32 tensors with one scale or one scale per index of an
    axis; they agree bit for bit with the general path (tested).
    """
    form = grid.format
    if x.dtype is torch.float32 and form.bits <= 8:
        if grid.scale.dim() == 0:
            zero_point = grid.zero_point.to(torch.int32)
            return torch.fake_quantize_per_tensor_affine(
                x, grid.scale.float(), zero_point, form.qmin, form.qmax
            )
        long_axes = [i for i, n in enumerate(grid.scale.shape) if n != 1]
        if len(long_axes) == 1 and grid.scale.dim() == x.dim():
            return torch.fake_quantize_per_channel_affine(
                x,
                grid.scale.flatten().float(),
                grid.zero_point.flatten().to(torch.int32),
                long_axes[0],
                form.qmin,
                form.qmax,
            )
    codes = torch.round(x * (1.0 / grid.scale).to(x.dtype)) + grid.zero_point
    codes = codes.clamp(form.qmin, form.qmax)
    return ((codes - grid.zero_point) * grid.scale).to(x.dtype)
