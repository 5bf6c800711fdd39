"""The number formats that can be measured, by name: plain data, no torch.

`vitsense.numerics` rounds to them. A format of one module holds for its weight and its activations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from vitsense.errors import UserInputError

ALLOWED_BITS = (2, 3, 4, 5, 6, 7, 8, 16)
"""Widths of the integer formats."""

FormatLike = int | str
"""Bits of an integer format, or the name of any format."""


class Family(Enum):
    """How the numbers of a format are scaled."""

    INTEGER = "int"
    """Evenly spaced; scale (and zero point) from calibration."""
    FLOAT = "fp"
    """Floating point under one float32 scale per tensor, or per channel of a weight."""
    MICROSCALING = "mx"
    """Floating point under a power of two that each block finds for itself."""
    NVFP4 = "nvfp"
    """Floating point under an e4m3 scale per block and a float32 scale per tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFormat:
    """What is stored of a tensor in this format."""

    name: str
    family: Family
    bits: int
    """Of one element, without scales."""
    exponent_bits: int = 0
    mantissa_bits: int = 0
    """Stored bits of the significand, without the leading one."""
    largest: float = 0.0
    """Largest element, before scaling; 0 for integers."""
    block: int = 0
    """Elements that share a stored scale; 0 where the scale is of the whole tensor or channel."""
    scale_bits: int = 0
    """Of the scale of a block."""

    @property
    def effective_bits(self) -> float:
        """Bits per element with its share of the block's scale; scales of tensors are left out."""
        return self.bits + (self.scale_bits / self.block if self.block else 0.0)

    @property
    def is_integer(self) -> bool:
        """Whether it is one of int2 to int16."""
        return self.family is Family.INTEGER

    @property
    def largest_exponent(self) -> int:
        """Exponent of the largest element (``emax_elem`` of the MX specification)."""
        return math.frexp(self.largest)[1] - 1

    @property
    def least_exponent(self) -> int:
        """Exponent of the smallest normal element."""
        bias: int = (1 << (self.exponent_bits - 1)) - 1
        return 1 - bias

    @property
    def words(self) -> str:
        """``4 bits`` for integers, else the name."""
        return f"{self.bits} bits" if self.is_integer else self.name

    @property
    def label(self) -> str:
        """``4`` for integers, else the name: for the heads of tables."""
        return str(self.bits) if self.is_integer else self.name

    def block_scale_bits(self, shape: Sequence[int]) -> int:
        """Bits of all block scales of a weight `(O, I, ...)`.

        Blocks run over the flattened `I·...` of each output channel; the last one may be short.
        """
        if not shape or not self.block:
            return 0
        return shape[0] * -(-math.prod(shape[1:]) // self.block) * self.scale_bits

    def wide_scales(self, shape: Sequence[int], per_tensor: bool = False) -> int:
        """Number of float32 scales of a weight `(O, I, ...)`.

        One for each output channel, or with ``per_tensor`` one; one for the tensor in nvfp4, none
        in the mx formats.
        """
        if not shape or self.family is Family.MICROSCALING:
            return 0
        return 1 if per_tensor or self.family is Family.NVFP4 else shape[0]


def _floats() -> tuple[NumberFormat, ...]:
    """Every format that is not an integer.

    Source: e4m3 and e5m2: OCP 8-bit Floating Point Specification (OFP8) v1.0; mx formats: OCP
    Microscaling Formats (MX) Specification v1.0, table 1 and section 5.3 (largest elements, blocks
    of 32, scales in E8M0); nvfp4: NVIDIA, "Introducing NVFP4" (2025): e2m1 elements, blocks of 16,
    e4m3 scales, one float32 scale.
    """
    elements = {
        "e2m1": (4, 2, 1, 6.0),
        "e2m3": (6, 2, 3, 7.5),
        "e3m2": (6, 3, 2, 28.0),
        "e4m3": (8, 4, 3, 448.0),
        "e5m2": (8, 5, 2, 57344.0),
    }

    def make(name: str, family: Family, element: str, block: int = 0) -> NumberFormat:
        bits, exponent, mantissa, largest = elements[element]
        return NumberFormat(
            name=name,
            family=family,
            bits=bits,
            exponent_bits=exponent,
            mantissa_bits=mantissa,
            largest=largest,
            block=block,
            scale_bits=8 if block else 0,
        )

    return (
        make("fp8_e4m3", Family.FLOAT, "e4m3"),
        make("fp8_e5m2", Family.FLOAT, "e5m2"),
        make("mxfp8_e4m3", Family.MICROSCALING, "e4m3", 32),
        make("mxfp8_e5m2", Family.MICROSCALING, "e5m2", 32),
        make("mxfp6_e2m3", Family.MICROSCALING, "e2m3", 32),
        make("mxfp6_e3m2", Family.MICROSCALING, "e3m2", 32),
        make("mxfp4", Family.MICROSCALING, "e2m1", 32),
        make("nvfp4", Family.NVFP4, "e2m1", 16),
    )


FLOAT_FORMATS = {form.name: form for form in _floats()}
"""Every format that is not an integer, by name."""


def known_formats() -> tuple[str, ...]:
    """All names, integers first, wide before narrow."""
    return (*(f"int{bits}" for bits in reversed(ALLOWED_BITS)), *FLOAT_FORMATS)


@lru_cache(maxsize=256)
def format_of(like: FormatLike) -> NumberFormat:
    """The format of so many bits, or of that name.

    Raises:
        UserInputError: there is none; the known ones are listed.
    """
    text = f"int{like}" if isinstance(like, int) else like.strip()
    if text in FLOAT_FORMATS:
        return FLOAT_FORMATS[text]
    match = re.fullmatch(r"int([0-9]+)", text)
    if match is None or int(match[1]) not in ALLOWED_BITS:
        raise UserInputError(
            f"{like!r} is no number format that can be measured; use some of "
            f"{', '.join(known_formats())}."
        )
    return NumberFormat(name=text, family=Family.INTEGER, bits=int(match[1]))
