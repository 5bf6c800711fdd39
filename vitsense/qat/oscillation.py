"""How often the whole codes of weights flip back and forth during training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vitsense.qat.prepare import QuantizedModel, state_name
from vitsense.qat.quantizers import Quantizer

OSCILLATING = 0.005
"""Frequency above which a weight counts as oscillating (as Huang et al. 2024 count)."""


class OscillationTracker(nn.Module):
    """Counts direction flips of the codes of every rounded weight; call `update` after each step.

    All state is in buffers: per weight its last code, the direction of its last change, and the
    exponential average of its flips. Weights that are computed before use are not tracked.

    Source: Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training"
    (arXiv 2203.11086), section 2.3: a weight oscillates in a step if its code changes against the
    direction of its last change; f = m * o + (1 - m) * f.
    """

    def __init__(self, model: QuantizedModel, momentum: float = 0.001) -> None:
        """Start from the model's present codes.

        Args:
            model: Whose weights to watch.
            momentum: Weight of the newest step: 0.001 as Huang et al. 2024 (Nagel et al.: 0.01).
        """
        super().__init__()
        self.momentum = momentum
        self._names: list[str] = []
        for module, quantizer, weight in model.quantized_weights():
            codes = quantizer.codes(weight).to(_code_type(quantizer))
            name = state_name(module.name)
            self._names.append(module.name)
            self.register_buffer(f"{name}:code", codes)
            self.register_buffer(f"{name}:direction", torch.zeros_like(codes, dtype=torch.int8))
            self.register_buffer(f"{name}:frequency", torch.zeros_like(codes, dtype=torch.float32))

    @torch.no_grad()
    def update(self, model: QuantizedModel) -> None:
        """Compare the codes with those of the last call."""
        for module, quantizer, weight in model.quantized_weights():
            before, direction, frequency = self._state(module.name)
            codes = quantizer.codes(weight).to(before.dtype)
            # int32: the difference of two int8 codes may need nine bits
            change = (codes.int() - before).sign_().to(torch.int8)
            flipped = (change * direction) < 0
            frequency.mul_(1 - self.momentum).add_(flipped, alpha=self.momentum)
            direction.copy_(torch.where(change != 0, change, direction))
            before.copy_(codes)

    def frequency(self, module: str) -> Tensor:
        """Average flips per step of each weight of a module, shape of its (slice of the) weight."""
        return self._state(module)[2]

    def share(self, threshold: float = OSCILLATING) -> dict[str, float]:
        """Share of each module's weights whose frequency is above ``threshold``, 0 to 1."""
        shares = [self.frequency(name).gt(threshold).float().mean() for name in self._names]
        values = torch.stack(shares).tolist() if shares else []  # one wait for the device
        return dict(zip(self._names, values, strict=True))

    def total_share(self, threshold: float = OSCILLATING) -> float:
        """Share of all weights whose frequency is above ``threshold``, 0 to 1."""
        sizes = {name: self.frequency(name).numel() for name in self._names}
        shares = self.share(threshold)
        return sum(shares[n] * sizes[n] for n in sizes) / max(sum(sizes.values()), 1)

    def __iter__(self) -> Iterator[str]:
        """Names of the modules that are watched."""
        return iter(self._names)

    def _state(self, module: str) -> tuple[Tensor, Tensor, Tensor]:
        name = state_name(module)
        found = tuple(
            self._buffers[f"{name}:{part}"] for part in ("code", "direction", "frequency")
        )
        code, direction, frequency = found
        assert code is not None
        assert direction is not None
        assert frequency is not None
        return code, direction, frequency


def _code_type(quantizer: Quantizer) -> torch.dtype:
    return torch.int8 if quantizer.bits <= 8 else torch.int16
