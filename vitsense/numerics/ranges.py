"""Choosing the range of a grid: absolute maximum, minimum to maximum, percentile, least error."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vitsense.numerics.grid import Format, Granularity, Grid, PerChannel, PerGroup, PerHead

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RangeMethod(Enum):
    """How the ends of the grid are chosen."""

    MINMAX = "minmax"
    """Everything seen fits (for signed formats this is the absolute maximum)."""
    PERCENTILE = "percentile"
    """The outermost 0.01 % on each side are clipped."""
    MSE = "mse"
    """Least squared error between the tensor and its rounded self."""


CLIPPED_SHARE = 1e-4
"""Share clipped on each side by `RangeMethod.PERCENTILE`."""

_SHRINKS = torch.linspace(0.2, 1.0, 41)
"""Candidate ranges of the MSE search, as parts of the full range."""

_TINY = 1e-12  # smallest scale: keeps the reciprocal of an all-zero channel finite


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """Values of a tensor as a weighted histogram."""

    centres: NDArray[np.float64]
    """`(n,)`, ascending, tensor units."""
    counts: NDArray[np.float64]
    """`(n,)`."""
    minimum: float
    maximum: float


def grid_from_tensor(
    x: Tensor, form: Format, granularity: Granularity, method: RangeMethod
) -> Grid:
    """The grid of ``form`` for ``x`` (a weight), with the scale's shape of ``granularity``.

    Source: Krishnamoorthi 2018, section 2 (affine and symmetric); Nagel et al. 2021, "A White
    Paper on Neural Network Quantization", section 3.1 (MSE ranges). Deviation: the MSE search
    shrinks the full range in 41 steps from 1.0 to 0.2, for every channel at once.
    """
    rows = _rows(x.detach(), granularity)  # (groups, members), padded with zeros
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    if method is RangeMethod.PERCENTILE and rows.shape[1] > 2:
        low = torch.quantile(rows.double(), CLIPPED_SHARE, dim=1).to(rows).clamp(max=0)
        high = torch.quantile(rows.double(), 1 - CLIPPED_SHARE, dim=1).to(rows).clamp(min=0)
    if method is RangeMethod.MSE:
        low, high = _least_error(rows, form, low, high)
    scale, zero_point = affine(low, high, form)
    return Grid(
        form, _spread(scale, x.shape, granularity), _spread(zero_point, x.shape, granularity)
    )


def affine(low: Tensor, high: Tensor, form: Format) -> tuple[Tensor, Tensor]:
    """Scale and zero point whose grid reaches from ``low`` to ``high`` and contains zero.

    Source: Jacob et al. 2018, section 2.1 and appendix; signed formats are symmetric: the scale is
    the larger of |low| / |qmin| and high / qmax (deviation: most tools use qmax for both ends,
    which leaves the smallest code unused at the cost of range).
    """
    if form.signed:
        scale = torch.maximum(low.abs() / -form.qmin, high.abs() / form.qmax).clamp(min=_TINY)
        return scale, torch.zeros_like(scale)
    scale = ((high - low) / (form.qmax - form.qmin)).clamp(min=_TINY)
    zero_point = torch.round(-low / scale).clamp(form.qmin, form.qmax)
    return scale, zero_point


def _least_error(rows: Tensor, form: Format, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    best = torch.full_like(low, float("inf"))
    best_low, best_high = low.clone(), high.clone()
    for shrink in _SHRINKS.tolist():
        scale, zero_point = affine(low * shrink, high * shrink, form)
        # one fused pass over the rows: round and clip, then the squared error
        rounded = (
            torch.fake_quantize_per_channel_affine(
                rows.float(), scale.float(), zero_point.to(torch.int32), 0, form.qmin, form.qmax
            )
            if form.bits <= 8
            else _slow_round(rows, scale, zero_point, form)
        )
        error = torch.linalg.vector_norm(rounded - rows, dim=1)
        # ties go to the larger range, which clips less of what was not seen
        better = error <= best
        best = torch.where(better, error, best)
        best_low = torch.where(better, low * shrink, best_low)
        best_high = torch.where(better, high * shrink, best_high)
    return best_low, best_high


def _slow_round(rows: Tensor, scale: Tensor, zero_point: Tensor, form: Format) -> Tensor:
    codes = torch.round(rows / scale[:, None]) + zero_point[:, None]
    return (codes.clamp(form.qmin, form.qmax) - zero_point[:, None]) * scale[:, None]


def _rows(x: Tensor, granularity: Granularity) -> Tensor:
    """``x`` as one row per scale."""
    if isinstance(granularity, PerChannel):
        return x.movedim(granularity.axis, 0).flatten(1) if x.dim() > 1 else x[:, None]
    if isinstance(granularity, PerHead):
        return x.movedim(granularity.axis, 0).reshape(granularity.heads, -1)
    if isinstance(granularity, PerGroup):
        missing = -x.shape[-1] % granularity.size
        padded = torch.nn.functional.pad(x, (0, missing))  # zeros change no range and no error
        return padded.reshape(-1, granularity.size)
    return x.reshape(1, -1)


def _spread(values: Tensor, shape: torch.Size, granularity: Granularity) -> Tensor:
    """One value per row, back to a shape that broadcasts against the tensor."""
    if isinstance(granularity, PerChannel):
        return values.reshape(granularity.scale_shape(tuple(shape)))
    if isinstance(granularity, PerHead):
        length = shape[granularity.axis]
        repeated = values.repeat_interleave(length // granularity.heads)
        return repeated.reshape(granularity.scale_shape(tuple(shape)))
    if isinstance(granularity, PerGroup):
        groups = -(-shape[-1] // granularity.size)
        repeated = values.reshape(*shape[:-1], groups).repeat_interleave(granularity.size, dim=-1)
        return repeated[..., : shape[-1]]
    return values.reshape(())


def grid_from_distribution(
    values: Distribution,
    form: Format,
    method: RangeMethod,
    device: torch.device | str = "cpu",
) -> Grid:
    """One grid for a tensor that is known by its histogram (an activation).

    Zero is on the grid; a tensor without negative values gets zero point 0.

    Source: as `grid_from_tensor`; the error of a candidate range is the weighted squared rounding
    error of at most 2048 bins. Both ends are searched together, in steps of 1/8 of the full range,
    then 1/16, then 1/32 around the best.
    """
    low, high = min(values.minimum, 0.0), max(values.maximum, 0.0)
    if method is RangeMethod.PERCENTILE:
        low, high = _percentiles(values, low, high)
    elif method is RangeMethod.MSE:
        low, high = _search(values, form, low, high)
    scale, zero_point = affine(
        torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64), form
    )
    return Grid(form, scale.float().to(device), zero_point.float().to(device))


def _percentiles(values: Distribution, low: float, high: float) -> tuple[float, float]:
    below = np.cumsum(values.counts) / max(float(values.counts.sum()), 1.0)
    first = int(np.searchsorted(below, CLIPPED_SHARE))
    last = min(int(np.searchsorted(below, 1 - CLIPPED_SHARE)), len(below) - 1)
    return (
        min(max(low, float(values.centres[first])), 0.0),
        max(min(high, float(values.centres[last])), 0.0),
    )


def _search(values: Distribution, form: Format, low: float, high: float) -> tuple[float, float]:
    """The pair of range ends with the least error, as parts of the full range refined thrice."""
    centres, counts = _condensed(values)
    best_low, best_high = 1.0, 1.0
    for step, reach in ((1 / 8, 7), (1 / 16, 1), (1 / 32, 1)):
        lows = _around(best_low, step, reach) if low < 0 else np.array([1.0])
        highs = _around(best_high, step, reach) if high > 0 else np.array([1.0])
        pairs = np.array([(a, b) for a in lows for b in highs])
        errors = _errors(centres, counts, form, low * pairs[:, :1], high * pairs[:, 1:])
        best_low, best_high = pairs[int(np.argmin(errors))]
    return low * float(best_low), high * float(best_high)


_CONDENSED = 2048
"""Bins that the search looks at; neighbours are united at their common mean."""


def _condensed(values: Distribution) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The distribution in at most 2048 bins of equal width, with the mean of each as its centre."""
    if len(values.centres) <= _CONDENSED:
        return values.centres, values.counts
    edges = np.linspace(values.centres[0], values.centres[-1], _CONDENSED + 1)
    counts, _ = np.histogram(values.centres, edges, weights=values.counts)
    sums, _ = np.histogram(values.centres, edges, weights=values.counts * values.centres)
    used = counts > 0
    return sums[used] / counts[used], counts[used]


def _around(centre: float, step: float, reach: int) -> NDArray[np.float64]:
    """Parts of the full range to try, the largest first (so that ties clip least)."""
    parts = centre + step * np.arange(reach, -reach - 1, -1, dtype=np.float64)
    return np.asarray(parts[(parts > 0.01) & (parts <= 1.0)], dtype=np.float64)


def _errors(
    centres: NDArray[np.float64],
    counts: NDArray[np.float64],
    form: Format,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Weighted squared rounding error of each candidate range, `(pairs,)`, as in `affine`."""
    zero: NDArray[np.float64]
    if form.signed:
        scale = np.maximum(np.maximum(np.abs(low) / -form.qmin, high / form.qmax), _TINY)
        zero = np.zeros_like(scale)
    else:
        scale = np.maximum((high - low) / (form.qmax - form.qmin), _TINY)
        zero = np.clip(np.rint(-low / scale), form.qmin, form.qmax)
    codes: NDArray[np.float64] = np.clip(np.rint(centres / scale) + zero, form.qmin, form.qmax)
    errors = (codes - zero) * scale - centres
    weighted: NDArray[np.float64] = (errors * errors) @ counts
    return weighted
