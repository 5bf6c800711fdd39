"""The learned quantizers: every formula of the forward and of the step, once, with its source.

A quantizer maps ``x`` to ``step * code + offset`` with a whole ``code`` from ``qmin`` to ``qmax``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitsense.errors import SiteMismatchError
from vitsense.numerics.grid import Format
from vitsense.qat.rounding import LearnedGrid, Rounding, codes_of, quantize
from vitsense.qat.settings import StepGradient, WeightMethod

STEP_FLOOR = 1e-8
"""Smallest step; a step that gradient descent pushes below counts as this."""


def lsq_factor(values: float, qmax: int) -> float:
    """Factor on the gradient of a step, 1 / sqrt(N * Qp).

    Args:
        values: Numbers that share the step; of an activation those of one image.
        qmax: Largest code.

    Source: Esser et al. 2020, "Learned Step Size Quantization", section 2.2. N counts features,
    so the batch is left out for activations.
    """
    return 1.0 / math.sqrt(max(values, 1.0) * max(qmax, 1))


def module_factor(absolute_sum: Tensor, qmax: int) -> Tensor:
    """Factor on the gradient of a weight's step, 1 / sqrt(Qp * ||w||_1), shape of the sum.

    Source: Huang et al. 2024, "Quantization Variation" (arXiv 2307.00331), module-dependent
    scale, as its published code computes it (g = 1 / sqrt(sum |w| * Qp)).
    """
    return (absolute_sum * max(qmax, 1)).clamp(min=1e-12).rsqrt()


def statistic_step(absolute_mean: Tensor, bits: int) -> Tensor:
    """Step of StatsQ, 2 * mean |w| / 2^(b-1), shape of the mean.

    Source: Liu et al. 2023, "Oscillation-free Quantization for Low-bit Vision Transformers"
    (arXiv 2302.02210), StatsQ: the clipping range is twice the mean absolute weight, levels are
    half-integer, and the gradient passes everywhere (as in its published code).
    """
    return absolute_mean * (2.0 / (1 << (bits - 1)))


class _ScaledGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: object, x: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None  # type: ignore[attr-defined]


class Quantizer(nn.Module):
    """Rounds the tensor of one site to a grid.

    The buffer ``code_range`` (smallest and largest code) is there for the state dict: the state of
    a quantizer of another format is refused.
    """

    code_range: Tensor

    def __init__(self, form: Format, rounding: Rounding) -> None:
        """Keep the codes there are and where gradients pass."""
        super().__init__()
        self.format = form
        self.rounding = rounding
        self.register_buffer("code_range", torch.tensor([form.qmin, form.qmax]))

    @property
    def bits(self) -> int:
        """Width of the codes."""
        return self.format.bits

    @property
    def groups(self) -> int:
        """Number of steps (weights: equal runs of the first axis share one)."""
        raise NotImplementedError

    def grid(self, x: Tensor) -> LearnedGrid:
        """The grid for ``x``; step and offset are differentiable if they are learned."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``x`` rounded to the grid, `x.shape`; gradients reach x, the step and the offset."""
        return quantize(x, self.grid(x))

    @torch.no_grad()
    def fixed_grid(self, x: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Step and offset as plain tensors, broadcastable against ``x``.

        Only a step that is a statistic of the tensor (StatsQ) needs ``x``.
        """
        raise NotImplementedError

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Whole codes of ``x``, `x.shape`, int32."""
        grid = LearnedGrid(*self.fixed_grid(x), self.rounding)
        return codes_of(x.detach(), grid).to(torch.int32)

    def _load_from_state_dict(
        self, state: Any, prefix: str, metadata: Any, strict: bool, *messages: list[str]
    ) -> None:
        mine, theirs = self.code_range.tolist(), state.get(f"{prefix}code_range")
        if theirs is not None and theirs.tolist() != mine:
            messages[-1].append(
                f"{prefix[:-1]} has codes from {mine[0]} to {mine[1]}, the state {theirs.tolist()}"
            )
        super()._load_from_state_dict(state, prefix, metadata, strict, *messages)


class FixedQuantizer(Quantizer):
    """A grid that is no longer learned: ``step`` and ``offset`` are buffers."""

    step: Tensor
    offset: Tensor | None

    def __init__(self, like: Quantizer, step: Tensor, offset: Tensor | None) -> None:
        """Fix the grid of another quantizer."""
        super().__init__(like.format, like.rounding)
        self.register_buffer("step", step.clone())
        self.register_buffer("offset", None if offset is None else offset.clone())

    @property
    def groups(self) -> int:
        """Number of steps."""
        return self.step.numel()

    def grid(self, x: Tensor) -> LearnedGrid:  # noqa: ARG002
        """The step and the offset."""
        return LearnedGrid(self.step, self.offset, self.rounding)

    def fixed_grid(self, x: Tensor | None = None) -> tuple[Tensor, Tensor | None]:  # noqa: ARG002
        """The step and the offset."""
        return self.step, self.offset


class LearnedQuantizer(Quantizer):
    """Rounds the tensor of one site to a grid whose step (and offset) are learned.

    Parameters: ``scale`` (the step) and, where the site has one, ``offset``. Buffer: ``values``,
    the number of values that share a step (of one image, for activations).
    """

    values: Tensor

    def __init__(
        self,
        form: Format,
        scale: Tensor,
        *,
        values: int,
        offset: Tensor | None = None,
        repeats: int = 1,
        gradient: StepGradient = StepGradient.LSQ,
        is_weight: bool = False,
        method: WeightMethod = WeightMethod.LEARNED,
    ) -> None:
        """Start from a grid.

        Args:
            form: Codes there are.
            scale: First step; broadcasts against the tensor after ``repeats``.
            values: Numbers that share a step (of one image, for activations).
            offset: First offset, shape of ``scale``; None for a grid that holds zero.
            repeats: How many neighbours on the first axis share an entry of ``scale`` (channels
                per head).
            gradient: Factor on the gradient of the step and the offset.
            is_weight: Whether the tensor is a weight.
            method: Of a weight; StatsQ has no parameters and half-integer levels.
        """
        learned = method is WeightMethod.LEARNED
        super().__init__(form, Rounding(form.qmin, form.qmax, margin=0.0 if learned else math.inf))
        self.repeats = repeats
        self.gradient = gradient
        self.is_weight = is_weight
        self.method = method
        self.shape = scale.shape
        self.scale = nn.Parameter(scale.detach().clone()) if learned else None
        given = None if offset is None or not learned else offset.detach().clone()
        self.offset = None if given is None else nn.Parameter(given)
        # the buffer is for the state dict; reading it in every step would wait for the device
        self.register_buffer("values", torch.tensor(values))
        self._values = float(values)

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], prefix: str, gradient: StepGradient
    ) -> LearnedQuantizer:
        """The quantizer of an activation whose state has the keys ``prefix + ...``.

        Raises:
            SiteMismatchError: the state has no such quantizer.
        """
        try:
            low, high = state[f"{prefix}code_range"].tolist()
            scale, values = state[f"{prefix}scale"], int(state[f"{prefix}values"])
        except KeyError as missing:
            raise SiteMismatchError(
                f"The state has no {missing}: it belongs to another plan or other settings."
            ) from missing
        form = Format((high - low).bit_length(), signed=low < 0)
        offset = state.get(f"{prefix}offset")
        return cls(form, scale, values=values, offset=offset, gradient=gradient)

    @property
    def groups(self) -> int:
        """Number of steps."""
        return self.shape.numel()

    def grid(self, x: Tensor) -> LearnedGrid:
        """Step and offset to use for ``x``, with their gradient factors applied."""
        if self.scale is None:
            return LearnedGrid(*self.fixed_grid(x), self.rounding)
        factor = self.factor(x)
        step = _ScaledGradient.apply(self.scale.abs().clamp(min=STEP_FLOOR), factor)
        offset = None if self.offset is None else _ScaledGradient.apply(self.offset, factor)
        offset = None if offset is None else self._repeated(offset)
        return LearnedGrid(self._repeated(step), offset, self.rounding)

    @torch.no_grad()
    def fixed_grid(self, x: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Step and offset as plain tensors; half a step of offset for StatsQ's half-integers."""
        if self.scale is None:
            assert x is not None
            step = self._repeated(statistic_step(self._absolute_mean(x), self.bits))
            return step, step * 0.5
        step = self._repeated(self.scale.detach().abs().clamp(min=STEP_FLOOR))
        offset = None if self.offset is None else self._repeated(self.offset.detach())
        return step, offset

    def factor(self, x: Tensor) -> Tensor | float:
        """Factor on the gradient of the step, a number or of the step's shape."""
        if self.gradient is StepGradient.NONE:
            return 1.0
        qmax = self.format.qmax
        if self.gradient is StepGradient.MODULE and self.is_weight:
            with torch.no_grad():
                return module_factor(self._absolute_mean(x) * self._values, qmax)
        return lsq_factor(self._values, qmax)

    def extra_repr(self) -> str:
        """Format and shape, for printing."""
        return f"{self.format.name}, steps={tuple(self.shape)}, offset={self.offset is not None}"

    def _absolute_mean(self, x: Tensor) -> Tensor:
        """Mean of |x| over the values that share a step, in the shape of ``scale``."""
        sizes = x.detach().abs()
        if not self.shape:
            return sizes.mean()
        if self.repeats > 1:
            return sizes.reshape(self.shape[0], -1).mean(1).reshape(self.shape)
        axes = [i for i, n in enumerate(self.shape) if n == 1]
        return sizes.mean(dim=axes, keepdim=True)

    def _repeated(self, step: Tensor) -> Tensor:
        return step if self.repeats == 1 else step.repeat_interleave(self.repeats, dim=0)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._values = float(self.values)
