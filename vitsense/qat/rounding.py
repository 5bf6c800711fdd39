"""Rounding to a learned grid and its gradients: pure tensor functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rounding:
    """The codes of a grid and where the gradient of the rounded tensor passes."""

    qmin: int
    qmax: int
    margin: float = 0.0
    """How far beyond the outermost codes, in steps, a value still counts as inside: 0 (LSQ, which
    clips before it rounds) or infinity (StatsQ, whose gradient passes everywhere)."""


def codes_of(x: Tensor, step: Tensor, offset: Tensor | None, rounding: Rounding) -> Tensor:
    """Whole codes as a new floating-point tensor, `x.shape`.

    Source: Bhalgat et al. 2020, "LSQ+", eq. 1; Esser et al. 2020, eq. 1 (no offset). As in
    `vitsense.numerics.fake_quantize`, the product with the reciprocal of the step, ties to even.
    """
    shifted = x if offset is None else x - offset
    return (shifted * (1.0 / step)).round_().clamp_(rounding.qmin, rounding.qmax)


def rounded(x: Tensor, step: Tensor, offset: Tensor | None, rounding: Rounding) -> Tensor:
    """``x`` on the grid, a new tensor of `x.shape`.

    Source: Bhalgat et al. 2020, "LSQ+", eq. 2.
    """
    values = codes_of(x, step, offset, rounding).mul_(step)
    return values if offset is None else values.add_(offset)


def quantize(x: Tensor, step: Tensor, offset: Tensor | None, rounding: Rounding) -> Tensor:
    """`rounded`, with gradients by the straight-through estimator.

    The gradient of x passes where x is inside the grid. The step's is ``code - (x - offset)/step``
    inside and ``code`` outside; the offset's is 0 inside and 1 outside.

    Source: Esser et al. 2020, eq. 3 and 5; Bhalgat et al. 2020, eq. 3 to 6.
    """
    result: Tensor = _Quantize.apply(x, step, offset, rounding)
    return result


class _Quantize(torch.autograd.Function):
    """Keeps x and the step; the rounded tensor is computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, offset: Tensor | None, rounding: Rounding
    ) -> Tensor:
        ctx.save_for_backward(x, step, offset)
        ctx.rounding = rounding
        return rounded(x, step, offset, rounding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, step, offset = ctx.saved_tensors
        (grad,) = grads
        rounding: Rounding = ctx.rounding
        v = (x if offset is None else x - offset) / step
        inside = (v >= rounding.qmin - rounding.margin) & (v <= rounding.qmax + rounding.margin)
        code = v.round().clamp(rounding.qmin, rounding.qmax)
        grad_x = grad * inside
        grad_step = (grad * code - grad_x * v).sum_to_size(step.shape)
        grad_offset = None if offset is None else (grad - grad_x).sum_to_size(offset.shape)
        return grad_x, grad_step, grad_offset, None
