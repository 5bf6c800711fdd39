"""Linear, convolution, product and attention on rounded operands, in full precision's memory.

Each keeps the operands as they were given (which full precision keeps as well) and the steps; the
rounded operands are computed again in the backward pass. A kept copy would double the memory.

In the backward pass of mixed precision the operands take the type of the incoming gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitsense.qat.rounding import (
    LearnedGrid,
    Rounding,
    rounded,
    rounding_gradients,
    rounding_slopes,
)

ATTENTION_BYTES = 1 << 26
"""Largest attention matrix that is computed at once; images beyond that are done in turns."""

_Nothing = tuple[None, None, None]
_Gradients = tuple[Tensor, Tensor | None, Tensor | None]


def _grid(
    step: Tensor | None, offset: Tensor | None, rounding: Rounding | None
) -> LearnedGrid | None:
    return None if step is None or rounding is None else LearnedGrid(step, offset, rounding)


def _on(x: Tensor, grid: LearnedGrid | None) -> Tensor:
    return x if grid is None else rounded(x, grid)


def _back(grad: Tensor, x: Tensor, levels: Tensor, grid: LearnedGrid | None) -> _Gradients:
    """Gradients of x, step and offset from that of the rounded x."""
    if grid is None:
        return grad.to(x.dtype), None, None
    return rounding_gradients(grad, x, levels, grid)


def _pair(grid: LearnedGrid | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if grid is None else (grid.step, grid.offset)


def _rule(grid: LearnedGrid | None) -> Rounding | None:
    return None if grid is None else grid.rounding


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, xg: LearnedGrid | None, wg: LearnedGrid | None
) -> Any:
    """`F.linear` of rounded operands: x `(..., I)`, weight `(O, I)`, result `(..., O)`."""
    rules = (_rule(xg), _rule(wg))
    return _Linear.apply(x, weight, bias, *_pair(xg), *_pair(wg), rules)


class _Linear(torch.autograd.Function):
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
    ) -> Tensor:
        ctx.save_for_backward(x, weight, x_step, x_offset, w_step, w_offset)
        ctx.rules = rules
        xg, wg = _grid(x_step, x_offset, rules[0]), _grid(w_step, w_offset, rules[1])
        return F.linear(_on(x, xg), _on(weight, wg), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, x_step, x_offset, w_step, w_offset = ctx.saved_tensors
        xg, wg = _grid(x_step, x_offset, ctx.rules[0]), _grid(w_step, w_offset, ctx.rules[1])
        grad = grads[0]
        levels, w_levels = _on(x, xg), _on(weight, wg)
        flat = grad.reshape(-1, grad.shape[-1])
        of_weight: _Gradients | _Nothing = (None, None, None)
        of_x: _Gradients | _Nothing = (None, None, None)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[5]:
            product = flat.t() @ levels.reshape(-1, levels.shape[-1]).to(grad.dtype)
            of_weight = _back(product, weight, w_levels, wg)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[3]:
            of_x = _back(grad @ w_levels.to(grad.dtype), x, levels, xg)
        of_bias = flat.sum(0) if ctx.needs_input_grad[2] else None
        return of_x[0], of_weight[0], of_bias, *of_x[1:], *of_weight[1:], None


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    xg: LearnedGrid | None,
    wg: LearnedGrid | None,
    geometry: tuple[list[int], list[int], list[int], int],
) -> Any:
    """A convolution of rounded operands: x `(B, C, ...)`, weight `(O, C/groups, ...)`.

    ``geometry`` is stride, padding, dilation (a number per axis each) and groups.
    """
    rules = (_rule(xg), _rule(wg))
    return _Convolution.apply(x, weight, bias, *_pair(xg), *_pair(wg), rules, geometry)


class _Convolution(torch.autograd.Function):
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
        geometry: tuple[list[int], list[int], list[int], int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight, x_step, x_offset, w_step, w_offset)
        ctx.rules, ctx.geometry = rules, geometry
        ctx.bias = None if bias is None else list(bias.shape)
        xg, wg = _grid(x_step, x_offset, rules[0]), _grid(w_step, w_offset, rules[1])
        stride, padding, dilation, groups = geometry
        zeros = [0] * len(stride)
        return torch.convolution(
            _on(x, xg),
            _on(weight, wg),
            bias,
            stride,
            padding,
            dilation,
            False,
            zeros,
            groups,
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, x_step, x_offset, w_step, w_offset = ctx.saved_tensors
        xg, wg = _grid(x_step, x_offset, ctx.rules[0]), _grid(w_step, w_offset, ctx.rules[1])
        grad = grads[0]
        levels, w_levels = _on(x, xg), _on(weight, wg)
        stride, padding, dilation, groups = ctx.geometry
        needs = ctx.needs_input_grad
        wanted = [needs[0], needs[1] or needs[5], needs[2]]
        zeros = [0] * len(stride)

        def forward(tensor: Tensor) -> Tensor:
            kind = grad.dtype
            operands = (tensor.to(kind), w_levels.to(kind), None)
            return torch.convolution(*operands, stride, padding, dilation, False, zeros, groups)

        product_x, product_w, of_bias = torch.ops.aten.convolution_backward(
            grad,
            levels.to(grad.dtype),
            w_levels.to(grad.dtype),
            ctx.bias,
            stride,
            padding,
            dilation,
            False,
            zeros,
            groups,
            wanted,
        )
        of_x: tuple[Tensor | None, ...] = (None, None, None)
        of_weight: _Gradients | _Nothing = (None, None, None)
        if wanted[0]:
            of_x = _back(product_x, x, levels, xg)
        elif xg is not None and needs[3]:  # an input has one step
            of_x = (None, *_of_images(grad, x, xg, forward))
        if wanted[1]:
            of_weight = _back(product_w, weight, w_levels, wg)
        return of_x[0], of_weight[0], of_bias, *of_x[1:], *of_weight[1:], None, None


def _of_images(
    grad: Tensor, x: Tensor, grid: LearnedGrid, forward: Callable[[Tensor], Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the step and the offset where x itself needs none (the images).

    An operation that is linear in x turns the derivative of x by the step into that of its result,
    so one more forward takes the place of the far dearer gradient of x.
    """
    slope, beyond = rounding_slopes(x, grid)
    of_step = (grad * forward(slope)).sum().reshape(grid.step.shape).to(grid.step.dtype)
    if grid.offset is None:
        return of_step, None
    return of_step, (grad * forward(beyond)).sum().reshape(grid.step.shape).to(grid.step.dtype)


