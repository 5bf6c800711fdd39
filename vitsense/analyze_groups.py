"""The groups of one model: which are measured, and their table."""

from __future__ import annotations

from typing import Any

import pandas as pd

from vitsense.analyze_sweep import Sweep
from vitsense.analyze_tables import framed
from vitsense.deadline import Deadline
from vitsense.formats import format_of
from vitsense.sensitivity.group_sweep import MeasuredGroup, measure_groups
from vitsense.sensitivity.groups import Group, groups_of
from vitsense.sensitivity.recovery import Recovery
from vitsense.sensitivity.result import Outcome


def groups_frame(sweep: Sweep, deadline: Deadline) -> pd.DataFrame:
    """``groups.csv`` of one model; what the run has kept is not measured again."""
    settings = sweep.settings
    groups = [group for by in settings.groupings for group in groups_of(sweep.catalog, by)]
    formats = settings.group_format_names
    if not groups or not formats:
        return framed("groups", sweep.key, [])
    cells = len(formats) * len(settings.parts) * (1 + len(groups) * len(settings.directions))
    sweep.progress.start(sweep.images * cells, f"{sweep.key} groups")
    found = measure_groups(
        sweep.model,
        sweep.catalog,
        sweep.quantizers,
        sweep.supply,
        groups,
        formats=formats,
        parts=settings.parts,
        directions=settings.directions,
        ledger=sweep.kept.groups(),
        deadline=deadline,
        team=sweep.team,
        progress=sweep.progress,
    )
    return framed("groups", sweep.key, [_row(measured) for measured in found])


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
