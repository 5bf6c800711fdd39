"""First grids of a model's sites, from calibration images by least squared error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitsense.errors import MeasurementError
from vitsense.numerics.grid import Format, Granularity, PerChannel, PerHead, PerTensor
from vitsense.numerics.ranges import (
    Distribution,
    RangeMethod,
    grid_from_distribution,
    grid_from_tensor,
)
from vitsense.observe import preserved
from vitsense.observe.visiting import Visit, observer_of
from vitsense.qat.quantizers import LearnedQuantizer
from vitsense.qat.settings import Offsets, QatSettings
from vitsense.settings import Granule
from vitsense.sites import Site, SiteCatalog, SiteModule
from vitsense.statistics.collect import SiteStatistics, collect_statistics

ONE_SIDED = 1 / 3
"""A tensor that reaches below zero less than this part of how far it reaches above (without the
outermost 0.1 % on both sides) counts as one-sided, as after GELU and SiLU."""

HEAD_SAMPLE = 1 << 16
"""Values kept per head and batch for the search of a head's own step."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """What calibration images showed."""

    statistics: Mapping[str, SiteStatistics]
    values: Mapping[str, int]
    """Numbers in the tensor of an activation site, of one image."""
    derived: Mapping[str, Tensor]
    """Weights that the model computes before use, by module."""
    heads: Mapping[str, Tensor]
    """Samples of the sites that get a step per head, `(heads, n)`."""


def calibrate(
    model: nn.Module, catalog: SiteCatalog, batches: Iterable[Tensor], per_head: bool
) -> Calibration:
    """Look at every activation of ``model`` on ``batches`` of images `(B, 3, H, W)`.

    Raises:
        MeasurementError: there are no images, or a value is not finite.
    """
    kept = [batch for batch in batches if len(batch)]
    if not kept:
        raise MeasurementError("There are no images to calibrate on: pass at least one batch.")
    heads = [site for site in catalog.sites if per_head and site.head_axis is not None]
    values: dict[str, int] = {}
    derived: dict[str, Tensor] = {}
    samples: dict[str, list[Tensor]] = {site.id: [] for site in heads}
    with preserved(model), torch.no_grad(), observer_of(model, catalog) as observer:
        for number, images in enumerate(kept):
            visits: dict[str, Visit] = {s.id: _sampling(s, samples[s.id]) for s in heads}
            if number == 0:
                for site in catalog.sites:
                    if not site.is_weight:
                        after = visits.get(site.id)
                        visits[site.id] = _counting(site, len(images), values, after)
                    elif catalog[site.module].derived_weight:
                        visits[site.id] = _keeping(site.module, derived)
            if visits:
                observer.run(images, visits)
    statistics = collect_statistics(model, catalog, kept)
    return Calibration(
        statistics=statistics,
        values=values,
        derived=derived,
        heads={key: torch.cat(parts, dim=1) for key, parts in samples.items()},
    )


def _counting(site: Site, images: int, into: dict[str, int], after: Visit | None) -> Visit:
    def count(tensor: Tensor) -> None:
        into[site.id] = max(into.get(site.id, 0), tensor.numel() // images)
        if after is not None:
            after(tensor)

    return count


def _keeping(module: str, into: dict[str, Tensor]) -> Visit:
    def keep(tensor: Tensor) -> None:
        into[module] = tensor.detach().clone()

    return keep


def _sampling(site: Site, into: list[Tensor]) -> Visit:
    def sample(tensor: Tensor) -> None:
        assert site.head_axis is not None
        rows = tensor.detach().movedim(site.head_axis, 0).flatten(1)
        stride = max(1, rows.shape[1] // HEAD_SAMPLE)
        into.append(rows[:, ::stride].float().clone())

    return sample


def weight_quantizer(
    module: SiteModule, weight: Tensor, bits: int, settings: QatSettings
) -> LearnedQuantizer:
    """The quantizer of a (slice of a) weight, `(O, I, ...)`, started from the least squared error.

    Source: Nagel et al. 2021, "A White Paper on Neural Network Quantization", section 3.1.
    """
    form = Format(bits, signed=True)
    repeats, heads = 1, module.heads
    granularity: Granularity = PerTensor()
    if settings.weight_granularity is Granule.CHANNEL:
        granularity = PerChannel(0)
    elif settings.per_head and heads and weight.shape[0] % heads == 0:
        granularity, repeats = PerHead(0, heads), weight.shape[0] // heads
    scale = grid_from_tensor(weight, form, granularity, RangeMethod.MSE).scale
    scale = scale[::repeats] if repeats > 1 else scale
    return LearnedQuantizer(
        form,
        scale,
        values=weight.numel() // scale.numel(),
        repeats=repeats,
        gradient=settings.step_gradient,
        is_weight=True,
        method=settings.weights,
    )


def activation_quantizer(
    site: Site, bits: int, settings: QatSettings, seen: Calibration, device: torch.device
) -> LearnedQuantizer:
    """The quantizer of an activation, started from the least squared error."""
    histogram = seen.statistics[site.id].histogram
    low, high = histogram.minimum, histogram.maximum
    one_sided = -histogram.quantile(0.001) < ONE_SIDED * histogram.quantile(0.999)
    wanted = settings.offsets is Offsets.ONE_SIDED and one_sided
    offset = low < 0 and (wanted or settings.offsets is Offsets.ALWAYS)
    form = Format(bits, signed=low < 0 and not offset)
    if site.id in seen.heads:
        rows = seen.heads[site.id]
        grid = grid_from_tensor(rows, form, PerChannel(0), RangeMethod.MSE)
        axis = site.head_axis or -3
        shape = (rows.shape[0], *(1,) * (-axis - 1))
        scale, zero = grid.scale.reshape(shape), grid.zero_point.reshape(shape)
    else:
        centres, counts = histogram.distribution()
        values = Distribution(centres, counts, low, high)
        grid = grid_from_distribution(values, form, RangeMethod.MSE)
        scale, zero = grid.scale, grid.zero_point
    scale, zero = scale.to(device), zero.to(device)
    return LearnedQuantizer(
        form,
        scale,
        values=seen.values[site.id] // max(scale.numel(), 1),
        offset=-scale * zero if offset else None,
        gradient=settings.step_gradient,
    )
