"""Rounding to a learned grid and its gradients: pure tensor functions.

Everything is written for few passes over memory: on a processor a quantized layer costs little more
than its matrix product only if rounding makes no temporary tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

_EDGE = 2.0**-20
"""Part of a step by which the ends of the grid are widened, so that values on them are inside."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """The codes of a grid and where the gradient of the rounded tensor passes."""

    qmin: int
    qmax: int
    margin: float = 0.0
    """How far beyond the outermost codes, in steps, a value still counts as inside: 0 (LSQ, which
    clips before it rounds) or infinity (StatsQ, whose gradient passes everywhere)."""


class LearnedGrid(NamedTuple):
    """A grid of tensors: ``step * code + offset``; both broadcast against what is rounded."""

    step: Tensor
    offset: Tensor | None
    rounding: Rounding


class RoundingGradients(NamedTuple):
    """Gradients of the rounded tensor, the step and the offset."""

    x: Tensor
    step: Tensor
    offset: Tensor | None


class Rounded(NamedTuple):
    """A rounded tensor as ``values * factor``, so that few passes make it.

    Where a tensor has one step and no offset, ``values`` are its codes, and whoever multiplies it
    puts the factor into the smaller of the two operands. Otherwise they are the levels and the
    factor is None: an offset taken apart would leave rounding noise where a level is 0, which AdamW
    turns into whole steps of weights that have no gradient.
    """

    values: Tensor
    factor: Tensor | None = None


def codes_of(x: Tensor, grid: LearnedGrid, *, overwrite: bool = False) -> Tensor:
    """Whole codes as a floating-point tensor, `x.shape`, at least float32.

    Args:
        x: What is rounded.
        grid: To which grid.
        overwrite: Whether ``x`` may be lost.

    Source: Bhalgat et al. 2020, "LSQ+", eq. 1; Esser et al. 2020, eq. 1 (no offset). As in
    `vitsense.numerics.fake_quantize`, the product with the reciprocal of the step, ties to even.
    """
    # bfloat16 and float16 cannot hold a code and a half
    x = x if x.dtype is torch.float64 else x.float()
    inverse = 1.0 / grid.step
    if grid.offset is not None:
        codes = (x - grid.offset).mul_(inverse)
    else:
        codes = x.mul_(inverse) if overwrite else x * inverse
    return codes.round_().clamp_(grid.rounding.qmin, grid.rounding.qmax)


def rounded(x: Tensor, grid: LearnedGrid) -> Tensor:
    """``x`` on the grid, a new tensor of `x.shape` and type.

    Source: Bhalgat et al. 2020, "LSQ+", eq. 2.
    """
    values = codes_of(x, grid).mul_(grid.step)
    return (values if grid.offset is None else values.add_(grid.offset)).to(x.dtype)


def apart(x: Tensor, grid: LearnedGrid | None, *, overwrite: bool = False) -> Rounded:
    """``x`` on the grid, its step kept apart where there is one step.

    Args:
        x: What is rounded.
        grid: To which grid; None leaves ``x`` alone.
        overwrite: Whether ``x`` may be lost.
    """
    if grid is None:
        return Rounded(x)
    if grid.step.numel() != 1 or grid.offset is not None:
        return Rounded(rounded(x, grid))
    return Rounded(codes_of(x, grid, overwrite=overwrite).to(x.dtype), grid.step)


def rounding_gradients(
    grad: Tensor, x: Tensor, levels: Rounded, grid: LearnedGrid, products: Tensor | None = None
) -> RoundingGradients:
    """Gradients by the straight-through estimator; ``grad`` is overwritten.

    The gradient of x passes where x is inside the grid. The step's is ``code - (x - offset)/step``
    inside and ``code`` outside; the offset's is 0 inside and 1 outside. Both are found without a
    mask from sums over all values (of ``grad``) and over those inside (of the gradient of x)::

        grad_step = (sum grad * (levels - offset) - sum grad_x * (x - offset)) / step

    Args:
        grad: Of the rounded tensor, `x.shape`; must not be used afterwards.
        x: What was rounded.
        levels: What it was rounded to.
        grid: To which grid.
        products: Sum of ``grad * levels``, where it is known without a pass.

    Source: Esser et al. 2020, eq. 3 and 5; Bhalgat et al. 2020, eq. 3 to 6.
    """
    step, offset = grid.step, grid.offset
    kind = x.dtype
    if kind not in (torch.float32, torch.float64):
        grad, x = grad.float(), x.float()
    elif grad.dtype is not kind:
        grad = grad.to(kind)
    everywhere = products
    if everywhere is None:
        everywhere = _product_sum(grad, levels.values.to(grad.dtype), step)
        everywhere = everywhere if levels.factor is None else everywhere * levels.factor
    total = None if offset is None else grad.sum_to_size(step.shape)
    inside = _inside(grad, x, grid)
    difference = everywhere.reshape(step.shape) - _product_sum(inside, x, step)
    grad_offset = None
    if offset is not None and total is not None:
        grad_offset = total - inside.sum_to_size(step.shape)
        difference = difference - offset * grad_offset
    return RoundingGradients(inside.to(kind), difference / step, grad_offset)


def rounding_slopes(x: Tensor, grid: LearnedGrid) -> tuple[Tensor, Tensor]:
    """Derivative of each rounded value by its step and by its offset, `x.shape` each.

    Source: as `rounding_gradients`.
    """
    shifted = x if grid.offset is None else x - grid.offset
    ones = _inside(torch.ones_like(x), x, grid)
    return codes_of(x, grid).sub_(ones * shifted / grid.step), 1.0 - ones


def _product_sum(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """Sum of a * b over the values that share a step."""
    if like.numel() == 1 and a.is_contiguous() and b.is_contiguous():
        return torch.dot(a.view(-1), b.view(-1)).reshape(like.shape)
    return (a * b).sum_to_size(like.shape)


def _inside(grad: Tensor, x: Tensor, grid: LearnedGrid) -> Tensor:
    """``grad`` where x is inside the grid, else 0; in place where that is possible."""
    rounding, step, offset = grid.rounding, grid.step, grid.offset
    if rounding.margin == float("inf"):
        return grad
    first, last = rounding.qmin - rounding.margin - _EDGE, rounding.qmax + rounding.margin + _EDGE
    if step.device.type == "cpu" and not torch.compiler.is_compiling():
        # one pass and no mask; reading the step costs nothing where it need not be fetched
        if step.numel() == 1:
            size, shift = step.item(), 0.0 if offset is None else offset.item()
            return _inside_ends(grad, x, first * size + shift, last * size + shift)
        shifted = x if offset is None else x - offset
        return _inside_ends(grad, shifted * (1.0 / step), first, last)
    low, high = step * first, step * last
    if offset is not None:
        low, high = low + offset, high + offset
    return grad.masked_fill((x < low) | (x > high), 0.0)


def _inside_ends(grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """``grad``, in place, where x is above ``low`` and below ``high``, else 0."""
    result: Tensor = torch.ops.aten.hardtanh_backward.grad_input(
        grad, x, low, high, grad_input=grad
    )
    return result


def quantize(x: Tensor, grid: LearnedGrid) -> Tensor:
    """`rounded`, differentiable as `rounding_gradients` says; keeps x and the step only."""
    result: Tensor = _Quantize.apply(x, grid.step, grid.offset, grid.rounding)
    return result


class _Quantize(torch.autograd.Function):
    """The rounded tensor is computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, offset: Tensor | None, rounding: Rounding
    ) -> Tensor:
        ctx.save_for_backward(x, step, offset)
        ctx.rounding = rounding
        return rounded(x, LearnedGrid(step, offset, rounding))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, step, offset = ctx.saved_tensors
        grid = LearnedGrid(step, offset, ctx.rounding)
        # a gradient may be shared with another consumer, so it is not overwritten
        found = rounding_gradients(grads[0].clone(), x, Rounded(rounded(x, grid)), grid)
        return found.x, found.step, found.offset, None
