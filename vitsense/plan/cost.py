"""What a choice of bit widths costs: average bits, model size, bit operations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitsense.formats import FormatLike, NumberFormat, format_of
from vitsense.settings import Part

if TYPE_CHECKING:
    import pandas as pd

FLOAT_BITS = 32
"""Bits of everything that is not quantized, and of every scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of a whole model under a plan."""

    avg_bits: float
    """Mean bits of a quantized weight, with its share of block scales (where activations alone are
    quantized: of their formats, weighted by the same)."""
    size_mb: float
    """Everything that is stored, in 10^6 bytes: weights, one scale per output channel (or per
    tensor), the rest of the parameters in float."""
    bitops_g: float
    """10^9 bit operations of one image: multiply-accumulates times both operands' bits."""


def cost_of(
    modules: pd.DataFrame,
    bits: Mapping[str, FormatLike],
    total_params: int,
    part: Part = Part.BOTH,
    per_tensor: bool = False,
) -> Cost:
    """The cost of giving every module of ``modules`` (one model's ``modules.csv``) its format.

    Modules that are not in ``bits`` (bits of integers, or names of formats) stay in float. The
    scales of blocks count to the bits of a weight, those of channels and tensors to the size only;
    a bit operation is one of elements. With ``part`` weights or activations, the other operand
    stays in float. With ``per_tensor`` a weight has one scale.

    Source: bit operations as in HAWQ-V3 (Yao et al. 2021, section 3.3), MACs x bits x bits.
    """
    weights, stored, scales, bitops = 0, 0, 0, 0
    for name, params, macs, shape in zip(
        # a column of texts is slow to walk through, its array is not
        *(modules[column].to_numpy() for column in ("module", "params", "macs", "weight_shape")),
        strict=True,
    ):
        if name not in bits:
            bitops += int(macs) * FLOAT_BITS**2
            continue
        form = format_of(bits[name])
        weights += int(params)
        stored += weight_bits(form, int(params), shape)
        scales += form.wide_scales(shape_of(shape), per_tensor)
        bitops += int(macs) * operation_bits(form, part)
    size = stored + FLOAT_BITS * (scales + total_params - weights)
    if part is Part.ACTIVATIONS:
        size = FLOAT_BITS * total_params
    return Cost(
        avg_bits=stored / weights if weights else math.nan,
        size_mb=size / 8e6,
        bitops_g=bitops / 1e9,
    )


def operation_bits(form: NumberFormat, part: Part) -> int:
    """Bits of one operand times bits of the other; a float operand has 32."""
    return form.bits * (form.bits if part is Part.BOTH else FLOAT_BITS)


def weight_bits(form: NumberFormat, params: int, shape: str) -> int:
    """Bits of a weight's elements and of the scales of its blocks."""
    return params * form.bits + form.block_scale_bits(shape_of(shape))


def shape_of(text: str) -> tuple[int, ...]:
    """The shape that ``768x192`` says; empty for products."""
    return tuple(map(int, text.split("x"))) if text else ()
