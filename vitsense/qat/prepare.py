"""Make a model that trains under quantization, and fix its grid afterwards."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from vitsense.checkpoints import weights_digest
from vitsense.discover import find_sites
from vitsense.errors import MeasurementError, SiteMismatchError, UserInputError
from vitsense.numerics.grid import Format, Grid
from vitsense.observe.lasting import Intercepted
from vitsense.plan.plan import FLOAT, ModulePlan, Plan
from vitsense.qat.calibrate import activation_quantizer, calibrate, weight_quantizer
from vitsense.qat.operations import QuantizedOperations, rows_of
from vitsense.qat.quantizers import FixedQuantizer, LearnedQuantizer, Quantizer
from vitsense.qat.rounding import Rounding
from vitsense.qat.settings import QatSettings
from vitsense.sensitivity.groups import includes
from vitsense.settings import Granule, Part
from vitsense.sites import Site, SiteCatalog, SiteModule


def state_name(site: str) -> str:
    """A site id as it stands in a state dict, where dots separate modules."""
    return site.replace(".", "/")


class QuantizerTable(nn.Module, Mapping[str, Quantizer]):
    """The quantizers by site id, as a module (dots in ids become slashes in the state dict)."""

    def __init__(self, quantizers: Mapping[str, Quantizer]) -> None:
        """Register them."""
        super().__init__()
        for site, quantizer in quantizers.items():
            self.add_module(state_name(site), quantizer)

    def __getitem__(self, site: str) -> Quantizer:
        """The quantizer of a site."""
        found = self._modules[state_name(site)]
        assert isinstance(found, Quantizer)
        return found

    def __iter__(self) -> Iterator[str]:
        """Site ids in execution order."""
        return (name.replace("/", ".") for name in self._modules)

    def __len__(self) -> int:
        """Number of quantizers."""
        return len(self._modules)

    __hash__ = nn.Module.__hash__
    __eq__ = object.__eq__


class QuantizedModel(Intercepted):
    """A model in which every planned site is rounded by a quantizer.

    Called with images it gives logits; gradients reach the full-precision (latent) weights, steps
    and offsets. ``quantizers`` is the mapping from site id to quantizer.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: tuple[SiteModule, ...],
        quantizers: Mapping[str, Quantizer],
    ) -> None:
        """Copy ``model``; ``modules`` are the planned ones."""
        super().__init__(model, modules)
        self.planned = modules
        self.quantizers = QuantizerTable(quantizers)

    def operations(self) -> QuantizedOperations:
        """The operations, on rounded tensors."""
        return QuantizedOperations(self.quantizers)

    def scale_parameters(self) -> list[nn.Parameter]:
        """Steps and offsets."""
        return list(self.quantizers.parameters())

    def weight_parameters(self) -> list[nn.Parameter]:
        """Everything else that is trained: the parameters of the model itself."""
        return list(self.model.parameters())

    def quantized_weights(self) -> Iterator[tuple[SiteModule, Quantizer, Tensor]]:
        """Planned modules whose weight is rounded, with their (slice of the) latent weight.

        The slice is differentiable. Weights that the model computes before use (weight
        standardization) are left out: their parameter is not what is rounded.
        """
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for module in self.planned:
            site = module.weight_site
            if site is None or site.id not in self.quantizers or module.derived_weight:
                continue
            assert module.weight is not None
            weight = parameters[module.weight]
            whole = module.channels is None
            yield module, self.quantizers[site.id], weight if whole else weight[rows_of(module)]

    @torch.no_grad()
    def put_weight(self, module: SiteModule, value: Tensor) -> None:
        """Overwrite the latent weight of a planned module (its slice of it) in place."""
        assert module.weight is not None
        parameter = self.model.get_parameter(module.weight)
        if module.channels is None:
            parameter.copy_(value)
        else:
            parameter[rows_of(module)] = value


