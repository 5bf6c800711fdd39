"""The groups of one model: which are measured, and their table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import nn

from vitsense.analyze_kept import KeptResults
from vitsense.analyze_tables import framed
from vitsense.formats import format_of
from vitsense.progress import Progress
from vitsense.sensitivity.group_sweep import (
    GroupLedger,
    MeasuredGroup,
    measure_groups,
)
from vitsense.sensitivity.groups import Group, groups_of
from vitsense.sensitivity.meter import Batch
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.recovery import Recovery
from vitsense.sensitivity.result import Outcome
from vitsense.settings import AnalyzeSettings
from vitsense.sites import SiteCatalog


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStage:
    """Everything the measurement of groups needs."""

    key: str
    model: nn.Module
    catalog: SiteCatalog
    quantizers: Quantizers
    batches: Callable[[], Iterable[Batch]]
    images: int
    settings: AnalyzeSettings
    kept: KeptResults
    progress: Progress


def groups_frame(stage: GroupStage) -> pd.DataFrame:
    """``groups.csv`` of one model; what the run has kept is not measured again."""
    settings = stage.settings
    groups = [group for by in settings.groupings for group in groups_of(stage.catalog, by)]
    formats = settings.group_format_names
    if not groups or not formats:
        return framed("groups", stage.key, [])
    cells = len(formats) * len(settings.parts) * (1 + len(groups) * len(settings.directions))
    stage.progress.start(stage.images * cells, f"{stage.key} groups")
    found = measure_groups(
        stage.model,
        stage.catalog,
        stage.quantizers,
        stage.batches(),
        groups,
        formats=formats,
        parts=settings.parts,
        directions=settings.directions,
        ledger=GroupLedger(stage.kept.groups(), stage.kept.keep_group),
        progress=stage.progress,
    )
    return framed("groups", stage.key, [_row(measured) for measured in found])


_EMPTY_OUTCOME = dict.fromkeys(Outcome(n=1, kl=0, noise=1, signal=1).row())
_EMPTY_RECOVERY = dict.fromkeys(Recovery(n=1).row())


def _row(measured: MeasuredGroup) -> dict[str, Any]:
    cell, found = measured.cell, measured.found
    good = found is not None and found.outcome.finite
    recovery = found.recovery if good and found is not None else None
    return {
        **_identity(measured.group),
        "direction": cell.direction.value,
        "part": cell.part.value,
        "bits": format_of(cell.format).bits,
        "format": cell.format,
        "status": "measured" if good else "unmeasured",
        "reason": "" if good else measured.reason or "the quantized model's logits are not finite",
        **(found.outcome.row() if good and found is not None else _EMPTY_OUTCOME),
        **(recovery.row() if recovery is not None else _EMPTY_RECOVERY),
    }


def _identity(group: Group) -> dict[str, Any]:
    return {
        "by": group.by,
        "group": group.name,
        "members": len(group.modules),
        "params": group.params,
    }
