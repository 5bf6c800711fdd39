"""Hold weights still: those that oscillate, or those far from any threshold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitsense.qat.oscillation import OscillationTracker
from vitsense.qat.prepare import QuantizedModel, state_name
from vitsense.qat.quantizers import Quantizer


class IterativeFreezing(nn.Module):
    """Fixes the code of every weight that oscillates more often than a threshold, for good.

    All state is in buffers: the average code of each weight and which are frozen (their code).

    Source: Nagel et al. 2022, algorithm 1: frozen to the rounded exponential average of the code.
    """

    def __init__(self, model: QuantizedModel, momentum: float = 0.01) -> None:
        """Start with nothing frozen; ``momentum`` is that of the average code."""
        super().__init__()
        self.momentum = momentum
        for module, quantizer, weight in model.quantized_weights():
            codes = quantizer.codes(weight)
            name = state_name(module.name)
            self.register_buffer(f"{name}:average", codes.float())
            self.register_buffer(f"{name}:frozen", torch.zeros_like(codes, dtype=torch.bool))

    @torch.no_grad()
    def update(self, model: QuantizedModel, tracker: OscillationTracker, threshold: float) -> None:
        """Freeze what oscillates above ``threshold``, and put frozen weights back on their level.

        Args:
            model: After an optimizer step, before the next forward.
            tracker: Updated with the same step.
            threshold: Flips per step; two to three times the tracker's momentum or more.
        """
        for module, quantizer, weight in model.quantized_weights():
            average, frozen = self._state(module.name)
            average.lerp_(quantizer.codes(weight).float(), self.momentum)
            newly = tracker.frequency(module.name).gt(threshold) & ~frozen
            # the average of a frozen weight becomes its code and stays it
            average.copy_(torch.where(newly, average.round(), average))
            frozen |= newly
            step, offset = quantizer.fixed_grid(weight)
            level = average.round() * step
            level = level if offset is None else level + offset
            model.put_weight(module, torch.where(frozen, level.to(weight.dtype), weight))

    def share(self) -> float:
        """Share of all weights that are frozen, 0 to 1."""
        masks = [b for name, b in self.named_buffers() if name.endswith(":frozen")]
        total = sum(mask.numel() for mask in masks)
        return sum(int(mask.sum()) for mask in masks) / max(total, 1)

    def _state(self, module: str) -> tuple[Tensor, Tensor]:
        name = state_name(module)
        average, frozen = self._buffers[f"{name}:average"], self._buffers[f"{name}:frozen"]
        assert average is not None
        assert frozen is not None
        return average, frozen


class ConfidenceGuidedAnnealing(nn.Module):
    """Lets only those weights move that are near a rounding threshold.

    ``hold`` before and ``release`` after each optimizer step: weights farther than the boundary
    range from every threshold are put back to where they were, whatever the optimizer did.

    Source: Liu et al. 2023, "Oscillation-free Quantization" (arXiv 2302.02210), CGA; as in the
    published code, distances are in steps and judged anew in every step.
    """

    def __init__(self, boundary_range: float = 0.005) -> None:
        """``boundary_range``: distance from a threshold, in steps, within which weights train."""
        super().__init__()
        self.boundary_range = boundary_range
        self._held: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def hold(self, model: QuantizedModel) -> None:
        """Remember the weights and which of them are confident; before the optimizer's step."""
        for module, quantizer, weight in model.quantized_weights():
            confident = threshold_distance(weight, quantizer) > self.boundary_range
            self._held[module.name] = (weight.detach().clone(), confident)

    @torch.no_grad()
    def release(self, model: QuantizedModel) -> None:
        """Put confident weights back; after the optimizer's step."""
        for module, _, weight in model.quantized_weights():
            kept, confident = self._held.pop(module.name)
            model.put_weight(module, torch.where(confident, kept, weight))


@torch.no_grad()
def threshold_distance(weight: Tensor, quantizer: Quantizer) -> Tensor:
    """Distance of each weight to the nearest place where its code changes, in steps."""
    step, offset = quantizer.fixed_grid(weight)
    v = (weight if offset is None else weight - offset) / step
    first, last = quantizer.format.qmin + 0.5, quantizer.format.qmax - 0.5
    nearest = (v - 0.5).round().add_(0.5).clamp_(first, last)
    return (v - nearest).abs_()
