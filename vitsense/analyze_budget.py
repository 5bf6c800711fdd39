"""Budgets that no plan of a run can keep: refused before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch

from vitsense.analyze_tables import modules_frame
from vitsense.data import ImageSet
from vitsense.discover import find_sites
from vitsense.errors import UserInputError
from vitsense.formats import format_of
from vitsense.models import LoadedModel
from vitsense.plan.budget import Budget, BudgetKind
from vitsense.plan.latency import LatencyProfile
from vitsense.plan.possible import refuse_impossible
from vitsense.plan.solve import planable_modules
from vitsense.sensitivity.sweep import measurable
from vitsense.settings import AnalyzeSettings, Granule
from vitsense.sites import SiteCatalog

_DEFAULT = next(one.default for one in fields(AnalyzeSettings) if one.name == "budget")


def refuse_impossible_budgets(
    settings: AnalyzeSettings,
    models: Sequence[LoadedModel],
    calibration: ImageSet,
    device: torch.device,
) -> None:
    """The same for every model of a run; sites are only looked for where it is in doubt.

    Raises:
        UserInputError: see `refuse_impossible_budget`.
    """
    for model in models if _in_doubt(settings) else ():
        example = next(calibration.batches(model.preprocessing, 1, device))[0]
        catalog = find_sites(model.module, example)
        refuse_impossible_budget(settings, model.key, model.params, catalog)


def refuse_impossible_budget(
    settings: AnalyzeSettings, key: str, params: int, catalog: SiteCatalog
) -> None:
    """Refuse a budget below the smallest plan of a model, with nothing pinned.

    Raises:
        UserInputError: no plan keeps it; the least possible value is named.
    """
    if not _in_doubt(settings):
        return
    part = settings.planned_part
    cells = measurable(catalog, settings.format_names, (part,))
    modules = planable_modules(modules_frame(key, catalog), part)
    try:
        refuse_impossible(
            modules[modules["module"].isin(cells.keys())],
            {name: [cell.format for cell in found] for name, found in cells.items()},
            params,
            Budget.parse(settings.budget),
            part=part,
            per_tensor=settings.quant.weight_granularity is Granule.TENSOR,
            profile=None if settings.profile is None else LatencyProfile.load(settings.profile),
        )
    except UserInputError as error:
        raise UserInputError(f"{key}: {error}") from error


def _in_doubt(settings: AnalyzeSettings) -> bool:
    """Whether a budget was asked for (the default is no wish) that is not met in any case."""
    budget = Budget.parse(settings.budget)
    if settings.budget == _DEFAULT or budget.kind is BudgetKind.MAX_DROP:
        return False  # drops are not known yet
    forms = [format_of(name) for name in settings.format_names]
    plain = budget.kind is BudgetKind.AVG_BITS and all(form.is_integer for form in forms)
    return not plain or budget.value < min(form.effective_bits for form in forms)
