"""The grids of every site at every width, and the visits that apply them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from vitsense.numerics.fake_quant import fake_quantize
from vitsense.numerics.grid import Format, Granularity, Grid, PerChannel, PerTensor
from vitsense.numerics.ranges import (
    Distribution,
    RangeMethod,
    grid_from_distribution,
    grid_from_tensor,
)
from vitsense.observe import Visit
from vitsense.settings import Granule, Part, QuantSettings
from vitsense.sites import Site, SiteCatalog, SiteModule
from vitsense.statistics.collect import SiteStatistics


class Quantizers:
    """Makes the visits that quantize a module; grids are made once and kept.

    Weights: symmetric, one scale per output channel (or per tensor), range from the weight itself.
    Activations: affine, one scale per tensor, range from the calibration histogram; tensors
    without negative values get zero point 0.
    """

    def __init__(
        self,
        catalog: SiteCatalog,
        statistics: Mapping[str, SiteStatistics],
        settings: QuantSettings,
        device: torch.device | str,
    ) -> None:
        self._modules = {module.name: module for module in catalog}
        self._settings = settings
        self._device = device
        self._grids: dict[tuple[str, int], Grid] = {}
        self._distributions: dict[str, Distribution] = {}
        for site in catalog.sites:
            if not site.is_weight:
                histogram = statistics[site.id].histogram
                centres, counts = histogram.distribution()
                self._distributions[site.id] = Distribution(
                    centres, counts, histogram.minimum, histogram.maximum
                )

    def visits(self, module: SiteModule, bits: int, part: Part) -> dict[str, Visit]:
        """Visits that quantize the module's weight, activations or both to ``bits``."""
        found: dict[str, Visit] = {}
        for site in module.sites:
            wanted = Part.WEIGHTS if site.is_weight else Part.ACTIVATIONS
            if part in (wanted, Part.BOTH):
                found[site.id] = self._visit(site, bits)
        return found

    def joint(self, bits: Mapping[str, int]) -> dict[str, Visit]:
        """Visits that quantize every named module at once."""
        found: dict[str, Visit] = {}
        for name, width in bits.items():
            found |= self.visits(self._modules[name], width, Part.BOTH)
        return found

    def _visit(self, site: Site, bits: int) -> Callable[[Tensor], Tensor]:
        def quantizing(tensor: Tensor) -> Tensor:
            grid = self._grids.get((site.id, bits))
            if grid is None:
                grid = self.grid(site, bits, tensor)
            return fake_quantize(tensor, grid)

        return quantizing

    def grid(self, site: Site, bits: int, tensor: Tensor) -> Grid:
        """The grid of a site; ``tensor`` is needed for weights only."""
        key = (site.id, bits)
        if key not in self._grids:
            settings = self._settings
            if site.is_weight:
                per_channel = settings.weight_granularity is Granule.CHANNEL
                granularity: Granularity = PerChannel(0) if per_channel else PerTensor()
                method = RangeMethod(settings.weight_range.value)
                self._grids[key] = grid_from_tensor(
                    tensor, Format(bits, signed=True), granularity, method
                )
            else:
                self._grids[key] = grid_from_distribution(
                    self._distributions[site.id],
                    Format(bits, signed=False),
                    RangeMethod(settings.activation_range.value),
                    self._device,
                )
        return self._grids[key]


def supports(module: SiteModule, part: Part) -> str:
    """Why a module has nothing to quantize in this part; empty if it has."""
    if part is Part.WEIGHTS and module.weight_site is None:
        return "it has no weight"
    return ""


def model_device(model: nn.Module) -> torch.device:
    """Where a model lives."""
    return next(model.parameters()).device
