"""What a group gives back when everything else stays quantized, in sums that add up over images."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from vitsense.numerics.distance import kl_nats
from vitsense.sensitivity import interval
from vitsense.sensitivity.interval import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Everything quantized against everything but one group, on the same images.

    Without labels, keeping the class of full precision takes the place of being right.
    """

    n: int = 0
    labelled: int = 0
    regained: int = 0
    """Right with the group spared, wrong with everything quantized."""
    relost: int = 0
    """The other way round."""
    kept: int = 0
    """Class of full precision with the group spared, another one with everything quantized."""
    unkept: int = 0
    """The other way round."""
    kl: float = 0.0
    """Divergence with everything quantized less that with the group spared, nats."""
    kl2: float = 0.0

    def __add__(self, other: Recovery) -> Recovery:
        """The recovery over the images of both."""
        return Recovery(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    def to_list(self) -> list[float]:
        """The fields in order, for ``state.jsonl`` (floats survive JSON exactly)."""
        return list(astuple(self))

    @classmethod
    def from_list(cls, values: list[Any]) -> Recovery:
        """The inverse of `to_list`."""
        return cls(**dict(zip((f.name for f in fields(cls)), values, strict=True)))

    @property
    def points(self) -> Interval:
        """drop(everything) - drop(everything but the group), percentage points.

        Paired: the two models saw the same images. Without labels, of agreement.
        """
        if self.labelled:
            found = interval.paired_drop(self.labelled, self.regained, self.relost)
        else:
            found = interval.paired_drop(self.n, self.kept, self.unkept)
        return found.scaled(100)

    @property
    def kl_nats(self) -> Interval:
        """The mean divergence that is given back, nats."""
        return interval.mean_difference(self.n, self.kl, self.kl2)

    def row(self) -> dict[str, Any]:
        """The recovery's columns of ``groups.csv``."""
        points, kl = self.points, self.kl_nats
        known = bool(self.labelled)
        return {
            "recovery": points.value,
            "recovery_low": points.low,
            "recovery_high": points.high,
            "recovery_distinguishable": not points.contains_zero,
            "regained": self.regained if known else self.kept,
            "relost": self.relost if known else self.unkept,
            "recovery_kl": kl.value,
            "recovery_kl_low": kl.low,
            "recovery_kl_high": kl.high,
        }


def recovery_of(reference: Tensor, whole: Tensor, spared: Tensor, labels: Tensor) -> Recovery:
    """The recovery of one batch.

    Args:
        reference: Full-precision logits, `(B, classes)`.
        whole: Logits with everything quantized.
        spared: Logits with everything quantized but the group.
        labels: `(B,)`; -1 without label.
    """
    known = labels >= 0
    own, all_, but = (logits.argmax(1) for logits in (reference, whole, spared))
    now, before = (but == labels) & known, (all_ == labels) & known
    gain = kl_nats(reference, whole) - kl_nats(reference, spared)
    counts = torch.stack(
        [
            known.sum(),
            (now & ~before).sum(),
            (before & ~now).sum(),
            ((but == own) & (all_ != own)).sum(),
            ((all_ == own) & (but != own)).sum(),
        ]
    ).tolist()
    sums = torch.stack([gain.sum(), (gain * gain).sum()]).tolist()
    return Recovery.from_list([len(labels), *map(int, counts), *sums])
