"""What predicts sensitivity: rank correlation of cheap statistics with what was measured. No torch.

It is the paper's claim (outliers and variation explain which modules break) put to the test.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vitsense.schemas import STATISTIC_WORDS, TENSOR_STATISTICS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd

LEAST_MODULES = 5
"""Fewer modules have no rank correlation worth an interval."""

ALL = "all"
"""Scope of every module; others are roles."""

TARGETS = ("kl", "drop")
"""Measured columns that are to be predicted: nats, and percentage points."""


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float, float]:
    """Spearman's correlation with its 95 % interval, and Kendall's tau-b.

    Source: interval by Fisher's z with the standard error of Bonett and Wright 2000, "Sample size
    requirements for estimating Pearson, Kendall and Spearman correlations":
    √((1 + r²/2) / (n - 3)). Deviation: an order without any exchange, of which few modules are
    capable by chance, counts as half an exchange of neighbours; z would be infinite, and the
    interval a point. The interval is widened to contain r. Simulated coverage is in the tests.

    Args:
        x: One value of the statistic for each module.
        y: What was measured of it.
    """
    from scipy.stats import kendalltau, spearmanr

    r = float(spearmanr(x, y).statistic)
    tau = float(kendalltau(x, y).statistic)
    n = len(x)
    most = 1 - 6 / (n * (n * n - 1))
    z = math.atanh(min(max(r, -most), most))
    half = 1.959963984540054 * math.sqrt((1 + r * r / 2) / (n - 3))
    return r, min(math.tanh(z - half), r), max(math.tanh(z + half), r), tau


def predictor_rows(
    modules: pd.DataFrame,
    statistics: pd.DataFrame,
    sensitivity: pd.DataFrame,
    scores: Mapping[tuple[str, str], Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Rows of ``predictors.csv`` of one model, without the model.

    Args:
        modules: ``modules.csv`` of the model.
        statistics: ``statistics.csv`` of the model.
        sensitivity: ``sensitivity.csv`` of the model; measured rows count.
        scores: (module, format) -> what depends on the format: ``fisher_kl``, ``weight_sqnr_db``,
            ``activation_sqnr_db``.
    """
    import pandas as pd

    good = sensitivity[sensitivity["status"] == "measured"]
    parts = list(dict.fromkeys(good["part"]))
    if not parts:
        return []
    good = good[good["part"] == ("both" if "both" in parts else parts[0])]
    table = good.merge(modules[["module", "role"]], on="module")
    table = table.merge(site_statistics(statistics), on="module", how="left")
    extra = pd.DataFrame(
        [{"module": m, "format": f, **values} for (m, f), values in scores.items()]
    )
    if len(extra):
        table = table.merge(extra, on=["module", "format"], how="left")
    rows = []
    for name, cells in table.groupby("format", sort=False):
        for scope, part in _scopes(cells):
            head = {"scope": scope, "bits": int(part["bits"].iloc[0]), "format": name}
            rows += [{**head, **row} for row in _correlations(part)]
    return rows


def _scopes(cells: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    yield ALL, cells
    for role, part in cells.groupby("role", sort=False):
        yield str(role), part


def _correlations(cells: pd.DataFrame) -> Iterator[dict[str, Any]]:
    names = [*(name for name in STATISTIC_WORDS if name in cells.columns), *TARGETS]
    values = {name: cells[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in names}
    finite = {name: np.isfinite(column) for name, column in values.items()}
    for statistic in names[: -len(TARGETS)]:
        for target in TARGETS:
            seen = finite[statistic] & finite[target]
            x, y = values[statistic][seen], values[target][seen]
            # without spread on either side there is no order to compare
            if len(x) < LEAST_MODULES or np.ptp(x) == 0 or np.ptp(y) == 0:
                continue
            r, low, high, tau = rank_correlation(x, y)
            yield {
                "statistic": statistic,
                "target": target,
                "n": len(x),
                "spearman": r,
                "low": low,
                "high": high,
                "kendall": tau,
            }


def site_statistics(statistics: pd.DataFrame) -> pd.DataFrame:
    """Per module: statistics of its weight, and of its activation with the heaviest tail."""
    is_weight = statistics["site"].str.endswith(":weight")
    columns = ["module", *TENSOR_STATISTICS]
    heavy = statistics[~is_weight].sort_values("kurtosis", ascending=False, kind="stable")
    activations = heavy.drop_duplicates("module")[columns]
    weights = statistics[is_weight][columns]
    return activations.rename(columns={c: f"activation_{c}" for c in TENSOR_STATISTICS}).merge(
        weights.rename(columns={c: f"weight_{c}" for c in TENSOR_STATISTICS}),
        on="module",
        how="outer",
    )
