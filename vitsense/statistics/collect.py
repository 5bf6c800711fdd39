"""One pass over calibration images: the statistics of every site of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitsense.errors import MeasurementError
from vitsense.observe import preserved
from vitsense.observe.visiting import Visit, observer_of
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sites import Site, SiteCatalog, SiteModule
from vitsense.statistics.accumulate import Accumulator
from vitsense.statistics.histogram import Histogram
from vitsense.statistics.moments import Moments

QUANTILES = {
    "q001": 0.001,
    "q01": 0.01,
    "q05": 0.05,
    "q50": 0.5,
    "q95": 0.95,
    "q99": 0.99,
    "q999": 0.999,
}
"""Columns of quantiles and what they are."""

OUTLIER_SIGMAS = (3, 4, 6)
"""Distances from the mean, in standard deviations, beyond which a value counts as an outlier."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteStatistics:
    """What the tensors at one site look like."""

    site: Site
    tensor: Moments
    """The whole tensor, one group."""
    channels: Moments | None
    """One group per channel; None where the tensor has no channels."""
    heads: Moments | None
    """One group per attention head, where heads are known."""
    histogram: Histogram

    @property
    def sdam(self) -> float | None:
        """Standard deviation over channels of the mean absolute value, tensor units.

        Source: Huang et al. 2024, "Quantization Variation" (TMLR, arXiv 2307.00331), SDAM
        ("standard deviation of the absolute mean"). Which groups the paper takes the deviation
        over could not be verified from its text; here it is the channels of one site, and the
        population deviation (ddof 0).
        """
        return None if self.channels is None else float(np.std(self.channels.abs_mean))

    @property
    def channel_max_to_median(self) -> float | None:
        """Largest absolute value of any channel over the median channel's; None if that is 0."""
        if self.channels is None:
            return None
        median = float(np.median(self.channels.abs_max))
        return float(self.channels.abs_max.max()) / median if median > 0 else None

    def outlier_share(self, sigmas: float) -> float:
        """Share of values farther than ``sigmas`` standard deviations from the mean."""
        radius = sigmas * float(self.tensor.std[0])
        return self.histogram.tail_share(float(self.tensor.mean[0]), radius) if radius else 0.0

    def row(self) -> dict[str, Any]:
        """The row of ``statistics.csv``, without the model.

        None where a number does not exist: skewness and kurtosis of a constant tensor, SDAM and
        the channel ratio of a tensor without channels. ``channels`` and ``heads`` are then 0.
        """
        t = self.tensor
        return {
            "module": self.site.module,
            "site": self.site.id,
            "tensor": self.site.tensor,
            "count": int(t.count[0]),
            "mean": float(t.mean[0]),
            "variance": float(t.variance[0]),
            "skewness": _number(t.skewness[0]),
            "kurtosis": _number(t.kurtosis[0]),
            "minimum": float(t.minimum[0]),
            "maximum": float(t.maximum[0]),
            **{name: self.histogram.quantile(q) for name, q in QUANTILES.items()},
            **{f"outliers_{k}": self.outlier_share(k) for k in OUTLIER_SIGMAS},
            "sdam": self.sdam,
            "channel_max_to_median": self.channel_max_to_median,
            "channels": 0 if self.channels is None else self.channels.groups,
            "heads": 0 if self.heads is None else self.heads.groups,
        }

    def arrays(self) -> dict[str, Any]:
        """Per-channel and per-head arrays for ``channels.npz``, float32."""
        found: dict[str, Any] = {}
        if self.channels is not None:
            c = self.channels
            found = {
                "mean": c.mean,
                "variance": c.variance,
                "minimum": c.minimum,
                "maximum": c.maximum,
                "kurtosis": c.kurtosis,
            }
        if self.heads is not None:
            found |= {"head_variance": self.heads.variance, "head_kurtosis": self.heads.kurtosis}
        return {name: np.asarray(value, dtype=np.float32) for name, value in found.items()}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


