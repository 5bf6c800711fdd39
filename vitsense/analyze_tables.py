"""What was found about one model, as the tables of a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from vitsense.plan.plan import Plan
from vitsense.schemas import SCHEMAS
from vitsense.sites import SiteCatalog
from vitsense.statistics.collect import SiteStatistics


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelTables:
    """Everything that was found about one model."""

    frames: dict[str, pd.DataFrame]
    """Tables by name, with the column ``model``."""
    arrays: dict[str, dict[str, Any]]
    fp: dict[str, Any] | None
    facts: dict[str, Any]
    """More entries for the model in ``run.json``."""
    plan: Plan
    verdict: list[str]
    warnings: list[str]


def modules_frame(key: str, catalog: SiteCatalog) -> pd.DataFrame:
    """``modules.csv`` of one model."""
    rows = [
        {
            "module": m.name,
            "index": m.index,
            "kind": m.kind.value,
            "role": m.role.value,
            "block": m.block,
            "stage": m.stage,
            "depth": m.depth,
            "heads": m.heads,
            "params": m.params,
            "macs": m.macs,
            "weight_shape": "x".join(map(str, m.weight_shape)),
            "sites": ";".join(site.role.value for site in m.sites),
        }
        for m in catalog
    ]
    return framed("modules", key, rows)


def framed(name: str, key: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A table of one model, typed by its schema."""
    frame = pd.DataFrame([{"model": key, **row} for row in rows], columns=list(SCHEMAS[name]))
    return frame.astype(SCHEMAS[name])


def site_arrays(key: str, statistics: Mapping[str, SiteStatistics]) -> dict[str, dict[str, Any]]:
    """``channels.npz`` and ``histograms.npz`` of one model."""
    channels, histograms = {}, {}
    for site_id, found in statistics.items():
        for name, values in found.arrays().items():
            channels[f"{key}|{site_id}|{name}"] = values
        edges, counts = found.histogram.equal_bins()
        histograms[f"{key}|{site_id}|edges"] = edges
        histograms[f"{key}|{site_id}|counts"] = counts
    return {"channels": channels, "histograms": histograms}
