"""How well a file can be expected to agree: the torch model against itself in double precision.

Where values are rounded to few levels, one that lies between two of them is moved by a whole step
when the last bit of a sum changes, and the layers behind amplify it. Single and double precision
are equally valid ways to compute the same model on the same grids: what changes between them is no
property of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
"""Below this probability more images of another class are no chance."""

TWICE = 2.0
"""Two results in single precision, each as far from the exact one as the other, differ by at most
twice that distance (triangle inequality)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The torch model in double against single precision, on the images of the comparison."""

    images: int
    same_top1: int
    within_step: int
    """Images of which every logit is within one step of the logits at 8 bits."""
    largest: float
    """Largest difference of a logit."""
    largest_steps: float
    median_steps: float
    """Median over the images of the largest difference of a logit."""
    file_median_steps: float
    """The same of the file."""
    file_largest_steps: float
    only_file: int
    """Images that get another class in the file alone."""
    only_double: int
    """Images that get another class in double precision alone."""
    p_value: float
    """Probability of at least ``only_file`` if the file had no more reason than double precision.

    Source: McNemar 1947, the exact one-sided form (binomial with one half)."""

    @property
    def within(self) -> bool:
        """Whether the file differs no more than the torch model does from itself."""
        fair = self.file_median_steps <= TWICE * self.median_steps
        return self.p_value >= LEVEL and fair

    @property
    def conclusion(self) -> str:
        """What follows, one sentence."""
        changed = self.images - self.same_top1
        file_changed = changed + self.only_file - self.only_double
        numbers = (
            f"the file differs from the torch model on {file_changed} of {self.images} classes and "
            f"by {self.file_median_steps:.2g} steps (median of the images' largest logit "
            f"difference; {self.file_largest_steps:.2g} at most), the torch model in double "
            f"precision from itself on {changed} and by {self.median_steps:.2g} "
            f"({self.largest_steps:.2g} at most)"
        )
        if self.within:
            return f"within the noise of the arithmetic: {numbers}"
        reasons = []
        if self.p_value < LEVEL:
            reasons.append(f"more classes change than by chance (p = {self.p_value:.2g})")
        if self.file_median_steps > TWICE * self.median_steps:
            reasons.append("the logits differ more than twice as much")
        return f"above the noise of the arithmetic: {numbers}; {' and '.join(reasons)}"


def floor_of(
    single: NDArray[Any], file: NDArray[Any], double: NDArray[Any], *, step: float
) -> Floor:
    """The floor beside the file, from three sets of logits `(N, classes)`.

    Args:
        single: Of the torch model, which the file was compared with.
        file: Of the file.
        double: Of the torch model in double precision.
        step: One step of the logits at 8 bits.
    """
    own, other = np.abs(double - single).max(1), np.abs(file - single).max(1)
    classes = single.argmax(1)
    own_changed, changed = double.argmax(1) != classes, file.argmax(1) != classes
    only_file = int((changed & ~own_changed).sum())
    only_double = int((own_changed & ~changed).sum())
    step = step or 1.0  # logits that are all the same have no range
    return Floor(
        images=len(single),
        same_top1=int((~own_changed).sum()),
        within_step=int((own <= step).sum()),
        largest=float(own.max()),
        largest_steps=float(own.max()) / step,
        median_steps=float(np.median(own)) / step,
        file_median_steps=float(np.median(other)) / step,
        file_largest_steps=float(other.max()) / step,
        only_file=only_file,
        only_double=only_double,
        p_value=_at_least(only_file, only_file + only_double),
    )


def _at_least(hits: int, tries: int) -> float:
    """Probability of ``hits`` or more heads in ``tries`` throws of a fair coin."""
    ways = sum(comb(tries, k) for k in range(hits, tries + 1))
    return float(ways / 2**tries)
