"""What the report shows of one module: its tensors, with the grids that quantize them."""

from __future__ import annotations

from dataclasses import dataclass

WIDTH, HEIGHT = 220, 44
"""Size of a small histogram, pixels."""

RUNG = 8
"""Pixels from one grid to the next below a histogram."""

SPARK_HEIGHT = 16
"""Pixels of the largest channel."""

TALLEST = 40
"""Pixels of the fullest bin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The quantization grid at one width, in the pixels of the histogram above it."""

    bits: int
    start: float
    """Place of the smallest number on the grid."""
    step: float
    """From one number to the next."""
    steps: int
    low: float
    """The smallest number on it."""
    high: float
    """The largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The histogram of one tensor and its grids, for a small drawing."""

    left: float
    """Value at the left end of the drawing."""
    right: float
    """Value at its right end, `WIDTH` pixels from there."""
    start: float
    """Place of the smallest value."""
    bin: float
    """Pixels of one of the equal bins."""
    heights: tuple[int, ...]
    """Logarithm of the counts, 0 to `TALLEST`."""
    most: int
    """Values in the fullest bin."""
    ticks: tuple[tuple[float, str], ...]
    """Places and labels of the mean and of plus and minus 6 standard deviations."""
    ladders: tuple[Ladder, ...]
    channels: tuple[int, ...]
    """Largest magnitude of each channel (of neighbours, where there are more than 32), 0 to
    `SPARK_HEIGHT`."""
    top: float
    """The largest magnitude of all channels; 0 if they are not known."""
    wide: int
    """How many channels there are."""
    summary: str
    """In words, for people who do not see the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a module."""

    role: str
    numbers: str
    grid: str
    """Step and clipped share at the plan's width."""
    channels: str
    """Which channels stand out."""
    heads: str
    """How heads differ; empty if there are none."""
    kurtosis: float
    picture: Picture | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why a module loses what it loses, and what helps."""

    cause: str
    evidence: str
    remedy: str
    shown: bool = False
    """Whether taking it away helped; else it is a suspicion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A module's own part of the report."""

    tensors: tuple[Tensor, ...] = ()
    causes: tuple[Cause, ...] = ()


def worst_tensor(sheet: Sheet) -> Tensor | None:
    """The tensor with the heaviest tail among those that are drawn."""
    drawn = [tensor for tensor in sheet.tensors if tensor.picture is not None]
    return max(drawn, key=lambda tensor: tensor.kurtosis, default=None)
