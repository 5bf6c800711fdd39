"""Terms of the loss that draw weights to the middle of their cells.

Both act on latent weights only: the grid is held fixed (no gradient reaches steps), and weights
beyond the ends of the grid are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from vitsense.qat.freezing import ConfidenceGuidedAnnealing, IterativeFreezing
from vitsense.qat.prepare import QuantizedModel
from vitsense.qat.rounding import LearnedGrid, Rounding, codes_of

__all__ = [
    "BinReduction",
    "ConfidenceGuidedAnnealing",
    "IterativeFreezing",
    "dampening_loss",
    "obr_loss",
    "ramp",
]

WIDEST = 7
"""Weights of more bits are left out: their steps are too small to matter, and at 8 bits the
regularizer was found to harm."""


class BinReduction(Enum):
    """How the distances and the variances in bins of a weight become one number."""

    SUM = "sum"
    """Sum of squared distances to the level plus sum of squared distances to the mean of the bin
    (count times variance): both terms grow with the number of weights, and so does their gradient
    against the task's. The default."""
    PAPER = "paper"
    """The printed formula: sum of squared distances plus sum of variances."""
    PUBLISHED = "published"
    """As the published code computes: mean squared distance plus sum of variances. Nearly inert:
    on DeiT-Tiny its gradient at strength 0.01 is about 1e-5 of the task's."""


def ramp(progress: float, start: float = 0.25) -> float:
    """Part of a regularizer's full strength: 0 until ``start``, then a half cosine up to 1.

    Args:
        progress: Part of the training that is done, 0 to 1.
        start: Where it begins to rise.

    Source: Huang et al. 2024 (published code): half a cosine from a quarter of the epochs on.
    """
    if progress <= start:
        return 0.0
    return 0.5 * (1 - math.cos(math.pi * min((progress - start) / (1 - start), 1.0)))


def obr_loss(
    model: QuantizedModel, reduction: BinReduction = BinReduction.SUM, widest: int = WIDEST
) -> Tensor:
    """Oscillation-aware bin regularization of all weights of at most ``widest`` bits, a scalar.

    Bins are the weights of one code (and one step, where a module has several).

    Source: Huang et al. 2024, "Quantization Variation" (arXiv 2307.00331), OBR:
    sum over modules of ||w - w_q||^2 + sum over bins of Var(w in the bin). Deviation: bins come
    from whole codes, not from comparing floating-point quotients; 8-bit weights are left out.
    """

    def term(w: Tensor, step: Tensor, offset: Tensor | None, r: Rounding, groups: int) -> Tensor:
        value: Tensor = _BinSpread.apply(w, step, offset, r, groups, reduction)
        return value

    return _total(model, term, widest)


def dampening_loss(model: QuantizedModel, widest: int = WIDEST) -> Tensor:
    """Squared distance of all weights of at most ``widest`` bits to their levels, a scalar.

    Source: Nagel et al. 2022, eq. 6: ||w_q - clip(w)||^2, without gradient through w_q.
    """

    def term(w: Tensor, step: Tensor, offset: Tensor | None, r: Rounding, groups: int) -> Tensor:
        del groups
        value: Tensor = _Distance.apply(w, step, offset, r)
        return value

    return _total(model, term, widest)


_Term = Callable[[Tensor, Tensor, "Tensor | None", Rounding, int], Tensor]


def _total(model: QuantizedModel, term: _Term, widest: int) -> Tensor:
    found = []
    for _, quantizer, weight in model.quantized_weights():
        if quantizer.bits <= widest:
            step, offset = quantizer.fixed_grid(weight)
            found.append(term(weight, step, offset, quantizer.rounding, quantizer.groups))
    if not found:
        return next(model.parameters()).new_zeros(())
    return torch.stack(found).sum()


def _residual(
    w: Tensor, step: Tensor, offset: Tensor | None, rounding: Rounding
) -> tuple[Tensor, Tensor, Tensor]:
    """Clipped weight minus its level (0 for weights beyond the grid), codes, and where clipped."""
    low, high = step * rounding.qmin, step * rounding.qmax
    if offset is not None:
        low, high = low + offset, high + offset
    codes = codes_of(w, LearnedGrid(step, offset, rounding))
    levels = codes * step if offset is None else torch.addcmul(offset, codes, step)
    beyond = (w < low) | (w > high)
    return torch.sub(w, levels).masked_fill_(beyond, 0.0), codes, beyond


class _Distance(torch.autograd.Function):
    """Sum of squared residuals; the gradient is found in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, w: Tensor, step: Tensor, offset: Tensor | None, rounding: Rounding
    ) -> Tensor:
        residual, _, _ = _residual(w, step, offset, rounding)
        ctx.save_for_backward(residual)
        return residual.square().sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (residual,) = ctx.saved_tensors
        return residual * (2 * grads[0]), None, None, None


class _BinSpread(torch.autograd.Function):
    """Squared residuals plus spread within bins, from one count, sum and sum of squares per bin.

    Within a bin the level is constant, so the spread of weights is that of residuals.
    """

    @staticmethod
    def forward(
        ctx: Any,
        w: Tensor,
        step: Tensor,
        offset: Tensor | None,
        rounding: Rounding,
        groups: int,
        reduction: BinReduction,
    ) -> Tensor:
        residual, codes, beyond = _residual(w, step, offset, rounding)
        bins = _bins(codes, rounding, groups)
        flat = residual.view(-1)
        number = groups * (rounding.qmax - rounding.qmin + 1)
        count = _sums(bins, None, number)
        first = _sums(bins, flat, number)
        mean = first / count.clamp(min=1)
        squares = torch.dot(flat, flat)
        if reduction is BinReduction.SUM:
            # every weight counts alike, so only the total of the squares is needed
            loss = (2 * squares.double() - (first * mean).sum()).to(w.dtype)
            slope = flat.mul_(4.0).sub_((2 * mean).to(w.dtype)[bins])
        else:
            part = 1.0 / w.numel() if reduction is BinReduction.PUBLISHED else 1.0
            spread = _sums(bins, flat.square(), number) - first * mean
            # unbiased variance of bins with two members or more
            weight = torch.where(count > 1, 1 / (count - 1).clamp(min=1), 0.0)
            loss = (squares.double() * part + (spread * weight).sum()).to(w.dtype)
            each = (2 * weight).to(w.dtype)[bins]
            slope = each.add(2 * part).mul_(flat).sub_(each.mul_(mean.to(w.dtype)[bins]))
        ctx.save_for_backward(slope.view_as(w).masked_fill_(beyond, 0.0))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * grads[0], None, None, None, None, None


def _bins(codes: Tensor, rounding: Rounding, groups: int) -> Tensor:
    """Number of the bin of each weight, flat int64: the code, counted on from group to group."""
    levels = rounding.qmax - rounding.qmin + 1
    rows = codes.reshape(groups, -1).sub_(rounding.qmin)
    if groups > 1:
        rows += torch.arange(groups, device=codes.device, dtype=codes.dtype)[:, None] * levels
    return rows.view(-1).long()


def _sums(bins: Tensor, values: Tensor | None, number: int) -> Tensor:
    """Count, or sum of values, per bin, float64."""
    if bins.device.type == "cpu":  # many times faster there than scatter_add
        return torch.bincount(bins, values, minlength=number).double()
    source = torch.ones_like(bins, dtype=torch.float64) if values is None else values.double()
    return torch.zeros(number, device=bins.device, dtype=torch.float64).scatter_add_(
        0, bins, source
    )
