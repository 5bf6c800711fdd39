"""Divergence that was estimated and not measured: sums over images, rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitsense.sensitivity import interval
from vitsense.sensitivity.interval import Interval
from vitsense.sensitivity.ledger import Span
from vitsense.sensitivity.result import Cell, Outcome

ESTIMATED = "estimated"
"""Status of a row whose divergence was estimated; everything else of it is empty."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Sums over draws of the estimated divergence, nats; see `vitsense.sensitivity.draws`."""

    n: int
    """Draws."""
    kl: float
    """Of what each says of the mean: its weight times its value."""
    kl2: float
    """Of the squares of that."""
    square: float
    """Of the weight times the squared value."""

    def __add__(self, other: Estimate) -> Estimate:
        """The estimate over the draws of both."""
        return Estimate(
            self.n + other.n,
            self.kl + other.kl,
            self.kl2 + other.kl2,
            self.square + other.square,
        )

    def over(self, images: int) -> Rated:
        """The mean over images with its sampling interval.

        Draws, their random signs, and the images themselves are sampled; that the estimate is only
        of second order is not in it. The variance between draws is for the images at hand; that
        between images, which counts once for each of them, is bounded by the mean square of single
        values (signs only add to it).
        """
        value = self.kl / self.n
        between = max(self.square / self.n - value * value, 0.0) * (self.n - 1) / images
        return Rated(images, interval.mean(self.n, self.kl, self.kl2 + self.n * between))


@dataclass(frozen=True, slots=True)
class Rated:
    """A divergence that was estimated, nats."""

    n: int
    """Images."""
    kl_nats: Interval
    negative: bool = False
    """Whether it came out below zero, which a divergence is not; it is then given as 0."""
    trace: float | None = None
    """Mean trace of the weight's Hessian, nats per squared unit; None where there is none."""

    @classmethod
    def of_probes(
        cls, values: Sequence[float], sizes: Sequence[int], images: int, trace: float | None
    ) -> Rated:
        """From one value of each probe, summed over its images.

        The interval is Student's, of probes weighed by their images.

        Args:
            values: Nats.
            sizes: How many images each probe met.
            images: How many there are.
            trace: Mean trace of the weight's Hessian.
        """
        count, total = len(values), sum(sizes)
        each = [value * count / total for value in values]
        found = interval.mean_difference(count, sum(each), sum(v * v for v in each))
        ends = (max(end, 0.0) for end in (found.value, found.low, found.high))
        return cls(images, Interval(*ends), found.value < 0, trace)


Estimates = Mapping[Cell, Estimate]


@dataclass(slots=True)
class EstimateMemory:
    """What earlier, interrupted work already estimated, and where new estimates are kept."""

    known: Mapping[Span, Estimates] = field(default_factory=dict)
    keep: Callable[[Span, Estimates], None] = lambda _span, _found: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What measuring a cell on a few images said; see `vitsense.sensitivity.checked`."""

    first_order: Rated
    """The estimate before."""
    measured: float
    """Nats."""
    draws: int
    """Images it was measured on; one may be drawn several times."""
    weight: float
    """Of the measurement, 0 to 1; one for all modules of a format, like the next two."""
    factor: float
    """Measured over estimated, the geometric mean."""
    spread: float | None
    """What that differs by from module to module beyond noise, a factor (1: nothing); None where
    there are too few modules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """A cell with its estimate, or the reason why it has none."""

    cell: Cell
    estimate: Rated | None
    reason: str = ""
    checked: Checked | None = None

    def row(self, mode: str) -> dict[str, Any]:
        """The row of ``sensitivity.csv``, without the model; drop and agreement are empty."""
        kl = None if self.estimate is None else self.estimate.kl_nats
        return {
            "module": self.cell.module,
            "part": self.cell.part.value,
            "bits": self.cell.bits,
            "format": self.cell.format,
            "status": "unmeasured" if kl is None else ESTIMATED,
            "reason": self.reason,
            **dict.fromkeys(Outcome(n=1, kl=0, noise=1, signal=1).row()),
            "n": None if self.estimate is None else self.estimate.n,
            "kl": None if kl is None else kl.value,
            "kl_low": None if kl is None else kl.low,
            "kl_high": None if kl is None else kl.high,
            "mode": mode,
        }
