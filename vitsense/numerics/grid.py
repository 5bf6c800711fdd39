"""Integer formats, granularity, and the grid both make of a scale and a zero point."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from vitsense.errors import UserInputError
from vitsense.formats import ALLOWED_BITS


@dataclass(frozen=True, slots=True)
class Format:
    """An integer format: which codes there are.

    Signed formats are symmetric (zero point 0); unsigned formats are affine (any zero point), and
    with zero point 0 they hold one-sided tensors such as attention probabilities.
    """

    bits: int
    signed: bool = True

    def __post_init__(self) -> None:
        """Check the width.

        Raises:
            UserInputError: the width is not supported.
        """
        if self.bits not in ALLOWED_BITS:
            allowed = ", ".join(map(str, ALLOWED_BITS))
            raise UserInputError(f"{self.bits} bits is not a width vitsense knows: use {allowed}.")

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1 if self.signed else self.bits)) - 1

    @property
    def name(self) -> str:
        """``int4`` or ``uint4``."""
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    @classmethod
    def parse(cls, text: str) -> Format:
        """The format called ``text``.

        Raises:
            UserInputError: not a format name.
        """
        match = re.fullmatch(r"(u?)int([0-9]+)", text.strip())
        if match is None:
            allowed = ", ".join(map(str, ALLOWED_BITS))
            raise UserInputError(
                f"{text!r} is no number format: write int (signed) or uint (unsigned) and the bits "
                f"({allowed}), for example int4."
            )
        return cls(int(match[2]), signed=not match[1])


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor: `(…)` gives a scale of shape `()`."""

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: ARG002
        """Shape of the scale for a tensor of ``shape``."""
        return ()


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale per index of an axis: `(O, I)` with axis 0 gives a scale of shape `(O, 1)`."""

    axis: int = 0

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scale for a tensor of ``shape``."""
        axis = self.axis % len(shape)
        return tuple(n if i == axis else 1 for i, n in enumerate(shape))


@dataclass(frozen=True, slots=True)
class PerHead:
    """One scale per attention head.

    `(B, H, N, D)` with axis -3 gives `(1, H, 1, 1)`. Where the axis holds ``heads`` equal runs of
    channels, as in the rows of a query projection `(H·D, I)`, each run shares its scale and the
    scale has the shape `(H·D, 1)`.
    """

    axis: int
    heads: int

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scale for a tensor of ``shape``.

        Raises:
            UserInputError: the axis does not hold a whole number of channels per head.
        """
        length = shape[self.axis]
        if self.heads < 1 or length % self.heads:
            raise UserInputError(
                f"Axis {self.axis} of shape {shape} has length {length}, which {self.heads} heads "
                "do not divide: give the number of heads of this module."
            )
        return PerChannel(self.axis).scale_shape(shape)


@dataclass(frozen=True, slots=True)
class PerGroup:
    """One scale per ``size`` neighbours along an axis; where it does not divide, the last is short.

    `(O, I)` gives a scale of shape `(O, I)` in which the members of a group repeat their scale. A
    convolution's weight `(O, I, …)` has its input channels on axis 1.
    """

    size: int
    axis: int = -1

    def __post_init__(self) -> None:
        """Check the size.

        Raises:
            UserInputError: a group has no member.
        """
        if self.size < 1:
            raise UserInputError(f"A group of {self.size} is empty: use a size of 1 or more.")

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scale for a tensor of ``shape``."""
        return shape


Granularity = PerTensor | PerChannel | PerHead | PerGroup


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The real numbers a format can hold: ``scale * (code - zero_point) + shift``."""

    format: Format
    scale: Tensor
    """Step between neighbours, float32, broadcastable against the tensor."""
    zero_point: Tensor
    """Code of zero, float32 whole numbers, same shape as ``scale``."""
    shift: Tensor | None = None
    """Added to every number, float32, shape of ``scale``; None for grids that hold zero. Offsets
    that training found are no multiple of the step, and half-integer levels are none either."""

    @property
    def low(self) -> Tensor:
        """Smallest number on the grid."""
        return self._shifted(self.scale * (self.format.qmin - self.zero_point))

    @property
    def high(self) -> Tensor:
        """Largest number on the grid."""
        return self._shifted(self.scale * (self.format.qmax - self.zero_point))

    def to(self, device: torch.device) -> Grid:
        """The same grid on another device."""
        shift = None if self.shift is None else self.shift.to(device)
        return Grid(self.format, self.scale.to(device), self.zero_point.to(device), shift)

    def _shifted(self, values: Tensor) -> Tensor:
        return values if self.shift is None else values + self.shift
