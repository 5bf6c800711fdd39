"""Looks at the weights of a model in training: oscillation, scales, histograms, movement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitsense.qat.oscillation import OSCILLATING, OscillationTracker
from vitsense.qat.prepare import QuantizedModel
from vitsense.qat.quantizers import LearnedQuantizer, Quantizer

_FINE, _COARSE = 8, 1  # histogram bins per step, up to 4 bits and above


def oscillation_row(tracker: OscillationTracker) -> dict[str, Any]:
    """Share of oscillating weights by module, and over all of them."""
    shares = {name: round(value, 6) for name, value in tracker.share().items()}
    total = round(tracker.total_share(), 6)
    return {"kind": "oscillation", "threshold": OSCILLATING, "all": total, "share": shares}


def scales_row(model: QuantizedModel) -> dict[str, Any]:
    """Mean step of every quantizer that learns one."""
    learned = {
        site: quantizer.scale.detach().abs().mean()
        for site, quantizer in model.quantizers.items()
        if isinstance(quantizer, LearnedQuantizer) and quantizer.scale is not None
    }
    values = torch.stack(list(learned.values())).tolist() if learned else []
    found = dict(zip(learned, values, strict=True))
    return {"kind": "scales", "scale": found}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightFacts:
    """One module's latent weight at one moment."""

    bits: int
    weight: Tensor
    """Copy, on the CPU."""
    codes: Tensor
    sqnr_db: float
    kurtosis: float
    edges: NDArray[np.float64]
    """Of the histogram, in steps."""
    counts: NDArray[np.int64]


@torch.no_grad()
def weight_facts(model: QuantizedModel) -> dict[str, WeightFacts]:
    """The latent weights of all planned modules."""
    found = {}
    for module, quantizer, weight in model.quantized_weights():
        rounded = quantizer(weight)
        noise = (weight - rounded).double().square().sum()
        signal = weight.double().square().sum()
        centred = weight.double() - weight.double().mean()
        variance = centred.square().mean()
        edges, counts = _in_steps(quantizer, weight)
        found[module.name] = WeightFacts(
            bits=quantizer.bits,
            weight=weight.detach().cpu().clone(),
            codes=quantizer.codes(weight).cpu().to(torch.int16),
            sqnr_db=float(10 * torch.log10(signal / noise.clamp_min(1e-30))),
            kurtosis=float(centred.pow(4).mean() / variance.square().clamp_min(1e-30) - 3),
            edges=edges,
            counts=counts,
        )
    return found


def _in_steps(
    quantizer: Quantizer, weight: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Histogram of the weight in units of its step; whole numbers are the grid."""
    step, offset = quantizer.fixed_grid(weight)
    values = (weight if offset is None else weight - offset) / step
    fine = _FINE if quantizer.bits <= 4 else _COARSE
    low, high = quantizer.format.qmin - 1, quantizer.format.qmax + 1
    edges = np.linspace(low, high, (high - low) * fine + 1)
    inside = values.double().clamp(low, high).cpu().numpy()
    counts, _ = np.histogram(inside, bins=edges)
    return edges, counts.astype(np.int64)


def histogram_arrays(moment: str, facts: Mapping[str, WeightFacts]) -> dict[str, NDArray[Any]]:
    """Arrays for ``weights.npz``: ``begin|module|edges`` and ``begin|module|counts``."""
    found: dict[str, NDArray[Any]] = {}
    for name, fact in facts.items():
        found[f"{moment}|{name}|edges"] = fact.edges
        found[f"{moment}|{name}|counts"] = fact.counts
    return found


def movement_rows(
    before: Mapping[str, WeightFacts],
    after: Mapping[str, WeightFacts],
    shares: Mapping[str, float],
) -> list[dict[str, Any]]:
    """How far each module's weight moved, and what became of its rounding error."""
    rows = []
    for name, old in before.items():
        new = after[name]
        change = (new.weight - old.weight).norm() / old.weight.norm().clamp_min(1e-30)
        rows.append(
            {
                "module": name,
                "bits": new.bits,
                "change": float(change),
                "codes_changed": float((new.codes != old.codes).double().mean()),
                "oscillating": shares.get(name),
                "sqnr_before": old.sqnr_db,
                "sqnr_after": new.sqnr_db,
                "kurtosis_before": old.kurtosis,
                "kurtosis_after": new.kurtosis,
            }
        )
    return rows
