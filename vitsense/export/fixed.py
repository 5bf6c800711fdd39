"""A model with one fixed grid at every planned site: what every export starts from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitsense.errors import SiteMismatchError, UserInputError
from vitsense.numerics.fake_quant import dequantize, fake_quantize, quantize
from vitsense.numerics.grid import Format, Grid
from vitsense.numerics.log2 import Log2Grid
from vitsense.observe import Visit, observing, preserved
from vitsense.plan.plan import FLOAT, ModulePlan, Plan
from vitsense.sensitivity.groups import includes
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.settings import Part, QuantSettings
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
    A model that was trained under quantization brings the ``runner`` that training converted it to,
    which rounds to the same grids and adds in the order of the training, and computes with that.
    """

    def __init__(
        self,
        model: nn.Module,
        catalog: SiteCatalog,
        weights: Mapping[str, FixedWeight],
        activations: Mapping[str, Grid],
        left: Mapping[str, str] | None = None,
        *,
        trained: Mapping[str, Any] | None = None,
        runner: nn.Module | None = None,
    ) -> None:
        """Join the parts.

        Args:
            model: Its unplanned tensors stay in float.
            catalog: The model's sites.
            weights: By site id.
            activations: By site id.
            left: Sites that are planned and stay in float, with the format they cannot have.
            trained: Of a model that was trained under quantization: what its training was, plain
                values.
            runner: Of such a model: what gives its logits.
        """
        super().__init__()
        self.model = model
        self.trained = trained
        self.runner = runner
        self.catalog = catalog
        self.weights = dict(weights)
        self.activations = dict(activations)
        self.left = dict(left or {})
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, classes)` of preprocessed images `(B, 3, H, W)`."""
        logits: Tensor
        if self.runner is not None:
            logits = self.runner(images)
            return logits
        with observing(self.model, self.catalog, self.visits()):
            logits = self.model(images)
            return logits

    def rounded(self, site: str, tensor: Tensor) -> Tensor:
        """The tensor of an activation site on its grid.

        It is divided by the scale, as ONNX defines it, so that files and this model differ only
        where sums do; training multiplies with the reciprocal (as torch's own kernels do), and a
        trained model goes on so.
        """
        return fake_quantize(tensor, self.activations[site], divide=self.trained is None)

    def visits(self) -> dict[str, Visit]:
        """What happens at each site, in torch."""
        found: dict[str, Visit] = {}
        for key, weight in self.weights.items():
            found[key] = _given(weight.values)
        for key in self.activations:
            found[key] = partial(self.rounded, key)
        return found

    @property
    def formats(self) -> dict[str, Format]:
        """The integer format of every quantized site, by site id."""
        weights = {key: weight.grid.format for key, weight in self.weights.items()}
        return weights | {key: grid.format for key, grid in self.activations.items()}


def _given(values: Tensor) -> Visit:
    return lambda tensor: values.to(tensor.dtype)  # float64 where the model computes so


def runner_of(fixed: FixedModel) -> nn.Module:
    """What `vitsense.qat.prepare.convert` gave when the model was exported, bit for bit.

    The inner model's parameters must already hold the values of the integer weights.
    """
    from vitsense.qat.prepare import on_fixed_grids

    assert fixed.trained is not None
    grids = {key: weight.grid for key, weight in fixed.weights.items()} | fixed.activations
    modules = tuple(m for m in fixed.catalog if any(site.id in grids for site in m.sites))
    return on_fixed_grids(fixed.model, modules, grids, share_inputs=fixed.trained["share_inputs"])


def site_formats(plan: Plan, catalog: SiteCatalog) -> dict[Site, str]:
    """The name of the format of every site that the plan quantizes: ``int4``, ``mxfp4``.

    Raises:
        SiteMismatchError: the plan names a module that the model does not have.
    """
    plan.check_against([module.name for module in catalog])
    planned = {module.name: module for module in plan.modules}
    part = Part(plan.quantization.get("part", Part.BOTH.value))
    return {
        site: _format(planned[module.name], site)
        for module in catalog
        if module.name in planned
        for site in module.sites
        if includes(part, site) and _format(planned[module.name], site) != FLOAT
    }


def _format(module: ModulePlan, site: Site) -> str:
    named = module.weight if site.is_weight else module.activation
    return (named or f"int{module.bits}").removeprefix("u")


def fix_model(
    model: nn.Module,
    catalog: SiteCatalog,
    plan: Plan,
    batches: Iterable[Tensor],
    settings: QuantSettings,
    *,
    fallback: bool = False,
) -> FixedModel:
    """Post-training quantization: ranges from the weights and from calibration images.

    Args:
        model: Left exactly as it was, and used inside the result.
        catalog: The model's sites.
        plan: Bits of the modules.
        batches: Calibration images `(B, 3, H, W)`, on the model's device.
        settings: How the ranges are chosen; those of the run, for the run's grids.
        fallback: Leave sites in float whose format has no evenly spaced integer codes.

    Raises:
        SiteMismatchError: the plan belongs to another model.
        UserInputError: a site has such a format, and ``fallback`` is off.
    """
    formats = site_formats(plan, catalog)
    batches = list(batches)
    device = next(model.parameters()).device
    statistics = collect_statistics(model, catalog, batches)
    quantizers = Quantizers(catalog, statistics, settings, device)
    tensors = weight_tensors(model, catalog, batches[0][:1])
    weights: dict[str, FixedWeight] = {}
    activations: dict[str, Grid] = {}
    left: dict[str, str] = {}
    for site, name in formats.items():
        tensor = tensors[site.id] if site.is_weight else torch.empty(0)
        grid = quantizers.grid(site, name, tensor)
        if not isinstance(grid, Grid):
            logarithmic = isinstance(grid, Log2Grid)
            left[site.id] = "powers of two" if logarithmic else grid.format.name
        elif site.is_weight:
            weights[site.id] = FixedWeight(quantize(tensor, grid), grid)
        else:
            activations[site.id] = grid
    if left and not fallback:
        first = next(iter(left))
        counted = ", ".join(f"{n} {name}" for name, n in Counter(left.values()).items())
        raise UserInputError(
            f"{len(left)} sites have a format without evenly spaced integer codes ({counted}), "
            f"first {first}: exported files hold integers. Plan with integer formats, or leave "
            "these sites in float with --fallback."
        )
    return FixedModel(model, catalog, weights, activations, left)


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
