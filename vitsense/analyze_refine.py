"""The search for a better plan of one model, on its calibration images.

Evaluation images decide nothing here: what is measured on them of the plan that was found is not
flattered by the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from statistics import fmean
from typing import Any

from torch import nn

from vitsense.deadline import Deadline, TimeIsUpError
from vitsense.formats import format_of
from vitsense.plan.budget import Budget, BudgetKind
from vitsense.plan.predict import DropModel
from vitsense.plan.refine import Company, Formats, Refined, Search, neighbours, refine
from vitsense.plan.solve import Assignment, Problem, uniform, within
from vitsense.progress import Progress
from vitsense.sensitivity.company import Companions, CompanyMemory
from vitsense.sensitivity.ledger import Span
from vitsense.sensitivity.meter import Batch
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.settings import AnalyzeSettings
from vitsense.sites import SiteCatalog

_FEWEST = 16
"""Images at once, and for exchanges at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineStage:
    """What the search needs of one model."""

    key: str
    model: nn.Module
    catalog: SiteCatalog
    quantizers: Quantizers
    read: Callable[[Span], Batch]
    """Calibration images of a span."""
    images: int
    """Calibration images."""
    settings: AnalyzeSettings
    memory: CompanyMemory
    deadline: Deadline
    progress: Progress


def refined(
    stage: RefineStage, problem: Problem, budget: Budget, curve: DropModel, solved: Assignment
) -> Refined | None:
    """The best plan near the solved one or near a uniform one; None where none was searched.

    A budget of a drop is not searched: its plan has the least bits and keeps no cost. When time is
    up, the solved plan stands.
    """
    if not stage.settings.refine or budget.kind is BudgetKind.MAX_DROP:
        return None
    starts: dict[str, Formats] = {"solved": solved.formats}
    even = _uniform(problem, budget, curve)
    if even is not None:
        starts |= even
    search = search_of(stage, problem)
    try:
        found = refine(problem, budget, curve, starts, search)
    except TimeIsUpError:
        return None
    return found if isfinite(found.kl) else replace(found, formats=solved.formats)


def search_of(stage: RefineStage, problem: Problem) -> Search:
    """Exchanges are measured on the first images, at most half of them; plans on all others."""
    most = min(stage.settings.refine_images, stage.images // 2)
    key, progress = stage.key, stage.progress

    def companions(first: int, last: int) -> Companions:
        spans = [Span(i, min(i + _FEWEST, last)) for i in range(first, last, _FEWEST)]
        return Companions(
            model=stage.model,
            catalog=stage.catalog,
            quantizers=stage.quantizers,
            batches=lambda: ((span, stage.read(span)) for span in spans),
            part=stage.settings.planned_part,
            memory=stage.memory,
            deadline=stage.deadline,
            progress=progress,
        )

    def company(plan: Formats, images: int) -> Company:
        exchanges, here = neighbours(problem, plan), companions(0, images)
        modules = sum(map(bool, exchanges.values()))
        progress.start(images * (modules + 1), f"{key} exchanges in the plan")
        return Company(fmean(here.wholes([plan])[0]), here.exchanged(plan, exchanges))

    def divergence(plans: Sequence[Formats]) -> list[list[float]]:
        progress.start((stage.images - most) * len(plans), f"{key} exchanges together")
        return companions(most, stage.images).wholes(plans)

    sizes = sorted({min(_FEWEST * 2**i, most) for i in range(most.bit_length())} - {0})
    return Search(company=company, divergence=divergence, sizes=sizes, steps=stage.settings.refine)


def _uniform(problem: Problem, budget: Budget, curve: DropModel) -> Mapping[str, Formats] | None:
    """The widest uniform plan within the budget, by its name, pinned modules at their widths."""
    known = set.intersection(*(set(forms) for forms in problem.divergence.values()))
    for form in sorted(map(format_of, known), key=lambda form: -form.effective_bits):
        plain = dict.fromkeys(problem.modules["module"], form.name)
        if within(problem, budget, curve, plain):
            pinned = uniform(problem, form.name, pinned=True)
            return {
                f"uniform-{form.label}": {n: format_of(like).name for n, like in pinned.items()}
            }
    return None


def refinement_rows(found: Refined | None) -> list[dict[str, Any]]:
    """Rows of ``refinement.csv``, without the model."""
    if found is None:
        return []
    return [asdict(step) for step in found.steps]
