"""Sums over the tensors of one site, gathered batch by batch where the tensors are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitsense.errors import MeasurementError
from vitsense.sites import Site
from vitsense.statistics.histogram import BINS, SHIFT, Histogram
from vitsense.statistics.moments import Moments

_CHUNK = 1 << 18
"""Elements worked on at a time: the passes over a chunk stay in the processor's cache."""

_FAR = 4.0
"""Standard deviations of the mean from 0 beyond which the histogram counts deviations from it."""

_COUNTED = 1 << 17
"""Elements of one visit that enter the histogram; a larger tensor is sampled evenly."""


@dataclass(slots=True, eq=False)
class _Sums:
    """Per group `(G,)`; powers 1 to 4 of deviations from ``shift`` and the absolute value."""

    shift: Tensor
    sums: Tensor
    minimum: Tensor
    maximum: Tensor
    count: int = 0


class Accumulator:
    """Power sums per group and a histogram of everything visited at one site.

    Groups are channels (of every head, where a tensor has heads), or heads where the tensor has no
    channels. Moments use every element, in chunks: float32 inside a chunk (float64 for weights,
    which are visited once and may be tiny), float64 between chunks. Deviations are taken from the
    group's mean in the first visit, so the sums cancel little wherever the values lie.

    The histogram counts at most 2^17 elements of each visit (all of a smaller tensor), taken with a
    fixed stride that shares no factor with the tensor's size, so that every axis is met evenly. A
    share p estimated from n counted elements has the standard error sqrt(p(1-p)/n).
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._sums: _Sums | None = None
        self._counts: Tensor | None = None
        self._offset = 0.0
        self.heads: int | None = None
        """Attention heads of the tensors seen; None if the site has no head axis."""

    def visit(self, x: Tensor) -> None:
        """Add one tensor of the site; a weight is the same in every call and counts once."""
        if self._site.is_weight and self._sums is not None:
            return
        x = x.detach()
        if x.dtype is not torch.float32:
            x = x.float()
        if self._site.head_axis is not None:
            self.heads = x.shape[self._site.head_axis]
        grouped = _grouped(x, self._site)
        if self._sums is None:
            self._sums = _started(grouped)
        _add(self._sums, grouped, exact=self._site.is_weight)
        self._count(grouped)

    def _count(self, x: Tensor) -> None:
        flat = x.reshape(-1)  # copies a slice of a projection: cheaper than gathering from it
        sample = flat[:: _stride(len(flat))].contiguous()
        if self._counts is None:
            self._offset = _offset(sample)
        if self._offset:
            sample = sample - self._offset
        bins = (sample.view(torch.int32) >> SHIFT) & (BINS - 1)
        counts = torch.bincount(bins, minlength=BINS)
        self._counts = counts if self._counts is None else self._counts.add_(counts)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that was added so far, exactly; nothing where nothing was visited."""
        state, counts = self._sums, self._counts
        if state is None or counts is None:
            return {}
        counted = counts.cpu().numpy()
        bins = np.flatnonzero(counted)
        return {
            "shift": state.shift.cpu().numpy(),
            "sums": state.sums.cpu().numpy(),
            "minimum": state.minimum.cpu().numpy(),
            "maximum": state.maximum.cpu().numpy(),
            "numbers": np.array([state.count, -1 if self.heads is None else self.heads]),
            "offset": np.array(self._offset),
            "bins": bins,
            "counts": counted[bins],
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]], device: torch.device) -> None:
        """Begin where `arrays` was taken; sums go on bit for bit."""

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(arrays[name].copy()).to(device)

        count, heads = (int(n) for n in arrays["numbers"])
        self._sums = _Sums(
            shift=tensor("shift"),
            sums=tensor("sums"),
            minimum=tensor("minimum"),
            maximum=tensor("maximum"),
            count=count,
        )
        self.heads = None if heads < 0 else heads
        self._offset = float(arrays["offset"])
        counts = torch.zeros(BINS, dtype=torch.int64)
        counts[torch.from_numpy(arrays["bins"])] = torch.from_numpy(arrays["counts"])
        self._counts = counts.to(device)

    def finish(self) -> tuple[Moments, Histogram]:
        """Moments of the groups and the histogram of all; nothing may be visited afterwards.

        Raises:
            MeasurementError: nothing was visited, a value was not finite, or the fourth power of
                a deviation (above about 4e9) left the range of float32.
        """
        state, counts = self._sums, self._counts
        if state is None or counts is None:
            raise MeasurementError(f"Site {self._site.id!r} saw no tensor: the model skipped it.")
        low, high = state.minimum.double().cpu().numpy(), state.maximum.double().cpu().numpy()
        sums = state.sums.cpu().numpy()
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise MeasurementError(
                f"Site {self._site.id!r} has values that are not finite (NaN or infinity): check "
                "the weights and the preprocessing."
            )
        if not np.isfinite(sums).all():
            raise MeasurementError(
                f"Site {self._site.id!r} has values from {low.min():.3g} to {high.max():.3g}: "
                "their fourth power leaves the range of float32; check the weights and the "
                "preprocessing."
            )
        moments = Moments.from_power_sums(
            count=float(state.count),
            shift=state.shift.double().cpu().numpy(),
            sums=sums[:4],
            abs_sum=sums[4],
            minimum=low,
            maximum=high,
        )
        histogram = Histogram(
            counts=counts.cpu().numpy(),
            minimum=float(low.min()),
            maximum=float(high.max()),
            offset=self._offset,
        )
        return moments, histogram


