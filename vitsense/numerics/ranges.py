"""Choosing the range of a grid: absolute maximum, minimum to maximum, percentile, least error."""

from __future__ import annotations

import math
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from vitsense.errors import MeasurementError, UserInputError
from vitsense.numerics.grid import Format, Granularity, Grid, PerChannel, PerGroup, PerHead
from vitsense.numerics.least_error import (
    Distribution,
    affine,
    least_error_of_distribution,
    least_error_of_rows,
)

__all__ = [
    "Distribution",
    "RangeMethod",
    "affine_grid",
    "grid_from_distribution",
    "grid_from_tensor",
    "laplace_reach",
]


class RangeMethod(Enum):
    """How the ends of the grid are chosen."""

    ABSMAX = "absmax"
    """From minus to plus the absolute maximum; from 0 where nothing has the other sign."""
    MINMAX = "minmax"
    """Everything seen fits, with the finest scale that allows it: a signed format uses its extra
    negative code."""
    PERCENTILE = "percentile"
    """A share of the values is clipped on each side (`CLIPPED_SHARE` if nothing else is said)."""
    MSE = "mse"
    """Least squared error between the tensor and its rounded self."""


CLIPPED_SHARE = 1e-4
"""Share clipped on each side by `RangeMethod.PERCENTILE`."""


def grid_from_tensor(
    x: Tensor,
    form: Format,
    granularity: Granularity,
    method: RangeMethod,
    *,
    clipped_share: float = CLIPPED_SHARE,
) -> Grid:
    """The grid of ``form`` for ``x`` (a weight), with the scale's shape of ``granularity``.

    Args:
        x: Any floating type; the range is found in float32.
        form: Integer format.
        granularity: Which values share a scale.
        method: How the range is chosen.
        clipped_share: Share clipped on each side by `RangeMethod.PERCENTILE`, 0 to 0.5.

    Raises:
        MeasurementError: ``x`` is empty or holds NaN or infinity.
        UserInputError: the granularity does not fit the shape, or the share is not 0 to 0.5.

    Source: Krishnamoorthi 2018, section 2 (affine and symmetric); Nagel et al. 2021, "A White
    Paper on Neural Network Quantization", section 3.1 (MSE ranges). Deviation: the MSE search
    tries 25 parts of the full range, from coarse to fine, for every channel at once.
    """
    granularity.scale_shape(tuple(x.shape))  # refuses what does not fit
    rows = _rows(x.detach().float(), granularity)  # (groups, members)
    if not rows.numel():
        raise MeasurementError(f"A tensor of shape {tuple(x.shape)} is empty and has no range.")
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise MeasurementError(
            "A tensor to quantize holds values that are not finite (NaN or infinity): check the "
            "weights it came from."
        )
    if method is RangeMethod.ABSMAX:
        low, high = _absmax(low, high, form)
    elif method is RangeMethod.PERCENTILE:
        low, high = _percentiles_of_rows(rows, x, granularity, _checked(clipped_share))
    elif method is RangeMethod.MSE:
        low, high = least_error_of_rows(rows, form, low, high)
    scale, zero_point = affine(low, high, form)
    return Grid(
        form, _spread(scale, x.shape, granularity), _spread(zero_point, x.shape, granularity)
    )


def _checked(share: float) -> float:
    if not 0 <= share < 0.5:
        raise UserInputError(f"A clipped share of {share} per side is not from 0 to below 0.5.")
    return share


def _absmax(low: Tensor, high: Tensor, form: Format) -> tuple[Tensor, Tensor]:
    """Ends of equal size, except that an unsigned format does not reach where nothing is."""
    top = torch.maximum(-low, high)
    if form.signed:
        return -top, top
    return torch.where(low < 0, -top, low), torch.where(high > 0, top, high)


def _percentiles_of_rows(
    rows: Tensor, x: Tensor, granularity: Granularity, share: float
) -> tuple[Tensor, Tensor]:
    """Quantiles with linear interpolation, by sorting: `torch.quantile` had a limit of 2^24."""
    if isinstance(granularity, PerGroup):  # the padding of short groups must not be counted
        rows = _rows(x.detach().float(), granularity, padding=float("nan"))
    ordered = rows.sort(dim=1).values  # NaN come last
    last = (~ordered.isnan()).sum(dim=1) - 1

    def quantile(q: float) -> Tensor:
        place = last.double() * q
        below = place.floor().long()
        near, far = (
            ordered.gather(1, i[:, None])[:, 0] for i in (below, torch.minimum(below + 1, last))
        )
        return torch.lerp(near, far, (place - below).float())

    return quantile(share).clamp(max=0), quantile(1 - share).clamp(min=0)


