"""Divergence that was estimated and not measured: sums over images, rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    """Sums over images of the estimated divergence, nats."""

    n: int
    kl: float
    kl2: float

    def __add__(self, other: Estimate) -> Estimate:
        """The estimate over the images of both."""
        return Estimate(self.n + other.n, self.kl + other.kl, self.kl2 + other.kl2)

    @property
    def kl_nats(self) -> Interval:
        """The mean with its sampling interval.

        Images and probes are sampled; that the estimate is only of second order is not in it.
        """
        return interval.mean(self.n, self.kl, self.kl2)


Estimates = Mapping[Cell, Estimate]


@dataclass(slots=True)
class EstimateMemory:
    """What earlier, interrupted work already estimated, and where new estimates are kept."""

    known: Mapping[Span, Estimates] = field(default_factory=dict)
    keep: Callable[[Span, Estimates], None] = lambda _span, _found: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """A cell with its estimate, or the reason why it has none."""

    cell: Cell
    estimate: Estimate | None
    reason: str = ""

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
