"""Outcomes of modules quantized in other ways than the table's cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vitsense.deadline import Deadline
from vitsense.observe import ReplaySession, Visit, preserved
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sensitivity.ledger import Span, SpanSums
from vitsense.sensitivity.meter import Batch, outcome_of, recorded
from vitsense.sensitivity.portions import Job, Supply, measure_in_portions
from vitsense.sensitivity.result import Outcome
from vitsense.sensitivity.work import rests
from vitsense.sites import SiteCatalog, SiteModule
from vitsense.team import ALONE, Team, Verdict


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """One module with its sites replaced in some way."""

    module: SiteModule
    visits: Mapping[str, Visit]


def measure_variants(
    model: nn.Module,
    catalog: SiteCatalog,
    batches: Iterable[Batch] | Supply,
    variants: Mapping[str, Variant],
    *,
    ledger: SpanSums[str, Outcome] | None = None,
    deadline: Deadline | None = None,
    team: Team = ALONE,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Outcome]:
    """The outcome of each variant, by replay. The model is left as it was.

    Args:
        model: Any image classifier.
        catalog: Its sites.
        batches: Images and labels, always in the same order.
        variants: By name; the ledger knows them by these names.
        ledger: What earlier, interrupted work already measured, and where new results are kept.
        deadline: Measuring stops there; variants that saw no image are then left out.
        team: The processes that share the work.
        progress: Told of every variant.

    Raises:
        MeasurementError: the full-precision model gives logits that are not finite.
    """
    sums = SpanSums[str, Outcome]() if ledger is None else ledger
    left, exact = rests(catalog), Verdict(team)
    with preserved(model), ReplaySession.open(model, catalog) as session:

        def agrees(variant: Variant) -> bool:
            replayed = session.replay(variant.visits, variant.module)
            return torch.equal(replayed, session.full(variant.visits))

        def measure(span: Span, batch: Batch, todo: Sequence[str], limit: Deadline) -> None:
            reference = recorded(session, batch[0])
            replays = exact(lambda: agrees(variants[todo[0]]))
            for name in todo:
                limit.check()
                variant = variants[name]
                logits = (
                    session.replay(variant.visits, variant.module)
                    if replays
                    else session.full(variant.visits)
                )
                sums.record(name, span, outcome_of(reference, logits, batch[1]))

        job = Job(
            things=list(variants),
            sums=sums,
            cost=lambda name: left[variants[name].module.name],
            measure=measure,
            forget=session.forget,
            settle=exact.close,
        )
        measure_in_portions(
            job, batches, team=team, deadline=deadline or Deadline(), progress=progress
        )
    found = {name: sums.total(name) for name in variants}
    return {name: outcome for name, outcome in found.items() if outcome is not None}
