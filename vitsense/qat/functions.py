"""Linear, convolution and product on rounded operands, in full precision's memory.

Each keeps the operands as they were given (which full precision keeps as well) and the steps; the
rounded operands are computed again in the backward pass. A kept copy would double the memory.

The activation enters its product as whole codes, its step multiplied into the (smaller) weight: a
pass over the activation less, forward and backward. And the product is linear in both operands, so
that ``sum grad_x * x = sum grad_w * w``: what the step of x needs is read off the weight.

In the backward pass of mixed precision the operands take the type of the incoming gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitsense.qat.rounding import (
    LearnedGrid,
    Rounded,
    Rounding,
    apart,
    rounded,
    rounding_gradients,
    rounding_slopes,
)

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of an operand, its step and its offset."""

Geometry = tuple[list[int], list[int], list[int], int]
"""Stride, padding, dilation (a number per axis each) and groups of a convolution."""

_NOTHING: Gradients = (None, None, None)


def grid_of(
    step: Tensor | None, offset: Tensor | None, rounding: Rounding | None
) -> LearnedGrid | None:
    """The grid with these tensors; None where nothing is rounded."""
    return None if step is None or rounding is None else LearnedGrid(step, offset, rounding)


def levels_of(x: Tensor, grid: LearnedGrid | None) -> Tensor:
    """``x`` on its grid; ``x`` itself where it has none."""
    return x if grid is None else rounded(x, grid)


def gradients_of(
    grad: Tensor,
    x: Tensor,
    levels: Rounded,
    grid: LearnedGrid | None,
    products: Tensor | None = None,
) -> Gradients:
    """Gradients of x, step and offset from that of the rounded x, which is overwritten."""
    if grid is None:
        return grad.to(x.dtype), None, None
    return rounding_gradients(grad, x, levels, grid, products)


def tensors_of(grid: LearnedGrid | None) -> tuple[Tensor | None, Tensor | None]:
    """Step and offset."""
    return (None, None) if grid is None else (grid.step, grid.offset)


def rule_of(grid: LearnedGrid | None) -> Rounding | None:
    """What a grid is besides its tensors."""
    return None if grid is None else grid.rounding


def times(levels: Tensor, factor: Tensor | None, *, fresh: bool) -> Tensor:
    """``levels * factor``, in place where the tensor is ours."""
    if factor is None:
        return levels
    return levels.mul_(factor) if fresh else levels * factor


def shared_products(
    grad: Tensor, levels: Tensor, grids: Sequence[LearnedGrid | None]
) -> Tensor | None:
    """The sum of gradient times level, which is the same for both operands of a product.

    None where it is not: for several steps, and where a rounded product (bfloat16, or a GPU's
    short floats) gives the two gradients errors of their own, which would not cancel.
    """
    exact = grad.dtype in (torch.float32, torch.float64) and grad.device.type == "cpu"
    if not exact or any(grid is not None and grid.step.numel() != 1 for grid in grids):
        return None
    if grad.is_contiguous() and levels.is_contiguous():
        return torch.dot(grad.view(-1), levels.view(-1).to(grad.dtype))
    return (grad * levels).sum()


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, xg: LearnedGrid | None, wg: LearnedGrid | None
) -> Any:
    """`F.linear` of rounded operands: x `(..., I)`, weight `(O, I)`, result `(..., O)`."""
    rules = (rule_of(xg), rule_of(wg))
    return _Layer.apply(x, weight, bias, *tensors_of(xg), *tensors_of(wg), rules, None)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    xg: LearnedGrid | None,
    wg: LearnedGrid | None,
    geometry: Geometry,
) -> Any:
    """A convolution of rounded operands: x `(B, C, ...)`, weight `(O, C/groups, ...)`."""
    rules = (rule_of(xg), rule_of(wg))
    return _Layer.apply(x, weight, bias, *tensors_of(xg), *tensors_of(wg), rules, geometry)


