"""Which module of a model gives the first value that is not finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def first_not_finite(model: nn.Module, images: Tensor) -> str | None:
    """Dotted path of the first module whose output has a NaN or an infinity, else None.

    The model runs once, without gradients, in the mode it is in; the innermost module is named.
    """
    found: list[str] = []

    def looking(name: str) -> Any:
        def look(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not found and not bool(output.isfinite().all()):
                found.append(name)

        return look

    handles = [m.register_forward_hook(looking(name)) for name, m in model.named_modules()]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
