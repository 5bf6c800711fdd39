"""Modules of several models matched by role and relative depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vitsense.formats import NumberFormat
from vitsense.schemas import RATED
from vitsense.sites import ModuleRole
from vitsense.verdict import decisive_format

if TYPE_CHECKING:
    from collections.abc import Mapping

MHSA_ROLES = tuple(role.value for role in ModuleRole if role.in_attention)
"""Roles that the paper counts to multi-head self-attention."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """Tables over all models of a run."""

    format: NumberFormat
    """Where modules are compared."""
    per_module: pd.DataFrame
    """model, module, role, group, depth, params, kl, drop, weight and activation statistics."""
    by_role: pd.DataFrame
    """model, role, modules, params, kl_sum, kl_share (%), kl_median; of activations: kurtosis,
    variance and sdam (medians), outliers_6 (mean share)."""
    spread: pd.DataFrame
    """model, and how much modules differ: ratio of the 90th to the 50th percentile."""


def compare_models(
    modules: pd.DataFrame, statistics: pd.DataFrame, sensitivity: pd.DataFrame
) -> Comparison | None:
    """Match the modules of all models of a run; None if nothing was measured.

    Args:
        modules: ``modules.csv``.
        statistics: ``statistics.csv``.
        sensitivity: ``sensitivity.csv``.
    """
    good = sensitivity[sensitivity["status"].isin(RATED)]
    parts = set(good["part"])
    good = good[good["part"] == ("both" if "both" in parts else next(iter(parts), "both"))]
    form = decisive_format(good)
    if form is None:
        return None
    cells = good[good["format"] == form.name][["model", "module", "kl", "drop", "agreement"]]
    merged = modules.merge(cells, on=["model", "module"], how="left")
    merged = merged.merge(_site_columns(statistics, modules), on=["model", "module"], how="left")
    # without unit, so that it can be compared between models
    merged["activation_sdam_relative"] = merged["activation_sdam"] / np.sqrt(
        merged["activation_variance"].where(merged["activation_variance"] > 0)
    )
    merged["group"] = merged["role"].map(group_of)
    return Comparison(
        format=form, per_module=merged, by_role=_by_role(merged), spread=_spread(merged)
    )


def group_of(role: str) -> str:
    """``MHSA``, ``FFN`` or ``other``: the paper's coarse groups."""
    if role in MHSA_ROLES:
        return "MHSA"
    return "FFN" if role == ModuleRole.FFN.value else "other"


_STATISTICS = ("variance", "kurtosis", "outliers_6", "sdam", "channel_max_to_median")


def _site_columns(statistics: pd.DataFrame, modules: pd.DataFrame) -> pd.DataFrame:
    """Per module: statistics of its weight, and of its activation with the heaviest tail."""
    is_weight = statistics["site"].str.endswith(":weight")
    columns = ["model", "module", *_STATISTICS]
    weights = statistics[is_weight][columns]
    activations = (
        statistics[~is_weight][columns]
        .sort_values("kurtosis", ascending=False, kind="stable")
        .drop_duplicates(["model", "module"])
    )
    base = modules[["model", "module"]]
    return base.merge(
        weights.rename(columns={c: f"weight_{c}" for c in _STATISTICS}),
        on=["model", "module"],
        how="left",
    ).merge(
        activations.rename(columns={c: f"activation_{c}" for c in _STATISTICS}),
        on=["model", "module"],
        how="left",
    )


def _by_role(merged: pd.DataFrame) -> pd.DataFrame:
    rows = []
    totals = merged.groupby("model")["kl"].sum()
    for (model, role), part in merged.groupby(["model", "role"], sort=False):
        total = float(totals[model])
        rows.append(
            {
                "model": model,
                "role": role,
                "modules": len(part),
                "params": int(part["params"].sum()),
                "kl_sum": float(part["kl"].sum()),
                "kl_share": 100 * float(part["kl"].sum()) / total if total > 0 else 0.0,
                "kl_median": float(part["kl"].median()),
                "kurtosis": float(part["activation_kurtosis"].median()),
                "variance": float(part["activation_variance"].median()),
                "outliers_6": float(part["activation_outliers_6"].mean()),
                "sdam": float(part["activation_sdam"].median()),
            }
        )
    return pd.DataFrame(rows)


def _spread(merged: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for model, part in merged.groupby("model", sort=False):
        row: Mapping[str, object] = {"model": model} | {
            name: tail_ratio(part[name].to_numpy(dtype=float))
            for name in ("kl", "weight_variance", "activation_variance")
        }
        rows.append(row)
    return pd.DataFrame(rows)


def tail_ratio(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """90th over 50th percentile of the positive values; NaN with fewer than three."""
    positive = values[np.isfinite(values) & (values > 0)]
    if len(positive) < 3:
        return float("nan")
    high, middle = np.quantile(positive, [0.9, 0.5])
    return float(high / middle)
