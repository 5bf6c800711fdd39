"""A model with one fixed grid at every planned site: what every export starts from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitsense.errors import SiteMismatchError, UserInputError
from vitsense.numerics.fake_quant import dequantize, fake_quantize, quantize
from vitsense.numerics.grid import Format, Grid
from vitsense.observe import Visit, observing, preserved
from vitsense.plan.plan import ModulePlan, Plan
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.settings import QuantSettings
from vitsense.sites import Site, SiteCatalog
from vitsense.statistics.collect import collect_statistics


@dataclass(frozen=True, slots=True, eq=False)
class FixedWeight:
    """The weight of one module as integers."""

    codes: Tensor
    """`(O, I, ...)`, int32, between the format's ends."""
    grid: Grid

    @property
    def values(self) -> Tensor:
        """The real numbers, `(O, I, ...)`, float32."""
        return dequantize(self.codes, self.grid)


class FixedModel(nn.Module):
    """Gives the logits of the quantized model; every weight is integers, every range is settled.

    The inner model is used as it is: the visits exchange its weights and round its activations.
    """

    def __init__(
        self,
        model: nn.Module,
        catalog: SiteCatalog,
        weights: Mapping[str, FixedWeight],
        activations: Mapping[str, Grid],
    ) -> None:
        """Join the parts.

        Args:
            model: Its unplanned tensors stay in float.
            catalog: The model's sites.
            weights: By site id.
            activations: By site id.
        """
        super().__init__()
        self.model = model
        self.catalog = catalog
        self.weights = dict(weights)
        self.activations = dict(activations)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, classes)` of preprocessed images `(B, 3, H, W)`."""
        with observing(self.model, self.catalog, self.visits()):
            logits: Tensor = self.model(images)
            return logits

    def visits(self) -> dict[str, Visit]:
        """What happens at each site, in torch."""
        found: dict[str, Visit] = {}
        for key, weight in self.weights.items():
            found[key] = _given(weight.values)
        for key, grid in self.activations.items():
            found[key] = _rounded(grid)
        return found

    @property
    def formats(self) -> dict[str, Format]:
        """The integer format of every quantized site, by site id."""
        weights = {key: weight.grid.format for key, weight in self.weights.items()}
        return weights | {key: grid.format for key, grid in self.activations.items()}


def _given(values: Tensor) -> Visit:
    return lambda _tensor: values


def _rounded(grid: Grid) -> Visit:
    return lambda tensor: fake_quantize(tensor, grid)


def weight_bits(module: ModulePlan) -> int:
    """Bits of a planned module's weight."""
    return module.bits if module.weight is None else Format.parse(module.weight).bits


def activation_bits(module: ModulePlan) -> int:
    """Bits of a planned module's activations."""
    return module.bits if module.activation is None else Format.parse(module.activation).bits


def site_bits(plan: Plan, catalog: SiteCatalog) -> dict[Site, int]:
    """The bits of every site that the plan quantizes.

    Raises:
        SiteMismatchError: the plan names a module that the model does not have.
        UserInputError: a format is not an integer format.
    """
    plan.check_against([module.name for module in catalog])
    planned = {module.name: module for module in plan.modules}
    return {
        site: (weight_bits if site.is_weight else activation_bits)(planned[module.name])
        for module in catalog
        if module.name in planned
        for site in module.sites
    }


def fix_model(
    model: nn.Module,
    catalog: SiteCatalog,
    plan: Plan,
    batches: Iterable[Tensor],
    settings: QuantSettings,
) -> FixedModel:
    """Post-training quantization: ranges from the weights and from calibration images.

    Args:
        model: Left exactly as it was, and used inside the result.
        catalog: The model's sites.
        plan: Bits of the modules.
        batches: Calibration images `(B, 3, H, W)`, on the model's device.
        settings: How the ranges are chosen; those of the run, for the run's grids.

    Raises:
        SiteMismatchError: the plan belongs to another model.
        UserInputError: the plan has a format that is no integer format.
    """
    bits = site_bits(plan, catalog)
    batches = list(batches)
    device = next(model.parameters()).device
    statistics = collect_statistics(model, catalog, batches)
    quantizers = Quantizers(catalog, statistics, settings, device)
    tensors = weight_tensors(model, catalog, batches[0][:1])
    weights: dict[str, FixedWeight] = {}
    activations: dict[str, Grid] = {}
    for site, width in bits.items():
        if not site.is_weight:
            activations[site.id] = quantizers.grid(site, width, torch.empty(0))
            continue
        grid = quantizers.grid(site, width, tensors[site.id])
        weights[site.id] = FixedWeight(quantize(tensors[site.id], grid), grid)
    return FixedModel(model, catalog, weights, activations)


def weight_tensors(model: nn.Module, catalog: SiteCatalog, image: Tensor) -> dict[str, Tensor]:
    """The weight that each module multiplies with, by site id, as its operation sees it.

    Slices of fused projections come as slices, and weights that the model computes from their
    parameter (weight standardization) as what was computed.
    """
    found: dict[str, Tensor] = {}

    def keep(key: str) -> Visit:
        def look(tensor: Tensor) -> None:
            found[key] = tensor.detach().float().clone()

        return look

    visits = {site.id: keep(site.id) for site in catalog.sites if site.is_weight}
    with preserved(model), torch.no_grad(), observing(model, catalog, visits):
        model(image)
    return found


def check_same_sites(catalog: SiteCatalog, digest: str, what: str) -> None:
    """Refuse a result that belongs to another architecture.

    Raises:
        SiteMismatchError: the catalogs differ.
    """
    if digest and digest != catalog.digest:
        raise SiteMismatchError(
            f"{what} was made for a model with the sites {digest}, this model has "
            f"{catalog.digest}: it belongs to another model, or to another version of timm."
        )


def check_plan_of(plan: Plan, digest: str, catalog: SiteCatalog, what: str) -> None:
    """Refuse a plan of another model or of other weights.

    Raises:
        SiteMismatchError: names, sites or weights differ.
        UserInputError: the plan is empty.
    """
    if not plan.modules:
        raise UserInputError(f"The plan of {what} names no module.")
    plan.check_against([m.name for m in catalog], weights_digest=digest, model=what)
    check_same_sites(catalog, str(plan.model.get("sites_digest") or ""), "The plan")
