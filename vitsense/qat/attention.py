"""Attention with rounded queries, keys, probabilities and values, in full precision's memory.

As in `vitsense.qat.functions`, operands are kept as they were given and rounded again in the
backward pass. The scores, too, are computed again, as fused attention does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vitsense.qat.functions import (
    Gradients,
    gradients_of,
    grid_of,
    levels_of,
    rule_of,
    shared_products,
    tensors_of,
    times,
)
from vitsense.qat.rounding import LearnedGrid, Rounded, Rounding, apart

ATTENTION_BYTES = 1 << 26
"""Largest attention matrix that is computed at once; images beyond that are done in turns."""


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
    flat = [tensor for grid in grids for tensor in tensors_of(grid)]
    rules = tuple(rule_of(grid) for grid in grids)
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
            q = levels_of(query[turn].contiguous(), qg)
            k = levels_of(key[turn].contiguous(), kg)
            v = levels_of(value[turn].contiguous(), vg)
            probs = _probabilities(q, k, _of_turn(mask, turn), scale)
            probs, factor = apart(probs, pg, overwrite=True)
            parts.append(torch.matmul(probs, times(v, factor, fresh=vg is not None)))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, *flat = ctx.saved_tensors
        grids = _grids(flat, ctx.rules)
        found: list[tuple[Gradients, ...]] = []
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


def _over_turns(parts: tuple[Gradients, ...]) -> Gradients:
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
    query, key, probs, value = (grid_of(step, offset, rule) for step, offset, rule in pairs)
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
) -> tuple[tuple[Gradients, ...], Tensor]:
    """Gradients of query, key, probabilities and value with their steps, and of the scores."""
    query, key, value = operands
    qg, kg, pg, vg = grids
    kind = grad.dtype
    q, k, v = levels_of(query, qg), levels_of(key, kg), levels_of(value, vg)
    probs = _probabilities(q.to(kind), k.to(kind), mask, scale)
    levels = apart(probs, pg)
    product_v = levels.values.to(kind).transpose(-2, -1) @ grad
    product_v = times(product_v, levels.factor, fresh=True)
    products = shared_products(product_v, v, (pg, vg))
    of_value = gradients_of(product_v, value, Rounded(v), vg, products)
    product_p = grad @ v.to(kind).transpose(-2, -1)
    of_probs = gradients_of(product_p, probs, levels, pg, products)
    assert of_probs[0] is not None
    of_scores = torch._softmax_backward_data(of_probs[0], probs, -1, probs.dtype)
    rough = of_scores.to(kind)
    product_q = _scaled_product(rough, k.to(kind), scale)
    product_k = _scaled_product(rough.transpose(-2, -1), q.to(kind), scale)
    products = shared_products(product_k, k, (qg, kg))
    of_query = gradients_of(product_q, query, Rounded(q), qg, products)
    of_key = gradients_of(product_k, key, Rounded(k), kg, products)
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