def _offset(sample: Tensor) -> float:
    """The mean where values are far from 0 against their spread, else 0."""
    mean = float(sample.mean())
    std = float(torch.linalg.vector_norm(sample - mean)) / math.sqrt(len(sample))
    return mean if math.isfinite(mean) and abs(mean) > _FAR * std else 0.0


def _stride(elements: int) -> int:
    """Smallest sampling stride that counts few enough and shares no factor with any axis."""
    stride = max(1, math.ceil(elements / _COUNTED))
    while math.gcd(stride, elements) != 1:
        stride += 1
    return stride


def _grouped(x: Tensor, site: Site) -> Tensor:
    """The tensor as `(outer, G, inner)`, without a copy in the usual layouts."""
    if site.is_weight:
        return x.reshape(1, x.shape[0], -1)
    if site.channel_axis is None:
        groups = 1 if site.head_axis is None else x.shape[site.head_axis]
        inner = -1 if site.head_axis is None else x.shape[site.head_axis + 1 :].numel()
        return x.reshape(1 if site.head_axis is None else -1, groups, inner)
    if site.head_axis is not None:
        if site.channel_axis == -2:
            x = x.transpose(-1, -2)
        # (B, H, N, D) -> (B, N, H, D) -> (B·N, H·D), a view where q, k, v come from one projection
        heads_last = x.transpose(-3, -2)
        return heads_last.reshape(-1, heads_last.shape[-2] * heads_last.shape[-1], 1)
    inner = x.shape[site.channel_axis :].numel() // x.shape[site.channel_axis]
    return x.reshape(-1, x.shape[site.channel_axis], inner)


def _started(grouped: Tensor) -> _Sums:
    groups, device = grouped.shape[1], grouped.device
    # A mean that is not finite would hide behind the shift; the extremes keep it visible.
    shift = torch.nan_to_num(grouped.mean((0, 2)), nan=0.0, posinf=0.0, neginf=0.0)
    return _Sums(
        shift=shift,
        sums=torch.zeros(5, groups, dtype=torch.float64, device=device),
        minimum=torch.full((groups,), math.inf, device=device),
        maximum=torch.full((groups,), -math.inf, device=device),
    )


def _chunks(grouped: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Pieces of about `_CHUNK` elements, each with the groups it belongs to."""
    outer, groups, inner = grouped.shape
    inner_step = min(inner, _CHUNK)
    group_step = min(groups, max(1, _CHUNK // inner_step))
    outer_step = max(1, _CHUNK // (inner_step * group_step))
    for g in range(0, groups, group_step):
        where = slice(g, g + group_step)
        for o in range(0, outer, outer_step):
            for i in range(0, inner, inner_step):
                yield where, grouped[o : o + outer_step, where, i : i + inner_step]


def _add(state: _Sums, grouped: Tensor, *, exact: bool) -> None:
    """Add all of a tensor: eleven passes over each chunk, in two buffers that are used again."""
    state.count += grouped.shape[0] * grouped.shape[2]
    dtype = torch.float64 if exact else torch.float32
    size = min(_CHUNK, grouped.numel())
    buffers = torch.empty(2, size, dtype=dtype, device=grouped.device)
    over = _outer_first if 1 < grouped.shape[2] <= _SHORT else _at_once
    for where, raw in _chunks(grouped):
        chunk = raw.to(dtype)
        d, d2 = (buffer[: chunk.numel()].view(chunk.shape) for buffer in buffers)
        torch.sub(chunk, state.shift[where, None], out=d)
        s1 = over(torch.sum, d)
        s2 = over(torch.sum, torch.mul(d, d, out=d2))
        s3 = over(torch.sum, d.mul_(d2))
        s4 = over(torch.sum, d2.mul_(d2))
        absolute = over(torch.sum, torch.abs(chunk, out=d))
        state.sums[:, where] += torch.stack([s1, s2, s3, s4, absolute])
        low, high = state.minimum[where], state.maximum[where]
        torch.minimum(low, over(torch.amin, raw), out=low)
        torch.maximum(high, over(torch.amax, raw), out=high)


_SHORT = 512
"""Inner length up to which the outer axis is reduced first: seven times faster on a CPU."""


def _at_once(reduce: Callable[..., Tensor], x: Tensor) -> Tensor:
    """``reduce`` over the first and the last axis of `(outer, G, inner)`, `(G,)`."""
    return reduce(x, (0, 2))


def _outer_first(reduce: Callable[..., Tensor], x: Tensor) -> Tensor:
    """The same for a short last axis."""
    return reduce(reduce(x, 0), 1)
