"""Why a module is sensitive, read off its tensors, and what would help, by measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from vitsense.decimals import MINUS, short
from vitsense.formats import FormatLike, NumberFormat, format_of
from vitsense.numerics.fake_quant import AnyGrid, fake_quantize
from vitsense.numerics.floats import FloatGrid, float_grid
from vitsense.numerics.grid import Format, Grid
from vitsense.numerics.log2 import Log2Grid
from vitsense.numerics.ranges import (
    Distribution,
    RangeMethod,
    affine_grid,
    grid_from_distribution,
    laplace_reach,
)
from vitsense.observe import Visit
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.settings import Part
from vitsense.sites import Site, SiteModule, SiteRole
from vitsense.statistics.collect import SiteStatistics

OUTLIER_CHANNEL = 4.0
"""A channel whose largest value is this many times the median channel's stands out."""

SPREAD = 3.0
"""Ratio of the 95th to the 5th percentile of channel ranges from which channels count as uneven."""

HEAVY_TAIL = 6.0
"""Excess kurtosis from which a tail counts as heavy (that of a Laplace distribution is 3)."""

UNUSED = 0.5
"""Share of the range that holds only one value in a thousand, from which it counts as unused."""

_AFFINE = (
    "the affine grid in use wastes no codes on the missing side, a symmetric one would waste half"
)

NEGATIVE_FLOOR = 0.25
"""A tensor is one-sided if its negative part is shorter than this share of its positive part."""


class Remedy(Enum):
    """What is tried at one site; everything else of the module stays as it was."""

    PER_CHANNEL = "one scale per channel"
    LEAST_ERROR = "range of least squared error"
    LOG2 = "powers of two"
    MORE_BITS = "two more bits"
    WIDER = "the next wider format"
    FLOAT = "left in full precision"


_WIDER = {
    "mxfp4": "mxfp6_e2m3",
    "nvfp4": "mxfp6_e2m3",
    "mxfp6_e2m3": "mxfp8_e4m3",
    "mxfp6_e3m2": "mxfp8_e4m3",
}
"""Formats with blocks -> the next one with more bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A reason with its number, at one site of a module."""

    site: Site
    cause: str
    value: float
    detail: str
    remedy: Remedy


def causes_of(
    module: SiteModule,
    statistics: Mapping[str, SiteStatistics],
    settings_range: str,
    form: FormatLike = 4,
) -> tuple[Cause, ...]:
    """Every reason that the module's tensors give, the activations' before the weight's.

    Args:
        module: One of the catalog.
        statistics: Of every site.
        settings_range: How ranges of activations are chosen (``mse``, ``minmax``, ``percentile``).
        form: The format, which decides what remedies there are.
    """
    found = _causes(module, statistics, settings_range)
    return tuple(_in(cause, format_of(form)) for cause in found)


def _in(cause: Cause, form: NumberFormat) -> Cause:
    """The cause with a remedy that its format allows.

    Floating point has no range to choose: its steps grow with the values, and values beyond its
    ends are rare. Blocks of 32 or 16 values have a scale each, finer than one for each channel.
    """
    if form.is_integer or (cause.remedy is Remedy.PER_CHANNEL and not form.block):
        return cause
    wider = Remedy.WIDER if form.name in _WIDER else Remedy.FLOAT
    detail = cause.detail.replace(_AFFINE, "half of the codes of the format are for the other side")
    return replace(cause, remedy=wider, detail=detail)


def _causes(
    module: SiteModule, statistics: Mapping[str, SiteStatistics], settings_range: str
) -> list[Cause]:
    found: list[Cause] = []
    for site in module.activation_sites:
        found += _activation(site, statistics[site.id], RangeMethod(settings_range))
    weight = module.weight_site
    if weight is not None:
        kurtosis = _number(statistics[weight.id].tensor.kurtosis[0])
        if kurtosis >= HEAVY_TAIL:
            detail = f"excess kurtosis {kurtosis:.1f}"
            found.append(_cause(weight, "heavy-tailed weight", kurtosis, detail, Remedy.MORE_BITS))
    return found


def _cause(site: Site, cause: str, value: float, detail: str, remedy: Remedy) -> Cause:
    return Cause(site=site, cause=cause, value=value, detail=detail, remedy=remedy)


def _activation(site: Site, seen: SiteStatistics, chosen: RangeMethod) -> Iterator[Cause]:
    if site.role is SiteRole.ATTENTION_PROBS:
        yield _probabilities(site, seen)
        return
    yield from _channels(site, seen)
    kurtosis = _number(seen.tensor.kurtosis[0])
    if kurtosis >= HEAVY_TAIL:
        # a range of least squared error has the best length already
        remedy = Remedy.MORE_BITS if chosen is RangeMethod.MSE else Remedy.LEAST_ERROR
        yield _cause(site, "heavy tail", kurtosis, f"excess kurtosis {kurtosis:.1f}", remedy)
    low, high = float(seen.tensor.minimum[0]), float(seen.tensor.maximum[0])
    if low < 0 < high and -low < NEGATIVE_FLOOR * high:
        skewness = _number(seen.tensor.skewness[0])
        detail = (
            f"from {_two(low)} to {_two(high)}, skewness {skewness:.1f}: as after GELU; {_AFFINE}"
        )
        yield _cause(site, "one-sided input", -low / high, detail, Remedy.MORE_BITS)
    if chosen is not RangeMethod.MINMAX:
        return  # the range in use ends before what is hardly used
    histogram = seen.histogram
    used = histogram.quantile(0.9995) - histogram.quantile(0.0005)
    unused = 1 - used / (high - low) if high > low else 0.0
    if unused >= UNUSED:
        detail = f"{100 * unused:.0f} % of the range holds one value in a thousand"
        yield _cause(site, "unused range", unused, detail, Remedy.LEAST_ERROR)