class Collection:
    """Statistics in the making: what the images so far added up to, at every site of a model."""

    def __init__(self, catalog: SiteCatalog) -> None:
        self._catalog = catalog
        self._first_of: dict[str, Site] = {}
        for site in catalog.sites:
            self._first_of.setdefault(site.tensor, site)
        self._accumulators = {site.id: Accumulator(site) for site in self._first_of.values()}
        self.images = 0
        """How many were added."""

    @contextmanager
    def adding(self, model: nn.Module) -> Iterator[Callable[[Tensor], None]]:
        """Inside, a call adds preprocessed images `(B, 3, H, W)` on the model's device.

        The model is exactly as it was at the end.
        """
        with (
            preserved(model),
            torch.no_grad(),
            observer_of(model, self._catalog) as observer,
        ):

            def add(images: Tensor) -> None:
                visits: dict[str, Visit] = {
                    site.id: self._accumulators[site.id].visit
                    for site in self._first_of.values()
                    if not self.images or not site.is_weight  # they are the same for every batch
                }
                observer.run(images, visits)
                self.images += len(images)

            yield add

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that was added, exactly, for `restore`."""
        found: dict[str, NDArray[Any]] = {"images": np.array(self.images)}
        for site, accumulator in self._accumulators.items():
            found |= {f"{site}|{name}": a for name, a in accumulator.arrays().items()}
        return found

    def restore(self, arrays: Mapping[str, NDArray[Any]], device: torch.device) -> None:
        """Go on from `arrays` as if nothing had happened in between, bit for bit."""
        parts: dict[str, dict[str, NDArray[Any]]] = {}
        for key, array in arrays.items():
            site, _, name = key.rpartition("|")
            if site in self._accumulators:
                parts.setdefault(site, {})[name] = array
        for site, found in parts.items():
            self._accumulators[site].restore(found, device)
        self.images = int(arrays["images"])

    def finish(self) -> dict[str, SiteStatistics]:
        """Statistics of every site, by site id; nothing may be added afterwards.

        Raises:
            MeasurementError: there were no images, a value is not finite, or a site saw nothing.
        """
        if not self.images:
            raise MeasurementError(
                "There are no images to collect statistics from: pass at least one."
            )
        finished = {key: each.finish() for key, each in self._accumulators.items()}
        modules = {module.name: module for module in self._catalog}
        found = {}
        for site in self._catalog.sites:
            source = self._first_of[site.tensor].id
            heads = _heads(site, modules[site.module], self._accumulators[source])
            found[site.id] = _statistics(site, heads, *finished[source])
        return found


def collect_statistics(
    model: nn.Module,
    catalog: SiteCatalog,
    batches: Iterable[Tensor],
    *,
    progress: Progress = NO_PROGRESS,
) -> dict[str, SiteStatistics]:
    """Statistics of every site, by site id.

    Args:
        model: Left exactly as it was.
        catalog: The model's sites.
        batches: Preprocessed images `(B, 3, H, W)` on the model's device; memory does not grow
            with their number.
        progress: Told of every batch.

    Raises:
        MeasurementError: there are no images, a value is not finite, or a site saw nothing.
    """
    collection = Collection(catalog)
    with collection.adding(model) as add:
        for images in batches:
            add(images)
            progress.advance(len(images))
    return collection.finish()


def _heads(site: Site, module: SiteModule, seen: Accumulator) -> int | None:
    """Heads of a tensor: of q, k and v weights from the model, else from the head axis."""
    if site.is_weight:
        return module.heads
    if seen.heads is not None and module.heads not in (None, seen.heads):
        return None  # the axis holds something else (einsum may order axes as it likes)
    return seen.heads


def _statistics(
    site: Site, heads: int | None, groups: Moments, histogram: Histogram
) -> SiteStatistics:
    return SiteStatistics(
        site=site,
        tensor=groups.collapse(),
        channels=None if site.channel_axis is None else groups,
        heads=groups.collapse(heads) if heads and groups.groups % heads == 0 else None,
        histogram=histogram,
    )
