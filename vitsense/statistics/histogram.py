"""A histogram that merges without rebinning: bins are the leading bits of the number itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHIFT = 17
"""Bits of a float32 pattern that are dropped: sign, exponent and 6 mantissa bits remain."""

BINS = 1 << (32 - SHIFT)
"""Number of bins."""

RELATIVE_ERROR = 2.0**-7
"""A value differs from the centre of its bin by at most this part of itself."""


def _bin_centres() -> NDArray[np.float64]:
    patterns = np.arange(BINS, dtype=np.uint32) << SHIFT
    with np.errstate(invalid="ignore"):  # the patterns of NaN are among them
        low = patterns.view(np.float32).astype(np.float64)
        high = (patterns | np.uint32((1 << SHIFT) - 1)).view(np.float32).astype(np.float64)
        return np.asarray((low + high) / 2)


_CENTRES = _bin_centres()
# ascending order of the bins: negative patterns run backwards
_ORDER = np.concatenate([np.arange(BINS - 1, BINS // 2 - 1, -1), np.arange(BINS // 2)])
_FINITE = np.isfinite(_CENTRES[_ORDER])


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of values by the leading bits of their float32 pattern.

    Bins cover all of float32, so histograms of any two samples merge by addition, and quantiles
    and tail shares have the relative error `RELATIVE_ERROR` in the value (not in the count).
    """

    counts: NDArray[np.int64]
    """`(BINS,)`, by bit pattern."""
    minimum: float
    maximum: float

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both samples."""
        return Histogram(
            self.counts + other.counts,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )

    @property
    def total(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

    def distribution(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centres and counts of the non-empty bins, ascending, float64 `(n,)` each."""
        counts = self.counts[_ORDER]
        used = (counts > 0) & _FINITE
        centres = np.clip(_CENTRES[_ORDER][used], self.minimum, self.maximum)
        return centres, counts[used].astype(np.float64)

    def quantile(self, q: float) -> float:
        """The value below which the share ``q`` (0 to 1) lies."""
        centres, counts = self.distribution()
        below = np.cumsum(counts)
        return float(centres[min(int(np.searchsorted(below, q * below[-1])), len(centres) - 1)])

    def tail_share(self, centre: float, radius: float) -> float:
        """Share of values farther than ``radius`` from ``centre``."""
        centres, counts = self.distribution()
        return float(counts[np.abs(centres - centre) > radius].sum() / counts.sum())

    def equal_bins(self, n: int = 64) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``n`` equal bins between minimum and maximum: edges `(n+1,)` and counts `(n,)`."""
        centres, counts = self.distribution()
        low, high = self.minimum, self.maximum
        edges = np.linspace(low, high if high > low else low + 1.0, n + 1)
        binned, _ = np.histogram(centres, bins=edges, weights=counts)
        return edges, binned
