"""The range with the least squared rounding error: of rows of a tensor, or of a histogram.

Both searches go from coarse to fine over parts of the full range, in geometric steps: heavy tails
put the best range of a narrow format anywhere between all and a fiftieth of the full one.

Source: Nagel et al. 2021, "A White Paper on Neural Network Quantization", section 3.1, eq. 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vitsense.numerics.grid import Format

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCALE_FLOOR = float(torch.finfo(torch.float32).tiny)
"""Smallest scale, 1.2e-38: its reciprocal is finite, and an all-zero channel has it."""

RANGE_LIMIT = 1e38
"""Largest end of a range, either side: the grid from one to the other stays finite in float32."""

_COARSE = tuple(0.72**k for k in range(12, -1, -1))  # 0.019 ... 1
_FINE = tuple(tuple(step**k for k in (-3, -2, -1, 1, 2, 3)) for step in (0.72**0.25, 0.72**0.0625))
_CPU_CHUNK = 1 << 19
"""Members looked at together on a CPU: fewer do not pay for the calls, more leave the cache."""


def affine(low: Tensor, high: Tensor, form: Format) -> tuple[Tensor, Tensor]:
    """Scale and zero point whose grid reaches from ``low`` to ``high`` and contains zero.

    The scale is never below `SCALE_FLOOR`, and the ends never beyond `RANGE_LIMIT`.

    Source: Jacob et al. 2018, section 2.1 and appendix; signed formats are symmetric: the scale is
    the larger of |low| / |qmin| and high / qmax (deviation: most tools use qmax for both ends,
    which leaves the smallest code unused at the cost of range).
    """
    low, high = low.clamp(min=-RANGE_LIMIT), high.clamp(max=RANGE_LIMIT)
    if form.signed:
        scale = torch.maximum(low.abs() / -form.qmin, high.abs() / form.qmax)
        scale = scale.clamp(min=SCALE_FLOOR)
        return scale, torch.zeros_like(scale)
    scale = ((high - low) / (form.qmax - form.qmin)).clamp(min=SCALE_FLOOR)
    zero_point = torch.round(-low / scale).clamp(form.qmin, form.qmax)
    return scale, zero_point


def least_error_of_rows(
    rows: Tensor, form: Format, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Ends of the best range of each row, `(rows,)` each; both ends shrink by the same part.

    25 ranges are tried for every row: 13 from 1 to 0.02 of the full range in steps of 28 %, then
    steps of 8 % and of 2 % around the best.

    Args:
        rows: `(rows, members)`, float32.
        form: The format to round to.
        low: Lower ends of the full range, `(rows,)`, not above 0.
        high: Upper ends, `(rows,)`, not below 0.
    """
    count = rows.shape[0]
    size = max(1, _CPU_CHUNK // max(1, rows.shape[1])) if rows.device.type == "cpu" else count
    chunks = [slice(start, start + size) for start in range(0, count, size)]
    part = torch.cat([_best_parts(rows[c], form, low[c], high[c]) for c in chunks])
    return low * part, high * part


def _best_parts(rows: Tensor, form: Format, low: Tensor, high: Tensor) -> Tensor:
    """The part of the full range with the least error, for each row."""
    steps, rounded = torch.empty_like(rows), torch.empty_like(rows)
    best = torch.full_like(low, float("inf"))
    best_part = torch.ones_like(low)
    for factors in (_COARSE, *_FINE):
        centre = torch.ones_like(best_part) if factors is _COARSE else best_part
        for factor in factors:
            part = (centre * factor).clamp(max=1.0)
            scale, zero_point = affine(low * part, high * part, form)
            torch.mul(rows, (1.0 / scale)[:, None], out=steps)
            torch.round(steps, out=rounded)
            if form.signed:
                rounded.clamp_(form.qmin, form.qmax)
            else:
                zero = zero_point[:, None]
                rounded.add_(zero).clamp_(form.qmin, form.qmax).sub_(zero)
            # the error in steps, so that the squares of tiny or huge values stay in float32
            error = torch.linalg.vector_norm(rounded.sub_(steps), dim=1) * scale
            # ties go to the larger range, which clips less of what was not seen
            better = (error < best) | ((error == best) & (part > best_part))
            best = torch.where(better, error, best)
            best_part = torch.where(better, part, best_part)
    return best_part


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """Values of a tensor as a weighted histogram."""

    centres: NDArray[np.float64]
    """`(n,)`, ascending, tensor units."""
    counts: NDArray[np.float64]
    """`(n,)`."""
    minimum: float
    maximum: float


_PARTS = (*(0.7**k for k in range(12)), 0.0)  # 1 ... 0.02, and 0: that side is given up
_AROUND = tuple(
    tuple(step**k for k in (-2, -1, 0, 1, 2)) for step in (0.7 ** (1 / 3), 0.7 ** (1 / 9))
)


def least_error_of_distribution(
    values: Distribution, form: Format, low: float, high: float
) -> tuple[float, float]:
    """The pair of range ends with the least error; each end is a part of its full one.

    Both ends are searched together: all pairs of 13 parts (1 to 0.02, and 0), then of 5 around
    the best in steps of 13 % and of 4 %.
    """
    bins = _bins(values)
    best_low, best_high = 1.0, 1.0
    for factors in (_PARTS, *_AROUND):
        # the largest first: the first of equals wins, and clips least
        lows = [min(best_low * factor, 1.0) for factor in factors] if low < 0 else [1.0]
        highs = [min(best_high * factor, 1.0) for factor in factors] if high > 0 else [1.0]
        pairs = np.array([(a, b) for a in lows for b in highs if a or b])
        # a few pairs at a time stay in the cache
        pieces = np.array_split(pairs, -(-len(pairs) // 8))
        errors = [_errors(bins, form, low * few[:, :1], high * few[:, 1:]) for few in pieces]
        best_low, best_high = pairs[int(np.argmin(np.concatenate(errors)))].tolist()
    return low * best_low, high * best_high


@dataclass(frozen=True, slots=True, eq=False)
class _Bins:
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    counts: NDArray[np.float64]


_HALF_WIDTH = 2.0**-7
_FINEST = 2.0**-16


def _bins(values: Distribution) -> _Bins:
    """Bins in which values lie evenly.

    A bin reaches halfway to its nearer neighbour, unless that is more than 2^-7 of its centre (the
    widest a bin of the statistics is): then it is a point, as values of a few sizes are. Bins next
    to zero that are finer than 2^-16 of the range are united.
    """
    centres, counts = values.centres, values.counts
    gaps = np.diff(centres, prepend=-np.inf, append=np.inf)
    half = np.minimum(gaps[:-1], gaps[1:]) / 2
    half = np.where(half <= np.abs(centres) * _HALF_WIDTH, half, 0.0)
    width = max(float(centres[-1] - centres[0]) * _FINEST, SCALE_FLOOR)
    cell = np.floor(centres / width)
    first = np.flatnonzero(np.diff(cell, prepend=np.nan) != 0)
    last = np.append(first[1:], len(centres)) - 1
    return _Bins((centres - half)[first], (centres + half)[last], np.add.reduceat(counts, first))


def _errors(
    bins: _Bins, form: Format, low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weighted squared rounding error of each candidate range `(pairs, 1)`, `(pairs,)`.

    The mean over a bin is exact: the squared error to the nearest code n has, over u in steps, the
    antiderivative n / 12 + (u - n)^3 / 3 (1/12 is its integral over the whole cell of a code), also
    beyond the last code.
    """
    zero: NDArray[np.float64]
    if form.signed:
        scale = np.maximum(np.maximum(np.abs(low) / -form.qmin, high / form.qmax), SCALE_FLOOR)
        zero = np.zeros_like(scale)
    else:
        scale = np.maximum((high - low) / (form.qmax - form.qmin), SCALE_FLOOR)
        zero = np.clip(np.rint(-low / scale), form.qmin, form.qmax)
    u, v = bins.low / scale, bins.high / scale
    n, m = (np.clip(np.rint(w) + zero, form.qmin, form.qmax) - zero for w in (u, v))
    r, t = u - n, v - m
    # within one cell the difference of cubes is divided out: exact for a bin without width
    inside = (r * r + r * t + t * t) / 3
    with np.errstate(divide="ignore", invalid="ignore"):  # a bin without width lies in one cell
        across = ((m - n) / 12 + (t * t * t - r * r * r) / 3) / (v - u)
    mean: NDArray[np.float64] = np.where(n == m, inside, across)
    weighted: NDArray[np.float64] = (mean @ bins.counts) * scale[:, 0] ** 2
    return weighted