def prepare_qat(
    model: nn.Module,
    plan: Plan,
    *,
    settings: QatSettings | None = None,
    calibration: Iterable[Tensor],
) -> QuantizedModel:
    """A copy of ``model`` in which every site of the plan has a quantizer.

    Args:
        model: Any model that maps images to logits; it is left exactly as it was.
        plan: Bits per module. Formats ``float`` leave a weight or an activation alone.
        settings: How sites are quantized.
        calibration: Preprocessed images `(B, 3, H, W)` on the model's device, shuffled and drawn
            from training images.

    Raises:
        SiteMismatchError: the plan names a module that the model lacks, or was made for other
            weights or another architecture.
        MeasurementError: there are no calibration images, or the model gives no logits.
        UserInputError: a format is unknown or is not one of whole codes, or the model has gradient
            checkpointing turned on.
    """
    batches = [batch for batch in calibration if len(batch)]
    if not batches:
        raise MeasurementError("There are no images to calibrate on: pass at least one batch.")
    return _prepared(model, plan, settings or QatSettings(), batches, None)


def restore_qat(
    model: nn.Module,
    plan: Plan,
    state: Mapping[str, Tensor],
    *,
    settings: QatSettings | None = None,
    image: Tensor,
) -> QuantizedModel:
    """The prepared model whose ``state_dict()`` is ``state``, without calibrating again.

    Args:
        model: The model that was prepared, with the weights it had then.
        plan: As given to `prepare_qat`.
        state: What to load, strictly.
        settings: As given to `prepare_qat`.
        image: One preprocessed image, `(1, 3, H, W)`, to find the sites with; its values do not
            matter.

    Raises:
        SiteMismatchError: the plan or the state belongs to another model.
    """
    restored = _prepared(model, plan, settings or QatSettings(), [image], state)
    try:
        restored.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise SiteMismatchError(
            f"The state belongs to another prepared model or other settings: {error}"
        ) from error
    return restored


