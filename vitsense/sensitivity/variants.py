"""Outcomes of modules quantized in other ways than the table's cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from vitsense.observe import ReplaySession, Visit, preserved
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sensitivity.meter import Batch, outcome_of, recorded
from vitsense.sensitivity.result import Outcome
from vitsense.sites import SiteCatalog, SiteModule


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """One module with its sites replaced in some way."""

    module: SiteModule
    visits: Mapping[str, Visit]


def measure_variants(
    model: nn.Module,
    catalog: SiteCatalog,
    batches: Iterable[Batch],
    variants: Mapping[str, Variant],
    *,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Outcome]:
    """The outcome of each variant on all images, by replay. The model is left as it was.

    Raises:
        MeasurementError: the full-precision model gives logits that are not finite.
    """
    totals = {name: Outcome() for name in variants}
    exact: bool | None = None
    with preserved(model), ReplaySession.open(model, catalog) as session:
        for images, labels in batches:
            reference = recorded(session, images)
            for name, variant in variants.items():
                logits = session.replay(variant.visits, variant.module)
                if exact is None:
                    exact = torch.equal(logits, session.full(variant.visits))
                if not exact:  # the model does not allow replay
                    logits = session.full(variant.visits)
                totals[name] = totals[name] + outcome_of(reference, logits, labels)
                progress.advance(len(labels), name)
    return totals