def product(left: Tensor, right: Tensor, lg: LearnedGrid | None, rg: LearnedGrid | None) -> Any:
    """`torch.matmul` of rounded operands, `(..., N, K)` and `(..., K, M)`."""
    return _Product.apply(left, right, *_pair(lg), *_pair(rg), (_rule(lg), _rule(rg)))


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
        lg, rg = _grid(l_step, l_offset, rules[0]), _grid(r_step, r_offset, rules[1])
        return torch.matmul(_on(left, lg), _on(right, rg))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        left, right, l_step, l_offset, r_step, r_offset = ctx.saved_tensors
        lg, rg = _grid(l_step, l_offset, ctx.rules[0]), _grid(r_step, r_offset, ctx.rules[1])
        grad = grads[0]
        l_levels, r_levels = _on(left, lg), _on(right, rg)
        product_l = (grad @ r_levels.to(grad.dtype).transpose(-2, -1)).sum_to_size(left.shape)
        product_r = (l_levels.to(grad.dtype).transpose(-2, -1) @ grad).sum_to_size(right.shape)
        of_left = _back(product_l, left, l_levels, lg)
        of_right = _back(product_r, right, r_levels, rg)
        return of_left[0], of_right[0], *of_left[1:], *of_right[1:], None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    grids: Sequence[LearnedGrid | None],
) -> Any:
    """softmax(Q·Kᵀ·scale + mask)·V, `(B, H, N, D)`, with Q, K, the probabilities and V rounded.

    ``grids`` are those of query, key, probabilities and value; ``mask`` is added to the scores.
    The scores are computed again in the backward pass, as fused attention does.
    """
    flat = [tensor for grid in grids for tensor in _pair(grid)]
    rules = tuple(_rule(grid) for grid in grids)
    return _Attention.apply(query, key, value, mask, *flat, scale, rules)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        query, key, value, mask, *flat, scale, rules = args
        ctx.save_for_backward(query, key, value, mask, *flat)
        ctx.scale, ctx.rules = scale, rules
        qg, kg, pg, vg = _grids(flat, rules)
        parts = []
        for turn in _turns(query, key):
            # operands are views into one projection: rounding and products want them apart
            q = _on(query[turn].contiguous(), qg)
            k = _on(key[turn].contiguous(), kg)
            v = _on(value[turn].contiguous(), vg)
            probs = _probabilities(q, k, _of_turn(mask, turn), scale)
            parts.append(torch.matmul(_on(probs, pg), v))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, *flat = ctx.saved_tensors
        grids = _grids(flat, ctx.rules)
        found: list[tuple[_Gradients, ...]] = []
        of_masks: list[Tensor] = []
        for turn in _turns(query, key):
            here = (query[turn].contiguous(), key[turn].contiguous(), value[turn].contiguous())
            part = _of_turn(mask, turn)
            results, of_scores = _attention_back(
                grads[0][turn].contiguous(), here, part, ctx.scale, grids
            )
            found.append(results)
            if part is not None and ctx.needs_input_grad[3]:
                of_masks.append(of_scores.sum_to_size(part.shape).to(part.dtype))
        of_query, of_key, of_probs, of_value = (
            _over_turns(parts) for parts in zip(*found, strict=True)
        )
        of_mask = None
        if of_masks:
            split = mask.dim() == 4 and mask.shape[0] > 1
            of_mask = torch.cat(of_masks) if split else torch.stack(of_masks).sum(0)
        steps = (*of_query[1:], *of_key[1:], *of_probs[1:], *of_value[1:])
        return of_query[0], of_key[0], of_value[0], of_mask, *steps, None, None


