"""What the same plan costs without training, measured as `vitsense analyze` measures plans."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from vitsense.discover import find_sites
from vitsense.models import LoadedModel
from vitsense.plan.plan import FLOAT, Plan
from vitsense.qat.evaluate import Evaluation
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Outcome
from vitsense.sensitivity.sweep import measure_joint
from vitsense.settings import Granule, QuantSettings
from vitsense.statistics.collect import collect_statistics


def ptq_outcome(
    model: LoadedModel, plan: Plan, calibration: Iterable[Tensor], evaluation: Evaluation
) -> Outcome | None:
    """The outcome of the plan on the evaluation images; None where a part stays in float.

    Args:
        model: In full precision.
        plan: Bits per module.
        calibration: Preprocessed images to choose ranges on.
        evaluation: The images.
    """
    if any(FLOAT in (module.weight, module.activation) for module in plan.modules):
        return None
    batches = list(calibration)
    catalog = find_sites(model.module, batches[0][:1])
    statistics = collect_statistics(model.module, catalog, batches)
    granule = Granule(plan.quantization.get("weight_granularity", Granule.CHANNEL.value))
    settings = QuantSettings(weight_granularity=granule)
    quantizers = Quantizers(catalog, statistics, settings, evaluation.device)
    found = measure_joint(
        model.module, catalog, quantizers, evaluation.batches(), {"plan": plan.bits}
    )
    return found["plan"]
