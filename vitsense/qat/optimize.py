"""Which parameters are trained how: groups, the schedule of the learning rate, averaging."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitsense.qat.prepare import QuantizedModel
from vitsense.qat.recipes import Recipe


def parameter_groups(model: QuantizedModel, recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW's groups: weights, one-dimensional parameters and named exceptions, quantizers.

    A model's own ``no_weight_decay()`` (position embeddings, class token) is honoured.
    """
    exempt = getattr(model.model, "no_weight_decay", None)
    names: set[str] = set(exempt()) if callable(exempt) else set()
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.model.named_parameters():
        if parameter.requires_grad:
            small = parameter.dim() <= 1 or name in names
            (plain if small else decayed).append(parameter)
    scales = [p for p in model.scale_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": recipe.weight_decay, "factor": 1.0},
        {"params": plain, "weight_decay": recipe.norm_weight_decay, "factor": 1.0},
        {"params": scales, "weight_decay": recipe.scale_weight_decay, "factor": recipe.scale_lr},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate of a step: a linear rise over ``warmup``, then half a cosine to ``min_lr``.

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), one period.
    """
    rising = round(recipe.warmup * steps)
    if step < rising:
        return recipe.lr * (step + 1) / rising
    progress = (step - rising) / max(steps - rising, 1)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


class Average:
    """An exponential moving average of parameters, with the buffers of the moment."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model."""
        for key, value in model.state_dict().items():
            kept = self.state[key]
            if value.is_floating_point():
                kept.lerp_(value.to(kept.dtype), 1 - self._decay)
            else:
                kept.copy_(value)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a stored average."""
        for key, value in state.items():
            self.state[key].copy_(value)