def _over_turns(parts: tuple[_Gradients, ...]) -> _Gradients:
    """Gradients of all images from those of each turn: tensors one after the other, steps added."""
    if len(parts) == 1:
        return parts[0]
    tensors, steps, offsets = (
        [part for part in column if part is not None] for column in zip(*parts, strict=True)
    )
    return (
        torch.cat(tensors),
        torch.stack(steps).sum(0) if steps else None,
        torch.stack(offsets).sum(0) if offsets else None,
    )


_Grids = tuple[LearnedGrid | None, LearnedGrid | None, LearnedGrid | None, LearnedGrid | None]


def _grids(flat: list[Tensor | None], rules: tuple[Rounding | None, ...]) -> _Grids:
    pairs = zip(flat[::2], flat[1::2], rules, strict=True)
    query, key, probs, value = (_grid(step, offset, rule) for step, offset, rule in pairs)
    return query, key, probs, value


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(q·kᵀ·scale + mask), `(B, H, N, M)`."""
    scores = _scaled_product(q, k.transpose(-2, -1), scale)
    scores = scores if mask is None else scores.add_(mask)
    # in mixed precision, too, probabilities are computed in single precision
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """left·right·scale of `(B, H, N, K)` and `(B, H, K, M)`, without a pass for the scale."""
    nothing = left.new_zeros(1, 1, 1)  # with beta 0 it is not read
    flat = torch.baddbmm(nothing, left.flatten(0, 1), right.flatten(0, 1), beta=0, alpha=scale)
    return flat.view(*left.shape[:-1], right.shape[-1])


def _attention_back(
    grad: Tensor,
    operands: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    scale: float,
    grids: _Grids,
) -> tuple[tuple[_Gradients, ...], Tensor]:
    """Gradients of query, key, probabilities and value with their steps, and of the scores."""
    query, key, value = operands
    qg, kg, pg, vg = grids
    kind = grad.dtype
    q, k, v = _on(query, qg), _on(key, kg), _on(value, vg)
    probs = _probabilities(q.to(kind), k.to(kind), mask, scale)
    levels = _on(probs, pg)
    of_value = _back(levels.to(kind).transpose(-2, -1) @ grad, value, v, vg)
    of_probs = _back(grad @ v.to(kind).transpose(-2, -1), probs, levels, pg)
    of_scores = torch._softmax_backward_data(of_probs[0], probs, -1, probs.dtype)
    rough = of_scores.to(kind)
    of_query = _back(_scaled_product(rough, k.to(kind), scale), query, q, qg)
    of_key = _back(_scaled_product(rough.transpose(-2, -1), q.to(kind), scale), key, k, kg)
    return (of_query, of_key, of_probs, of_value), of_scores


def _turns(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Images that are computed at once."""
    if torch.compiler.is_compiling():
        yield slice(None)
        return
    one = query.element_size() * key.shape[-2] * query[0].numel() // query.shape[-1]
    size = max(1, ATTENTION_BYTES // max(one, 1))
    for start in range(0, query.shape[0], size):
        yield slice(start, start + size)


def _of_turn(mask: Tensor | None, turn: slice) -> Tensor | None:
    """The part of a mask that belongs to the images of a turn."""
    if mask is None or mask.dim() < 4 or mask.shape[0] == 1:
        return mask
    return mask[turn]
