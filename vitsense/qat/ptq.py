"""What the same plan costs without training, measured as `vitsense analyze` measures plans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from vitsense.discover import find_sites
from vitsense.models import LoadedModel
from vitsense.observe import observing
from vitsense.plan.plan import Plan
from vitsense.qat.evaluate import Answers, Evaluation
from vitsense.qat.prepare import part_of, rounded_sites
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.settings import Granule, QuantSettings, RangeChoice
from vitsense.statistics.collect import collect_statistics


def ptq_answers(
    model: LoadedModel, plan: Plan, calibration: Iterable[Tensor], evaluation: Evaluation
) -> Answers:
    """The answers of the plan on the evaluation images.

    With the images that the analysis calibrated on, in batches of its size, they are those that
    the analysis measured of the plan.

    Args:
        model: In full precision.
        plan: Formats per module, and how ranges are chosen.
        calibration: Preprocessed images to choose ranges on.
        evaluation: The images; they must have been shown to full precision.
    """
    batches = list(calibration)
    catalog = find_sites(model.module, batches[0][:1])
    statistics = collect_statistics(model.module, catalog, batches)
    quantizers = Quantizers(catalog, statistics, _settings(plan.quantization), evaluation.device)
    planned, part = {entry.name: entry for entry in plan.modules}, part_of(plan)
    visits = {
        site.id: quantizers.visit(site, bits)
        for module in catalog
        if module.name in planned
        for site, bits in rounded_sites(module, planned[module.name], part)
    }
    with observing(model.module, catalog, visits):
        return evaluation.answers(model.module)


def _settings(said: Mapping[str, Any]) -> QuantSettings:
    """How the plan's analysis chose ranges; training has refused what it cannot learn."""
    usual = QuantSettings()

    def choice(key: str, default: RangeChoice) -> RangeChoice:
        return RangeChoice(said.get(key, default.value))

    return QuantSettings(
        weight_granularity=Granule(said.get("weight_granularity", usual.weight_granularity.value)),
        weight_range=choice("weight_range", usual.weight_range),
        activation_range=choice("activation_range", usual.activation_range),
    )
