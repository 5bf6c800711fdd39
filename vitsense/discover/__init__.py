"""Find the sites of a model: one traced full-precision pass of one image, then classified.

Nothing is read from module names where the computation tells: attention is recognised by a product
that feeds a softmax that feeds a product; q, k and v by which output channels of a projection reach
which operand. Names decide only between feed-forward, patch embedding and patch merging.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitsense.discover.classify import classify
from vitsense.discover.coverage import uncovered
from vitsense.discover.trace import Tracer
from vitsense.errors import MeasurementError
from vitsense.observe import intercepting, preserved
from vitsense.sites import SiteCatalog

__all__ = ["find_sites"]


def find_sites(model: nn.Module, image: Tensor) -> SiteCatalog:
    """Every place of ``model`` where a tensor can be quantized, and what was left out.

    Args:
        model: Maps images to logits; it is left exactly as it was.
        image: One preprocessed image, `(1, 3, H, W)`, on the model's device.

    Raises:
        MeasurementError: the model does not give one row of logits, or multiplies nothing.
    """
    tracer = Tracer(model)
    with preserved(model), intercepting(model, tracer) as mode, torch.enable_grad():
        # gradients are followed from operands back to projections, also in frozen models
        start = image.detach().clone().requires_grad_(True)
        tracer.mark_image(start)
        with mode:
            logits = model(start)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != 1:
            seen = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise MeasurementError(
                f"The model must map images to logits of shape (1, classes); it gave {seen}. "
                "Wrap it so that its forward returns only the logits."
            )
        modules = classify(model, tracer.trace, classes=logits.shape[1])
    if not modules:
        raise MeasurementError(
            "No linear, convolution or product operation was seen: is the model compiled or "
            "scripted? Load it as a plain torch.nn.Module."
        )
    return SiteCatalog(modules=modules, uncovered=uncovered(model, tracer.trace, modules))