class _Layer(torch.autograd.Function):
    """A linear layer (without geometry) or a convolution."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        x_step: Tensor | None,
        x_offset: Tensor | None,
        w_step: Tensor | None,
        w_offset: Tensor | None,
        rules: tuple[Rounding | None, Rounding | None],
        geometry: Geometry | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, x_step, x_offset, w_step, w_offset)
        ctx.rules, ctx.geometry = rules, geometry
        ctx.bias = None if bias is None else list(bias.shape)
        xg, wg = grid_of(x_step, x_offset, rules[0]), grid_of(w_step, w_offset, rules[1])
        mine, levels = apart(x, xg), levels_of(weight, wg)
        levels = times(levels, mine.factor, fresh=wg is not None)
        return _layer(mine.values, levels, bias, geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, x_step, x_offset, w_step, w_offset = ctx.saved_tensors
        xg, wg = grid_of(x_step, x_offset, ctx.rules[0]), grid_of(w_step, w_offset, ctx.rules[1])
        grad, needs = grads[0], ctx.needs_input_grad
        mine, levels = apart(x, xg), levels_of(weight, wg)
        of_x, of_weight = _NOTHING, _NOTHING
        wanted = (needs[0], needs[1] or needs[5], needs[2])
        product_x, product_w, of_bias = _layer_back(
            grad, mine.values, levels, ctx.bias, ctx.geometry, wanted
        )
        products = None
        if product_w is not None:
            product_w = times(product_w, mine.factor, fresh=True)
            products = shared_products(product_w, levels, (xg,))
            of_weight = gradients_of(product_w, weight, Rounded(levels), wg)
        if product_x is not None:
            of_x = gradients_of(product_x, x, mine, xg, products)
        elif xg is not None and needs[3]:  # an input has one step
            of_x = (None, *_of_images(grad, x, xg, levels, ctx.geometry))
        return of_x[0], of_weight[0], of_bias, *of_x[1:], *of_weight[1:], None, None


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry | None) -> Tensor:
    if geometry is None:
        return F.linear(x, weight, bias)
    stride, padding, dilation, groups = geometry
    zeros = [0] * len(stride)
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, zeros, groups)


def _layer_back(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: list[int] | None,
    geometry: Geometry | None,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Any]:
    """Gradients of x, weight and bias; only those that are wanted."""
    x, weight = x.to(grad.dtype), weight.to(grad.dtype)
    if geometry is not None:
        stride, padding, dilation, groups = geometry
        zeros = [0] * len(stride)
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            grad, x, weight, bias, stride, padding, dilation, False, zeros, groups, list(wanted)
        )
        return found
    flat = grad.reshape(-1, grad.shape[-1])
    of_x = grad @ weight if wanted[0] else None
    of_weight = flat.t() @ x.reshape(-1, x.shape[-1]) if wanted[1] else None
    return of_x, of_weight, flat.sum(0) if wanted[2] else None


def _of_images(
    grad: Tensor, x: Tensor, grid: LearnedGrid, weight: Tensor, geometry: Geometry | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the step and the offset where x itself needs none (the images).

    An operation that is linear in x turns the derivative of x by the step into that of its result,
    so one more forward takes the place of the far dearer gradient of x.
    """
    kind = grad.dtype

    def through(slope: Tensor) -> Tensor:
        result = _layer(slope.to(kind), weight.to(kind), None, geometry)
        return (grad * result).sum().reshape(grid.step.shape).to(grid.step.dtype)

    slope, beyond = rounding_slopes(x, grid)
    return through(slope), None if grid.offset is None else through(beyond)


def product(left: Tensor, right: Tensor, lg: LearnedGrid | None, rg: LearnedGrid | None) -> Any:
    """`torch.matmul` of rounded operands, `(..., N, K)` and `(..., K, M)`."""
    rules = (rule_of(lg), rule_of(rg))
    return _Product.apply(left, right, *tensors_of(lg), *tensors_of(rg), rules)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        left: Tensor,
        right: Tensor,
        l_step: Tensor | None,
        l_offset: Tensor | None,
        r_step: Tensor | None,
        r_offset: Tensor | None,
        rules: tuple[Rounding | None, Rounding | None],
    ) -> Tensor:
        ctx.save_for_backward(left, right, l_step, l_offset, r_step, r_offset)
        ctx.rules = rules
        lg, rg = grid_of(l_step, l_offset, rules[0]), grid_of(r_step, r_offset, rules[1])
        mine = apart(left, lg)
        levels = times(levels_of(right, rg), mine.factor, fresh=rg is not None)
        return torch.matmul(mine.values, levels)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        left, right, l_step, l_offset, r_step, r_offset = ctx.saved_tensors
        lg, rg = grid_of(l_step, l_offset, ctx.rules[0]), grid_of(r_step, r_offset, ctx.rules[1])
        grad = grads[0]
        mine, levels = apart(left, lg), levels_of(right, rg)
        product_l = (grad @ levels.to(grad.dtype).transpose(-2, -1)).sum_to_size(left.shape)
        product_r = (mine.values.to(grad.dtype).transpose(-2, -1) @ grad).sum_to_size(right.shape)
        product_r = times(product_r, mine.factor, fresh=True)
        products = shared_products(product_r, levels, (lg, rg))
        of_left = gradients_of(product_l, left, mine, lg, products)
        of_right = gradients_of(product_r, right, Rounded(levels), rg, products)
        return of_left[0], of_right[0], *of_left[1:], *of_right[1:], None