def convert(model: QuantizedModel) -> QuantizedModel:
    """A copy on a fixed grid: weights are rounded, steps and offsets are buffers.

    Its logits equal those of ``model.eval()`` in every bit.
    """
    fixed: dict[str, Quantizer] = {}
    plain = model.float_model().eval()
    weights = dict(plain.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for module, quantizer, weight in model.quantized_weights():
            site = module.weight_site
            assert site is not None
            assert module.weight is not None
            frozen = FixedQuantizer(quantizer, *quantizer.fixed_grid(weight))
            weights[module.weight][rows_of(module)] = frozen(weight)
            fixed[site.id] = frozen
    common: dict[int, Quantizer] = {}
    for name, quantizer in model.quantizers.items():
        if name in fixed:
            continue
        if id(quantizer) not in common:
            statistic = isinstance(quantizer, LearnedQuantizer) and quantizer.scale is None
            common[id(quantizer)] = (
                # the weight is computed before use, so it cannot be rounded in advance
                copy.deepcopy(quantizer)
                if statistic
                else FixedQuantizer(quantizer, *quantizer.fixed_grid())
            )
        fixed[name] = common[id(quantizer)]
    ordered = {name: fixed[name] for name in model.quantizers}
    converted = QuantizedModel(plain, model.planned, ordered)
    return converted.requires_grad_(False).eval()


def on_fixed_grids(
    model: nn.Module,
    modules: tuple[SiteModule, ...],
    grids: Mapping[str, Grid],
    *,
    share_inputs: bool = False,
) -> QuantizedModel:
    """What `convert` gave, from its parts: a model whose weights are on their grids, and grids.

    Args:
        model: Its weights are already rounded; it is copied.
        modules: The planned ones.
        grids: By site id; zero points are 0.
        share_inputs: As in the settings that were trained with.
    """
    common: dict[tuple[str, int], Quantizer] = {}
    found: dict[str, Quantizer] = {}
    for site in (site for module in modules for site in module.sites if site.id in grids):
        grid = grids[site.id]
        shared = (site.tensor, grid.format.bits)
        if share_inputs and shared in common:
            found[site.id] = common[shared]
            continue
        like = Quantizer(grid.format, Rounding(grid.format.qmin, grid.format.qmax))
        found[site.id] = common[shared] = FixedQuantizer(like, grid.scale, grid.shift)
    made = QuantizedModel(model, modules, found)
    return made.requires_grad_(False).eval()


def _prepared(
    model: nn.Module,
    plan: Plan,
    settings: QatSettings,
    batches: list[Tensor],
    state: Mapping[str, Tensor] | None,
) -> QuantizedModel:
    """The prepared model, its activations from the batches or, where given, from a state."""
    again = [name for name, m in model.named_modules() if getattr(m, "grad_checkpointing", False)]
    if again:
        raise UserInputError(
            f"Gradient checkpointing is on in {again[0] or 'the model'}: it would compute blocks "
            "again without their quantizers. Turn it off (set_grad_checkpointing(False)); "
            "prepared models keep no more for the backward pass than full precision does."
        )
    _check_formats(plan)
    catalog = find_sites(model, batches[0][:1])
    _check(plan, catalog, model)
    settings = _settled(settings, plan)
    planned, part = {entry.name: entry for entry in plan.modules}, part_of(plan)
    modules = tuple(module for module in catalog if module.name in planned)
    per_head = bool(settings.per_head) and state is None
    seen = calibrate(model, SiteCatalog(modules=modules), batches, per_head=per_head)
    quantizers: dict[str, Quantizer] = {}
    common: dict[tuple[str, int] | None, Quantizer] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for module in modules:
            weight = seen.derived.get(module.name)
            if weight is None and module.weight is not None:
                weight = parameters[module.weight][rows_of(module)]
            for site, bits in rounded_sites(module, planned[module.name], part):
                shared = (site.tensor, bits) if settings.share_inputs else None
                if shared in common:
                    made = common[shared]
                elif site.is_weight:
                    assert weight is not None
                    made = weight_quantizer(module, weight, bits, settings)
                elif state is not None:
                    prefix = f"quantizers.{state_name(site.id)}."
                    made = LearnedQuantizer.from_state(state, prefix, settings.step_gradient)
                else:
                    made = activation_quantizer(site, bits, settings, seen, batches[0].device)
                quantizers[site.id] = made
                if shared is not None:
                    common[shared] = made
    return QuantizedModel(model, modules, quantizers)


def _check(plan: Plan, catalog: SiteCatalog, model: nn.Module) -> None:
    names = [module.name for module in catalog]
    plan.check_against(names, weights_digest=weights_digest(model))
    theirs = plan.model.get("sites_digest")
    if theirs and theirs != catalog.digest:
        raise SiteMismatchError(
            f"The plan was made for a model whose sites have the digest {theirs}; this model's is "
            f"{catalog.digest}: make a plan from an analysis of this model."
        )


def _check_formats(plan: Plan) -> None:
    """Refuse what has no learned grid: floating-point and block formats, powers of two."""
    integer = re.compile(r"u?int\d+")
    for entry in plan.modules:
        for form in (entry.weight, entry.activation):
            if form is not None and form != FLOAT and not integer.fullmatch(form.strip()):
                raise UserInputError(
                    f"The plan gives {entry.name} the format {form!r}: training learns steps "
                    f"of even levels, so it takes int2 to int8 and int16, or {FLOAT!r} for a "
                    "part that stays as it is. Plan with those (vitsense analyze --bits 8,4,3,2), "
                    f"or fix this module (vitsense plan --pin {entry.name}=4); a plan with {form} "
                    "can be exported without training."
                )
    if plan.quantization.get("attention_probs", "uniform") != "uniform":
        raise UserInputError(
            f"The plan holds attention probabilities as {plan.quantization['attention_probs']}: "
            "training has evenly spaced levels only. Analyze with --attention-probs uniform."
        )


def _settled(settings: QatSettings, plan: Plan) -> QatSettings:
    """The settings with what the plan says in place of None."""
    says = plan.quantization
    granule, per_head = settings.weight_granularity, settings.per_head
    if granule is None:
        granule = Granule(says.get("weight_granularity", Granule.CHANNEL.value))
    if per_head is None:
        per_head = bool(says.get("per_head", False))
    return replace(settings, weight_granularity=granule, per_head=per_head)


def part_of(plan: Plan) -> Part:
    """What the plan rounds; one of ``vitsense analyze --parts weights`` has weights alone."""
    return Part(plan.quantization.get("part", Part.BOTH.value))


def rounded_sites(
    module: SiteModule, entry: ModulePlan, part: Part = Part.BOTH
) -> Iterator[tuple[Site, int]]:
    """The sites of a module that its entry in a plan rounds, with their widths.

    Args:
        module: Whose sites.
        entry: Of the plan.
        part: Of the plan; see `part_of`.
    """
    for site in module.sites:
        form = entry.weight if site.is_weight else entry.activation
        if form != FLOAT and includes(part, site):
            yield site, entry.bits if form is None else Format.parse(form).bits