def _rows(x: Tensor, granularity: Granularity, padding: float = 0.0) -> Tensor:
    """``x`` as one row per scale."""
    if isinstance(granularity, PerChannel):
        return x.movedim(granularity.axis, 0).reshape(x.shape[granularity.axis], -1)
    if isinstance(granularity, PerHead):
        return x.movedim(granularity.axis, 0).reshape(granularity.heads, -1)
    if isinstance(granularity, PerGroup):
        x = x.movedim(granularity.axis, -1)
        missing = -x.shape[-1] % granularity.size
        # zeros change no range, since every range holds zero, and no error
        padded = torch.nn.functional.pad(x, (0, missing), value=padding)
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
        axis, length = granularity.axis, shape[granularity.axis]
        others = torch.Size(n for i, n in enumerate(shape) if i != axis % len(shape))
        groups = -(-length // granularity.size)
        repeated = values.reshape(*others, groups).repeat_interleave(granularity.size, dim=-1)
        return repeated[..., :length].movedim(-1, axis)
    return values.reshape(())


def grid_from_distribution(
    values: Distribution,
    form: Format,
    method: RangeMethod,
    device: torch.device | str = "cpu",
    *,
    clipped_share: float = CLIPPED_SHARE,
) -> Grid:
    """One grid for a tensor that is known by its histogram (an activation).

    Zero is on the grid; a tensor without negative values gets zero point 0.

    Args:
        values: What was seen.
        form: Integer format.
        method: How the range is chosen.
        device: Where the grid is needed.
        clipped_share: Share clipped on each side by `RangeMethod.PERCENTILE`, 0 to 0.5.

    Raises:
        MeasurementError: nothing was seen, or an end is NaN or infinite.
        UserInputError: the share is not 0 to 0.5.

    Source: as `grid_from_tensor`. Deviation: the MSE search moves both ends independently.
    """
    low, high = min(values.minimum, 0.0), max(values.maximum, 0.0)
    if not len(values.centres) or not np.isfinite([values.minimum, values.maximum]).all():
        raise MeasurementError(
            f"A distribution of {len(values.centres)} bins from {values.minimum} to "
            f"{values.maximum} has no range: calibrate on images that give finite values."
        )
    if method is RangeMethod.PERCENTILE:
        low, high = _percentiles(values, low, high, _checked(clipped_share))
    elif method is RangeMethod.MSE:
        low, high = least_error_of_distribution(values, form, low, high)
    lower, upper = (torch.tensor(end, dtype=torch.float64) for end in (low, high))
    if method is RangeMethod.ABSMAX:
        lower, upper = _absmax(lower, upper, form)
    scale, zero_point = affine(lower, upper, form)
    return Grid(form, scale.float().to(device), zero_point.float().to(device))


def laplace_reach(bits: int) -> float:
    """How far a range reaches to either side of the mean, in standard deviations.

    That of least expected squared error for a Laplace distribution: the derivative of
    2 b² exp(-a/b) + a² / (3 · 4^bits) by the reach a is zero where (a/b) exp(a/b) = 3 · 4^bits,
    with b the standard deviation over the root of 2.

    Args:
        bits: Of an integer format.

    Source: Banner, Nahshan and Soudry 2019, "Post training 4-bit quantization of convolutional
    networks for rapid-deployment" (ACIQ).
    """
    from scipy.special import lambertw

    return float(lambertw(3 * 4.0**bits).real) / math.sqrt(2)


def affine_grid(low: Tensor, high: Tensor, form: Format) -> Grid:
    """The grid from ``low`` (not above 0) to ``high`` (not below 0), of their shape."""
    scale, zero_point = affine(low, high, form)
    return Grid(form, scale.float(), zero_point.float())


def _percentiles(
    values: Distribution, low: float, high: float, share: float
) -> tuple[float, float]:
    below = np.cumsum(values.counts) / max(float(values.counts.sum()), 1.0)
    first = int(np.searchsorted(below, share))
    last = min(int(np.searchsorted(below, 1 - share)), len(below) - 1)
    return (
        min(max(low, float(values.centres[first])), 0.0),
        max(min(high, float(values.centres[last])), 0.0),
    )