def _probabilities(site: Site, seen: SiteStatistics) -> Cause:
    """Attention probabilities: nearly all small, a few large."""
    middle, top = seen.histogram.quantile(0.5), float(seen.tensor.maximum[0])
    ratio = top / max(middle, 1e-12)
    detail = f"the largest probability is {_two(top)}, half of them are below {_two(middle)}"
    return _cause(site, "power-law probabilities", ratio, detail, Remedy.LOG2)


def _channels(site: Site, seen: SiteStatistics) -> Iterator[Cause]:
    """Channels that stand out, else channels that are uneven as a whole."""
    if seen.channels is None or seen.channels.groups < 8:
        return
    if site.head_axis is not None and seen.heads is None:
        return  # which axis holds the heads is not certain
    largest = seen.channels.abs_max
    median = float(np.median(largest))
    if median <= 0:
        return
    order = np.argsort(-largest, kind="stable")
    out = [int(i) for i in order if largest[i] >= OUTLIER_CHANNEL * median]
    if out and len(out) <= len(largest) // 10 + 1:
        each = len(largest) // (seen.heads.groups if seen.heads is not None else 1)
        named = ", ".join(
            f"{_channel(i, each, len(largest))} ({largest[i] / median:.1f}x)" for i in out[:3]
        )
        more = f" and {len(out) - 3} more" if len(out) > 3 else ""
        ratio = float(largest[out[0]]) / median
        detail = f"channel {named}{more}, times the median channel's largest value"
        yield _cause(site, "outlier channels", ratio, detail, Remedy.PER_CHANNEL)
        return
    low, high = (float(q) for q in np.quantile(largest, [0.05, 0.95]))
    if low > 0 and high >= SPREAD * low:
        detail = f"ranges of channels differ by {high / low:.1f} times (5th to 95th percentile)"
        yield _cause(site, "uneven channels", high / low, detail, Remedy.PER_CHANNEL)


def _channel(number: int, each: int, count: int) -> str:
    return str(number) if each == count else f"{number % each} of head {number // each}"


def _number(value: float) -> float:
    return float(value) if np.isfinite(value) else 0.0


def remedy_visits(
    module: SiteModule,
    cause: Cause,
    name: str,
    quantizers: Quantizers,
    statistics: Mapping[str, SiteStatistics],
) -> dict[str, Visit]:
    """The module quantized to format ``name``, with the remedy at the cause's site."""
    visits = quantizers.visits(module, name, Part.BOTH)
    if cause.remedy is Remedy.MORE_BITS:
        wider = f"int{min(format_of(name).bits + 2, 8)}"
        visits[cause.site.id] = quantizers.visit(cause.site, wider)
        return visits
    if cause.remedy is Remedy.FLOAT:
        del visits[cause.site.id]
        return visits
    if cause.remedy is Remedy.WIDER:
        visits[cause.site.id] = quantizers.visit(cause.site, _WIDER[name])
        return visits
    form, seen = format_of(name), statistics[cause.site.id]
    if not form.is_integer:
        low, high = _ends(cause.site, seen)
        grid: AnyGrid = float_grid(form, torch.maximum(-low, high))
    else:
        grid = _grid(cause, Format(form.bits, signed=False), seen)
    visits[cause.site.id] = _rounding(grid)
    return visits


def _rounding(grid: AnyGrid) -> Callable[[Tensor], Tensor]:
    def visit(tensor: Tensor) -> Tensor:
        moved = grid.to(tensor.device) if isinstance(grid, (Grid, FloatGrid)) else grid
        return fake_quantize(tensor, moved)

    return visit


def _grid(cause: Cause, form: Format, seen: SiteStatistics) -> AnyGrid:
    if cause.remedy is Remedy.LOG2:
        return Log2Grid(form)
    if cause.remedy is Remedy.PER_CHANNEL:
        low, high = _ends(cause.site, seen, laplace_reach(form.bits))
        return affine_grid(low.clamp(max=0), high.clamp(min=0), form)
    histogram = seen.histogram
    centres, counts = histogram.distribution()
    values = Distribution(centres, counts, histogram.minimum, histogram.maximum)
    return grid_from_distribution(values, form, RangeMethod.MSE)


def _ends(site: Site, seen: SiteStatistics, reach: float = math.inf) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each channel, in the shape of one scale for each.

    Args:
        site: An activation with channels.
        seen: Its statistics.
        reach: Standard deviations about a channel's mean beyond which its values are clipped.
    """
    channels = seen.channels
    assert channels is not None
    low, high = np.array(channels.minimum), np.array(channels.maximum)
    if math.isfinite(reach):  # a few values far out would make every step of the channel coarse
        low = np.maximum(low, channels.mean - reach * channels.std)
        high = np.minimum(high, channels.mean + reach * channels.std)
    shape = _scale_shape(site, seen)
    first, last = (torch.as_tensor(end).reshape(shape) for end in (low, high))
    return first, last


def _scale_shape(site: Site, seen: SiteStatistics) -> tuple[int, ...]:
    """Shape of one scale per channel, counted from the end; channels of heads are their own."""
    axis = site.channel_axis
    assert axis is not None
    if site.head_axis is None or seen.heads is None:
        return (-1, *[1] * (-axis - 1))
    sizes = [1] * -site.head_axis
    sizes[0], sizes[axis] = seen.heads.groups, -1
    return tuple(sizes)


def _two(value: float) -> str:
    """Two digits, with the signs of a file: ``0.90``, ``-0.17``, ``2.4e-5``."""
    return short(value).replace(MINUS, "-")
