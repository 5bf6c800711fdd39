"""``grids.csv``: the quantization grid of every site at every width, for the report to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from vitsense.analyze_tables import framed
from vitsense.numerics.grid import Grid
from vitsense.observe import observing, preserved
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sites import Site, SiteCatalog
from vitsense.statistics.collect import SiteStatistics


def grids_frame(
    key: str,
    model: nn.Module,
    catalog: SiteCatalog,
    quantizers: Quantizers,
    statistics: Mapping[str, SiteStatistics],
    example: Tensor,
    bits: Sequence[int],
) -> pd.DataFrame:
    """``grids.csv`` of one model. One forward pass of ``example`` `(1, 3, H, W)` shows the weights.

    Formats without a scale and a zero point for the whole tensor or a channel are left out.
    """
    tensors = seen_weights(model, catalog, example)
    rows = []
    for module in catalog:
        for site in module.sites:
            if site.is_weight and site.id not in tensors:
                continue  # its call did not run for this image
            tensor = tensors.get(site.id, example)
            for width in bits:
                grid = quantizers.grid(site, width, tensor)
                if isinstance(grid, Grid) and grid.scale.numel() != tensor.numel():
                    found = _row(grid, _clipped(site, grid, tensor, statistics))
                    rows.append({"module": module.name, "site": site.id, "bits": width, **found})
    return framed("grids", key, rows)


def seen_weights(model: nn.Module, catalog: SiteCatalog, example: Tensor) -> dict[str, Tensor]:
    """Every weight as the model uses it, by site, from one forward pass of ``example``."""
    found: dict[str, Tensor] = {}

    def look(site: Site) -> Any:
        def visit(tensor: Tensor) -> None:
            found.setdefault(site.id, tensor.detach())

        return visit

    visits = {site.id: look(site) for site in catalog.sites if site.is_weight}
    with preserved(model), torch.no_grad(), observing(model, catalog, visits):
        model(example)
    return found


def _row(grid: Grid, clipped: float) -> dict[str, Any]:
    """Numbers of the grid; per channel, those of the channel with the median scale."""
    scale = grid.scale.double().flatten()
    middle = float(scale.median())
    at = int((scale - middle).abs().argmin())
    zero = float(grid.zero_point.double().expand(grid.scale.shape).flatten()[at])
    form = grid.format
    return {
        "format": form.name,
        "scales": scale.numel(),
        "scale": middle,
        "scale_min": float(scale.min()),
        "scale_max": float(scale.max()),
        "zero_point": zero,
        "low": middle * (form.qmin - zero),
        "high": middle * (form.qmax - zero),
        "clipped": clipped,
    }


def _clipped(
    site: Site, grid: Grid, tensor: Tensor, statistics: Mapping[str, SiteStatistics]
) -> float:
    """Share of the values more than half a step beyond the ends of the grid."""
    low, high = (end.double() for end in (grid.low, grid.high))
    half = grid.scale.double() / 2
    if site.is_weight:
        values = tensor.double()
        return float(((values < low - half) | (values > high + half)).double().mean())
    centre = float((low + high) / 2)
    radius = float((high - low) / 2 + half)
    return statistics[site.id].histogram.tail_share(centre, radius)
