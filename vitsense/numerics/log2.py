"""Powers of two for attention probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitsense.numerics.grid import Format


@dataclass(frozen=True, slots=True)
class Log2Grid:
    """The numbers ``2^-code`` for tensors between 0 and 1, such as attention probabilities.

    Most probabilities of a row are small and few are large: steps that grow with the value keep
    both apart. There is no zero; what is below the least number becomes the least number.

    Source: Lin et al. 2022, "FQ-ViT: Post-Training Quantization for Fully Quantized Vision
    Transformer", eq. 11: clip(round(-log2(a)), 0, 2^b - 1). Deviation: none.
    """

    format: Format

    def fake_quantize(self, x: Tensor) -> Tensor:
        """``x`` rounded to the grid, `x.shape` and the type of ``x``; NaN stays NaN."""
        work = x if x.dtype is torch.float64 else x.float()
        codes = work.log2().neg_().round_().clamp_(0, (1 << self.format.bits) - 1)
        return torch.exp2(codes.neg_()).to(x.dtype)
