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
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sensitivity.company import Companions, CompanyMemory, plan_digest
from vitsense.sensitivity.ledger import Span
from vitsense.sensitivity.meter import Batch
from vitsense.sensitivity.portions import unopened
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.work import rests
from vitsense.settings import AnalyzeSettings
from vitsense.sites import SiteCatalog
from vitsense.team import ALONE, Team

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
    team: Team = ALONE


def refined(
    stage: RefineStage, problem: Problem, budget: Budget, curve: DropModel, solved: Assignment
) -> Refined | None:
    """The best plan near the solved one or near a uniform one; None where none was searched.

    For a budget of a drop the solved plan's average bits are held: it stays as small, and loses
    less. When time is up, the solved plan stands.
    """
    if not stage.settings.refine:
        return None
    if budget.kind is BudgetKind.MAX_DROP:
        budget = Budget(BudgetKind.AVG_BITS, solved.cost.avg_bits)
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

    def company(plan: Formats, images: int) -> Company:
        exchanges = neighbours(problem, plan)
        modules = sum(map(bool, exchanges.values()))
        stage.progress.start(
            images * (modules + 1),
            f"{stage.key} improving the plan: one module exchanged at a time",
        )
        spans = _spans(0, images)
        _share_exchanges(stage, spans, plan, exchanges)
        _share_plans(stage, spans, [plan])
        here = _companions(stage, spans)
        return Company(fmean(here.wholes([plan])[0]), here.exchanged(plan, exchanges))

    def divergence(plans: Sequence[Formats]) -> list[list[float]]:
        images = (stage.images - most) * len(plans)
        stage.progress.start(images, f"{stage.key} improving the plan: exchanges together")
        spans = _spans(most, stage.images)
        _share_plans(stage, spans, plans)
        return _companions(stage, spans).wholes(plans)

    sizes = sorted({min(_FEWEST * 2**i, most) for i in range(most.bit_length())} - {0})
    return Search(company=company, divergence=divergence, sizes=sizes, steps=stage.settings.refine)


def _spans(first: int, last: int) -> list[Span]:
    return [Span(i, min(i + _FEWEST, last)) for i in range(first, last, _FEWEST)]


def _companions(stage: RefineStage, spans: Sequence[Span], *, own: bool = False) -> Companions:
    """The model with images; of several processes, only ``own`` work opens them."""
    known = not own and stage.team.place.size > 1
    return Companions(
        model=stage.model,
        catalog=stage.catalog,
        quantizers=stage.quantizers,
        batches=lambda: ((span, unopened(span) if known else stage.read(span)) for span in spans),
        part=stage.settings.planned_part,
        memory=stage.memory,
        deadline=stage.deadline,
        progress=NO_PROGRESS if known else stage.progress,
    )


def _share_exchanges(
    stage: RefineStage, spans: Sequence[Span], plan: Formats, exchanges: Mapping[str, Sequence[str]]
) -> None:
    digest = plan_digest(plan, stage.settings.planned_part)
    left = rests(stage.catalog)
    names = [name for name, forms in exchanges.items() if forms]

    def cost(span: Span, place: int) -> float:
        name = names[place]
        known = (digest, span, name) in stage.memory.sums
        return 0.0 if known else len(span) * len(exchanges[name]) * left[name]

    def measure(span: Span, places: Sequence[int]) -> None:
        mine = {names[place]: exchanges[names[place]] for place in places}
        _companions(stage, [span], own=True).exchanged(plan, mine)

    _share(stage, spans, len(names), cost, measure)


def _share_plans(stage: RefineStage, spans: Sequence[Span], plans: Sequence[Formats]) -> None:
    digests = [plan_digest(plan, stage.settings.planned_part) for plan in plans]

    def cost(span: Span, place: int) -> float:
        return 0.0 if (digests[place], span) in stage.memory.values else float(len(span))

    def measure(span: Span, places: Sequence[int]) -> None:
        mine = [plans[place] for place in places]
        _companions(stage, [span], own=True).wholes(mine)

    _share(stage, spans, len(plans), cost, measure)


def _share(
    stage: RefineStage,
    spans: Sequence[Span],
    things: int,
    cost: Callable[[Span, int], float],
    measure: Callable[[Span, Sequence[int]], None],
) -> None:
    """Several processes measure what is not known yet, each its part; then all know all of it.

    Raises:
        TimeIsUpError: the deadline came for one of them; what was measured is kept.
    """
    if stage.team.place.size == 1:
        return
    units = [(span, place) for span in spans for place in range(things)]
    mine: dict[Span, list[int]] = {}
    for unit in stage.team.run_of([cost(span, place) for span, place in units]):
        if cost(*units[unit]):
            mine.setdefault(units[unit][0], []).append(units[unit][1])
    late = False
    try:
        for span, places in mine.items():
            measure(span, places)
    except TimeIsUpError:
        late = True
    stage.memory.meet()
    if stage.team.any(late):
        stage.deadline.came = True
        raise TimeIsUpError


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
