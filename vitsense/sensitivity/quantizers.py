"""The grids of every site in every format, and the visits that apply them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import overload

import torch
from torch import Tensor

from vitsense.formats import FormatLike, NumberFormat, format_of
from vitsense.numerics.fake_quant import AnyGrid, fake_quantize
from vitsense.numerics.floats import float_grid, largest_of
from vitsense.numerics.grid import Format, Granularity, Grid, PerChannel, PerTensor
from vitsense.numerics.log2 import Log2Grid
from vitsense.numerics.ranges import (
    Distribution,
    RangeMethod,
    grid_from_distribution,
    grid_from_tensor,
)
from vitsense.observe import Visit
from vitsense.sensitivity.groups import includes
from vitsense.settings import Granule, Part, ProbsGrid, QuantSettings
from vitsense.sites import Site, SiteCatalog, SiteModule, SiteRole
from vitsense.statistics.collect import SiteStatistics


class Quantizers:
    """Makes the visits that quantize a module; grids are made once and kept.

    Integers. Weights: symmetric, one scale per output channel (or per tensor), range from the
    weight itself. Activations: affine, one scale per tensor, range from the calibration histogram;
    tensors without negative values get zero point 0. Attention probabilities: the same, or powers
    of two.

    Floating point. One scale per output channel of a weight (or per tensor) and per activation
    tensor, from the largest magnitude seen; block formats find the scales of their blocks in the
    tensor itself, along the axis that is summed over.
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
        self._grids: dict[tuple[str, str], AnyGrid] = {}
        self._distributions: dict[str, Distribution] = {}
        for site in catalog.sites:
            if not site.is_weight:
                histogram = statistics[site.id].histogram
                centres, counts = histogram.distribution()
                self._distributions[site.id] = Distribution(
                    centres, counts, histogram.minimum, histogram.maximum
                )

    def visits(self, module: SiteModule, bits: FormatLike, part: Part) -> dict[str, Visit]:
        """Visits that quantize the module's weight, activations or both to bits or a format."""
        return {site.id: self.visit(site, bits) for site in module.sites if includes(part, site)}

    def joint(self, bits: Mapping[str, FormatLike], part: Part = Part.BOTH) -> dict[str, Visit]:
        """Visits that quantize every named module at once."""
        found: dict[str, Visit] = {}
        for name, width in bits.items():
            found |= self.visits(self._modules[name], width, part)
        return found

    def visit(self, site: Site, bits: FormatLike) -> Callable[[Tensor], Tensor]:
        """The visit that quantizes one site."""
        name = format_of(bits).name

        def quantizing(tensor: Tensor) -> Tensor:
            grid = self._grids.get((site.id, name))
            if grid is None:
                grid = self.grid(site, name, tensor)
            return fake_quantize(tensor, grid)

        return quantizing

    @overload
    def grid(self, site: Site, bits: int, tensor: Tensor) -> Grid: ...
    @overload
    def grid(self, site: Site, bits: str, tensor: Tensor) -> AnyGrid: ...
    def grid(self, site: Site, bits: FormatLike, tensor: Tensor) -> AnyGrid:
        """The grid of a site; ``tensor`` is needed for weights only."""
        form = format_of(bits)
        key = (site.id, form.name)
        if key not in self._grids:
            made = self._integer if form.is_integer else self._float
            self._grids[key] = made(site, form, tensor)
        return self._grids[key]

    def _integer(self, site: Site, form: NumberFormat, tensor: Tensor) -> AnyGrid:
        settings = self._settings
        if site.is_weight:
            method = RangeMethod(settings.weight_range.value)
            signed = Format(form.bits, signed=True)
            return grid_from_tensor(tensor, signed, self._granularity, method)
        unsigned = Format(form.bits, signed=False)
        logarithmic = settings.attention_probs is ProbsGrid.LOG2
        if site.role is SiteRole.ATTENTION_PROBS and logarithmic:
            return Log2Grid(unsigned)
        method = RangeMethod(settings.activation_range.value)
        return grid_from_distribution(self._distributions[site.id], unsigned, method, self._device)

    def _float(self, site: Site, form: NumberFormat, tensor: Tensor) -> AnyGrid:
        if site.is_weight:
            return float_grid(form, largest_of(tensor, self._granularity), rows=True)
        seen = self._distributions[site.id]
        largest = torch.tensor(max(-seen.minimum, seen.maximum, 0.0), device=self._device)
        return float_grid(form, largest, axis=summed_axis(self._modules[site.module], site))

    @property
    def _granularity(self) -> Granularity:
        per_channel = self._settings.weight_granularity is Granule.CHANNEL
        return PerChannel(0) if per_channel else PerTensor()


def summed_axis(module: SiteModule, site: Site) -> int:
    """The axis of an activation that its operation sums over: there, blocks share a scale.

    The last one of the left operand of a product, the last but one of the right; channels
    elsewhere. Operands of an einsum count as left ones.
    """
    if site.role in (SiteRole.INPUT, SiteRole.QUERY, SiteRole.KEY):
        return -1 if site.channel_axis is None else site.channel_axis
    if site.role is SiteRole.VALUE:
        # its channels remain: the other one of the last two axes is the tokens
        return -1 if site.channel_axis == -2 else -2
    return -1 if site == module.sites[0] else -2


def supports(module: SiteModule, part: Part) -> str:
    """Why a module has nothing to quantize in this part; empty if it has."""
    if part is Part.WEIGHTS and module.weight_site is None:
        return "it has no weight"
    return ""
