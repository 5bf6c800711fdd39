"""How much each module alone disturbs the model, before and after training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitsense.numerics.distance import kl_nats
from vitsense.observe import ReplaySession, preserved
from vitsense.qat.prepare import QuantizedModel
from vitsense.sensitivity import interval
from vitsense.sensitivity.meter import recorded
from vitsense.sites import SiteCatalog, SiteModule

_BATCH = 16  # images that are remembered at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleDivergence:
    """What rounding one module alone costs, in nats per image."""

    bits: int
    n: int
    kl: float
    low: float
    high: float


@torch.no_grad()
def module_divergences(model: QuantizedModel, images: Tensor) -> dict[str, ModuleDivergence]:
    """Divergence of the class probabilities when one planned module alone is rounded.

    The reference is the model's own latent weights in full precision, so that before training this
    is the sensitivity that an analysis measures, with the grids that training starts from, and
    afterwards that of the trained weights on the learned grids.

    Args:
        model: Prepared, before or after training; it is left as it was.
        images: Preprocessed, `(B, 3, H, W)`, on the model's device.

    Returns:
        By module, in execution order, with 95 % intervals over images.

    Raises:
        MeasurementError: the logits of full precision are not finite.
    """
    plain = model.float_model().eval()
    sums: dict[str, Tensor] = {}
    with (
        preserved(plain),
        ReplaySession.open(plain, SiteCatalog(modules=model.planned)) as session,
    ):
        for part in torch.split(images, _BATCH):
            reference = recorded(session, part)
            for module in model.planned:
                kl = kl_nats(reference, session.replay(_visits(model, module), module)).double()
                found = torch.stack([kl.sum(), kl.square().sum()])
                sums[module.name] = sums.get(module.name, 0) + found
    widths = {module.name: _bits(model, module) for module in model.planned}
    return {name: _divergence(widths[name], len(images), total) for name, total in sums.items()}


def _visits(model: QuantizedModel, module: SiteModule) -> dict[str, Any]:
    ids = [site.id for site in module.sites]
    return {name: model.quantizers[name] for name in ids if name in model.quantizers}


def _bits(model: QuantizedModel, module: SiteModule) -> int:
    return max((quantizer.bits for quantizer in _visits(model, module).values()), default=0)


def _divergence(bits: int, n: int, sums: Tensor) -> ModuleDivergence:
    total, squares = sums.tolist()
    found = interval.mean(n, total, squares)
    return ModuleDivergence(bits=bits, n=n, kl=found.value, low=found.low, high=found.high)


def sensitivity_rows(
    before: Mapping[str, ModuleDivergence], after: Mapping[str, ModuleDivergence]
) -> list[dict[str, Any]]:
    """Rows of ``sensitivities.csv``: nats per module before and after training."""
    return [
        {
            "module": name,
            "bits": new.bits,
            "n": new.n,
            "kl_before": before[name].kl,
            "kl_before_low": before[name].low,
            "kl_before_high": before[name].high,
            "kl_after": new.kl,
            "kl_after_low": new.low,
            "kl_after_high": new.high,
        }
        for name, new in after.items()
    ]
