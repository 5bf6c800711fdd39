"""One pass over calibration images: the statistics of every site of a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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

        Source: the paper's SDAM ("standard deviation of the absolute mean"); its grouping could
        not be verified from the published text, here it is over the channels of one site.
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
        """The row of ``statistics.csv``, without the model."""
        t = self.tensor
        return {
            "module": self.site.module,
            "site": self.site.id,
            "tensor": self.site.tensor,
            "count": int(t.count[0]),
            "mean": float(t.mean[0]),
            "variance": float(t.variance[0]),
            "skewness": float(t.skewness[0]),
            "kurtosis": float(t.kurtosis[0]),
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
        MeasurementError: a value is not finite, or a site saw nothing.
    """
    first_of = {}
    for site in catalog.sites:
        first_of.setdefault(site.tensor, site)
    accumulators = {site.id: Accumulator(site) for site in first_of.values()}
    with preserved(model), torch.no_grad(), observer_of(model, catalog) as observer:
        weights = True
        for images in batches:
            visits: dict[str, Visit] = {
                site.id: accumulators[site.id].visit
                for site in first_of.values()
                if weights or not site.is_weight
            }
            observer.run(images, visits)
            weights = False  # they are the same for every batch
            progress.advance(len(images))
    finished = {key: accumulator.finish() for key, accumulator in accumulators.items()}
    modules = {module.name: module for module in catalog}
    return {
        site.id: _statistics(site, modules[site.module], *finished[first_of[site.tensor].id])
        for site in catalog.sites
    }


def _statistics(
    site: Site, module: SiteModule, groups: Moments, histogram: Histogram
) -> SiteStatistics:
    heads = None
    if site.head_axis is not None or (site.is_weight and module.heads):
        count = groups.groups if site.channel_axis is None else (module.heads or 1)
        heads = groups.collapse(count) if groups.groups % count == 0 else None
    return SiteStatistics(
        site=replace(site),
        tensor=groups.collapse(),
        channels=None if site.channel_axis is None else groups,
        heads=heads,
        histogram=histogram,
    )
