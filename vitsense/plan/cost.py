"""What a choice of bit widths costs: average bits, model size, bit operations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

FLOAT_BITS = 32
"""Bits of everything that is not quantized, and of every scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of a whole model under a plan."""

    avg_bits: float
    """Mean bits of a quantized weight."""
    size_mb: float
    """Everything that is stored, in 10^6 bytes: weights, one scale per output channel, the rest
    of the parameters in float."""
    bitops_g: float
    """10^9 bit operations of one image: multiply-accumulates times both operands' bits."""


def cost_of(modules: pd.DataFrame, bits: Mapping[str, int], total_params: int) -> Cost:
    """The cost of giving every module of ``modules`` (one model's ``modules.csv``) its bits.

    Modules that are not in ``bits`` stay in float.

    Source: bit operations as in HAWQ-V3 (Yao et al. 2021, section 3.3), MACs x bits x bits.
    """
    widths = modules["module"].map(lambda name: bits.get(name, FLOAT_BITS)).to_numpy()
    params, macs = modules["params"].to_numpy(), modules["macs"].to_numpy()
    quantized = modules["module"].isin(list(bits)).to_numpy()
    weights = params[quantized].sum()
    stored = float((params * widths)[quantized].sum())
    scales = sum(
        _channels(shape)
        for shape, is_in in zip(modules["weight_shape"], quantized, strict=True)
        if is_in
    )
    rest = total_params - int(weights)
    return Cost(
        avg_bits=stored / weights if weights else math.nan,
        size_mb=(stored + FLOAT_BITS * (scales + rest)) / 8e6,
        bitops_g=float((macs * widths * widths).sum()) / 1e9,
    )


def _channels(shape: str) -> int:
    """Output channels of a weight's shape as text, ``768x192`` (empty for products)."""
    return int(shape.split("x", maxsplit=1)[0]) if shape else 0
