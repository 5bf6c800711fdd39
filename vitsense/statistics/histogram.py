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


def _bin_bounds() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Low and high bound of every bin, by bit pattern; NaN where the pattern is no number."""
    patterns = np.arange(BINS, dtype=np.uint32) << SHIFT
    with np.errstate(invalid="ignore"):  # the patterns of NaN are among them
        inner = patterns.view(np.float32).astype(np.float64)
        outer = (patterns | np.uint32((1 << SHIFT) - 1)).view(np.float32).astype(np.float64)
    return np.minimum(inner, outer), np.maximum(inner, outer)


# ascending order of the bins: negative patterns run backwards
_ORDER = np.concatenate([np.arange(BINS - 1, BINS // 2 - 1, -1), np.arange(BINS // 2)])
_LOW, _HIGH = (bounds[_ORDER] for bounds in _bin_bounds())
_FINITE = np.isfinite(_LOW) & np.isfinite(_HIGH)


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of values by the leading bits of their float32 pattern.

    Bins cover all of float32, so histograms of one offset merge by addition, and quantiles have
    the relative error `RELATIVE_ERROR` in the value (in its distance from the offset, where there
    is one). Shares are off by at most what the bins at the border hold (2^-6 of their value wide),
    and less in practice: inside a bin values count as spread evenly. Memory is fixed: `BINS`
    counts.
    """

    counts: NDArray[np.int64]
    """`(BINS,)`, by bit pattern of the value minus the offset."""
    minimum: float
    maximum: float
    offset: float = 0.0
    """Taken off every value before it is counted; not 0 where values lie far from 0 and close
    together, and bins around 0 would be coarser than their spread."""

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both samples.

        Where the offsets differ, the other's bins are counted by their centres, and the error of
        its values is at most the sum of both bins' errors.
        """
        counts = other.counts
        if other.offset != self.offset:
            centres, weights = other.distribution()
            patterns = (centres - self.offset).astype(np.float32).view(np.uint32) >> SHIFT
            counts = np.bincount(patterns, weights=weights, minlength=BINS).astype(np.int64)
        return Histogram(
            self.counts + counts,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.offset,
        )

    @property
    def total(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

    def _used(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Low bounds, high bounds and counts of the non-empty bins, ascending."""
        counts = self.counts[_ORDER]
        used = (counts > 0) & _FINITE
        low, high = (
            np.clip(bounds[used] + self.offset, self.minimum, self.maximum)
            for bounds in (_LOW, _HIGH)
        )
        return low, high, counts[used].astype(np.float64)

    def distribution(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centres and counts of the non-empty bins, ascending, float64 `(n,)` each."""
        low, high, counts = self._used()
        return (low + high) / 2, counts

    def quantile(self, q: float) -> float:
        """The value at or below which the share ``q`` (0 to 1) lies (the inverted CDF)."""
        centres, counts = self.distribution()
        below = np.cumsum(counts)
        return float(centres[min(int(np.searchsorted(below, q * below[-1])), len(centres) - 1)])

    def _below(self, at: NDArray[np.float64]) -> NDArray[np.float64]:
        """Number of values below each of ``at``, evenly spread inside a bin."""
        low, high, counts = self._used()
        before = np.concatenate([[0.0], np.cumsum(counts)])
        # the first bin that reaches beyond the place
        i = np.searchsorted(high, at, side="left")
        j = np.minimum(i, len(counts) - 1)
        width = high[j] - low[j]
        inside = np.clip((at - low[j]) / np.where(width > 0, width, 1.0), 0.0, 1.0)
        return before[i] + np.where(i < len(counts), inside * counts[j], 0.0)

    def tail_share(self, centre: float, radius: float) -> float:
        """Share of values farther than ``radius`` from ``centre``."""
        low, high = self._below(np.array([centre - radius, centre + radius]))
        total = self.total
        return float((low + total - high) / total)

    def equal_bins(self, n: int = 64) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``n`` equal bins between minimum and maximum: edges `(n+1,)` and counts `(n,)`.

        Counts are not whole: a bin of the histogram is shared out by overlap.
        """
        low, high = self.minimum, self.maximum
        edges = np.linspace(low, high if high > low else low + 1.0, n + 1)
        below = self._below(edges)
        below[0], below[-1] = 0.0, self.total
        return edges, np.diff(below)
