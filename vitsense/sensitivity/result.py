"""What was measured for one module at one bit width, in sums that add up over images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from enum import Enum
from typing import Any

from vitsense.formats import FormatLike, format_of
from vitsense.sensitivity import interval
from vitsense.sensitivity.interval import Interval
from vitsense.settings import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Full precision against quantized on the same images; every field is a sum over images.

    Counts of labelled images are separate, because images may come without labels.
    """

    n: int = 0
    labelled: int = 0
    fp_correct: int = 0
    lost: int = 0
    """Right in full precision, wrong quantized."""
    gained: int = 0
    """Wrong in full precision, right quantized."""
    agree: int = 0
    """Same class in both."""
    kl: float = 0.0
    """Nats."""
    kl2: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    signal2: float = 0.0
    noise2: float = 0.0
    cross: float = 0.0

    def __add__(self, other: Outcome) -> Outcome:
        """The outcome over the images of both."""
        return Outcome(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    def to_list(self) -> list[float]:
        """The fields in order, for ``state.jsonl`` (floats survive JSON exactly)."""
        return list(astuple(self))

    @classmethod
    def from_list(cls, values: list[Any]) -> Outcome:
        """The inverse of `to_list`."""
        return cls(**dict(zip((f.name for f in fields(cls)), values, strict=True)))

    @property
    def finite(self) -> bool:
        """Whether the quantized model gave finite logits throughout."""
        return math.isfinite(self.kl) and math.isfinite(self.noise)

    @property
    def fp_top1(self) -> Interval | None:
        """Full-precision accuracy, percent; None without labels."""
        if not self.labelled:
            return None
        return interval.proportion(self.fp_correct, self.labelled).scaled(100)

    @property
    def drop(self) -> Interval | None:
        """Full-precision minus quantized top-1, percentage points; None without labels."""
        if not self.labelled:
            return None
        return interval.paired_drop(self.labelled, self.lost, self.gained).scaled(100)

    @property
    def agreement(self) -> Interval:
        """Share of images that keep their class, percent."""
        return interval.proportion(self.agree, self.n).scaled(100)

    @property
    def kl_nats(self) -> Interval:
        """Mean divergence from the full-precision output, nats."""
        return interval.mean(self.n, self.kl, self.kl2)

    @property
    def sqnr(self) -> Interval:
        """Signal-to-quantization-noise ratio of the logits, dB."""
        return interval.ratio_db(
            self.n, self.signal, self.noise, self.signal2, self.noise2, self.cross
        )

    def row(self) -> dict[str, Any]:
        """The outcome's columns of ``sensitivity.csv`` and ``joint.csv``."""
        drop, agreement, kl, sqnr = self.drop, self.agreement, self.kl_nats, self.sqnr
        return {
            "n": self.n,
            "drop": None if drop is None else drop.value,
            "drop_low": None if drop is None else drop.low,
            "drop_high": None if drop is None else drop.high,
            "distinguishable": None if drop is None else not drop.contains_zero,
            "lost": self.lost if self.labelled else None,
            "gained": self.gained if self.labelled else None,
            "agreement": agreement.value,
            "agreement_low": agreement.low,
            "agreement_high": agreement.high,
            "kl": kl.value,
            "kl_low": kl.low,
            "kl_high": kl.high,
            "sqnr_db": sqnr.value,
            "sqnr_low": sqnr.low,
            "sqnr_high": sqnr.high,
        }


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: a module in a number format, with the part that is quantized."""

    module: str
    bits: int
    """Of an element, without scales."""
    part: Part
    format: str = ""
    """Name of the format; the integer one of so many bits, if it is not given."""

    def __post_init__(self) -> None:
        """Name the format of bits that were given alone."""
        if not self.format:
            object.__setattr__(self, "format", f"int{self.bits}")

    @classmethod
    def of(cls, module: str, like: FormatLike, part: Part) -> Cell:
        """The cell of a module at so many bits, or in the format of that name."""
        form = format_of(like)
        return cls(module, form.bits, part, form.name)


class Status(Enum):
    """What is known of a cell."""

    MEASURED = "measured"
    BOUNDED = "bounded"
    """Not looked at, because a narrower format of the module is harmless already."""
    UNMEASURED = "unmeasured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A cell with its outcome, or the reason why it has none."""

    cell: Cell
    outcome: Outcome | None
    reason: str = ""
    columns: Mapping[str, Any] | None = None
    """Columns to use instead of the outcome's own: estimates from some images, or bounds."""

    @property
    def status(self) -> Status:
        """What is known of the cell."""
        if self.outcome is None:
            return Status.UNMEASURED if self.columns is None else Status.BOUNDED
        return Status.MEASURED if self.outcome.finite else Status.UNMEASURED

    def row(self, mode: str) -> dict[str, Any]:
        """The row of ``sensitivity.csv``, without the model."""
        status, values = self.status, dict.fromkeys(Outcome(n=1, kl=0, noise=1, signal=1).row())
        reason = self.reason
        if status is Status.UNMEASURED:
            reason = reason or "the quantized model's logits are not finite"
        elif self.columns is not None:
            values |= self.columns
        elif self.outcome is not None:
            values |= self.outcome.row()
        return {
            "module": self.cell.module,
            "part": self.cell.part.value,
            "bits": self.cell.bits,
            "format": self.cell.format,
            "status": status.value,
            "reason": reason,
            **values,
            "mode": mode,
        }
