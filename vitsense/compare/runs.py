"""Two runs of one model: what changed in accuracy, in modules and formats, and in whole plans."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vitsense.compare.change import FALSE_SHARE, Change, adjusted, difference, ratio
from vitsense.compare.groups import shown_part
from vitsense.schemas import RATED
from vitsense.sensitivity.interval import Interval
from vitsense.sensitivity.predictors import LEAST_MODULES, rank_correlation

if TYPE_CHECKING:
    from collections.abc import Iterator

Tables = Mapping[str, pd.DataFrame]
"""One model's rows of the tables of a run, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankChange:
    """How much the order of modules is kept in one format."""

    format: str
    modules: int
    correlation: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunChanges:
    """What changed from the first run of a model to the second."""

    cells: pd.DataFrame
    """One row per module and format that has a divergence in both runs; columns `CELLS`."""
    skipped: Mapping[str, int]
    """Why cells were not compared, and how many."""
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    """Modules that one run alone measured."""
    ranks: tuple[RankChange, ...]
    plans: pd.DataFrame
    """One row per whole plan that both runs measured; columns `PLANS`."""
    accuracy: Change | None
    """Of full precision, percentage points; None without labels."""

    @property
    def certain(self) -> pd.DataFrame:
        """The cells whose divergence changed distinguishably."""
        return self.cells[self.cells["certain"]]

    @property
    def excluding(self) -> int:
        """Cells whose own interval excludes no change, without regard to how many there are."""
        return int((self.cells["p"] <= FALSE_SHARE).sum())


_SIDES = ("first", "second")
_VALUES = ("kl", "kl_low", "kl_high", "drop", "drop_low", "drop_high")

CELLS = (
    "module", "role", "index", "bits", "format",
    *(f"{value}_{side}" for side in _SIDES for value in _VALUES),
    "ratio", "ratio_low", "ratio_high", "p", "p_adjusted", "certain",
    "drop_change", "drop_change_low", "drop_change_high", "drop_p", "drop_p_adjusted",
    "drop_certain",
)  # fmt: skip
"""Columns of `RunChanges.cells` and of ``changes.csv``: ratios are of divergences, second by first;
changes of the drop in percentage points, second minus first."""

PLANS = ("plan", "first", "second", "change", "ratio", "bits_first", "bits_second")
"""Columns of `RunChanges.plans`: losses as `Interval`, their `Change`, that of the divergence."""


def compare_runs(
    first: Tables,
    second: Tables,
    accuracy: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None] = (None, None),
) -> RunChanges | None:
    """Match the cells of two runs of a model; None if they have none in common.

    The runs are taken as independent: results are kept as sums over images, not image by image.
    On the same images they go up and down together, and the intervals are too wide.

    Args:
        first: ``modules``, ``sensitivity`` and ``joint`` of the model in the first run.
        second: The same of the second run.
        accuracy: ``fp`` of the model's entry in each run.
    """
    cells, skipped = _cells(first, second)
    if cells.empty:
        return None
    names = [set(tables["modules"]["module"]) for tables in (first, second)]
    return RunChanges(
        cells=cells,
        skipped=skipped,
        only_first=tuple(m for m in first["modules"]["module"] if m not in names[1]),
        only_second=tuple(m for m in second["modules"]["module"] if m not in names[0]),
        ranks=tuple(_ranks(cells)),
        plans=_plans(first["joint"], second["joint"]),
        accuracy=_accuracy(*accuracy),
    )


def _cells(first: Tables, second: Tables) -> tuple[pd.DataFrame, Counter[str]]:
    keys = ["module", "format", "bits"]
    sides = [
        shown_part(tables["sensitivity"])[[*keys, "status", *_VALUES]].rename(
            columns={c: f"{c}_{side}" for c in ("status", *_VALUES)}
        )
        for tables, side in zip((first, second), _SIDES, strict=True)
    ]
    merged = sides[0].merge(sides[1], on=keys)
    places = second["modules"][["module", "role", "index"]]
    merged = merged.merge(places, on="module")
    skipped: Counter[str] = Counter()
    rows = []
    for row in merged.to_dict("records"):
        reason = _not_compared(row)
        if reason:
            skipped[reason] += 1
        else:
            rows.append({**row, **_changes(row)})
    found = pd.DataFrame(rows, columns=[*merged.columns, *_CHANGED])
    _adjust(found, "p", "certain")
    _adjust(found, "drop_p", "drop_certain")
    return found.sort_values(["index", "bits"], kind="stable")[list(CELLS)], skipped


_CHANGED = (
    "ratio", "ratio_low", "ratio_high", "p", "drop_change", "drop_change_low",
    "drop_change_high", "drop_p",
)  # fmt: skip


def _not_compared(row: Mapping[str, Any]) -> str:
    """Why a cell has no comparable divergence in both runs; empty if it has."""
    states = {str(row[f"status_{side}"]) for side in _SIDES}
    if not states <= set(RATED):
        return "bounded or not measured in one of the runs"
    if len(states) > 1:
        return "measured in one run, estimated in the other"
    values = [float(row[f"kl_{side}"]) for side in _SIDES]
    if min(values) <= 0 or not all(map(math.isfinite, values)):
        return "no divergence at all in one of the runs"
    return ""


def _interval(row: Mapping[str, Any], name: str, side: str) -> Interval:
    return Interval(*(float(row[f"{name}{end}_{side}"]) for end in ("", "_low", "_high")))


def _changes(row: Mapping[str, Any]) -> dict[str, Any]:
    found = ratio(*(_interval(row, "kl", side) for side in _SIDES))
    values: dict[str, Any] = dict(
        zip(_CHANGED[:4], (found.value, found.low, found.high, found.p), strict=True)
    )
    drops = [_interval(row, "drop", side) for side in _SIDES]
    if all(math.isfinite(drop.value) for drop in drops):
        drop = difference(*drops)
        values |= dict(zip(_CHANGED[4:], (drop.value, drop.low, drop.high, drop.p), strict=True))
    return values


def _adjust(cells: pd.DataFrame, level: str, certain: str) -> None:
    known = cells[level].notna()
    cells[f"{level}_adjusted"] = np.nan
    cells.loc[known, f"{level}_adjusted"] = adjusted(list(cells.loc[known, level].astype(float)))
    cells[certain] = cells[f"{level}_adjusted"] <= FALSE_SHARE


def _ranks(cells: pd.DataFrame) -> Iterator[RankChange]:
    for name, part in cells.sort_values("bits", ascending=False, kind="stable").groupby(
        "format", sort=False
    ):
        values = part[["kl_first", "kl_second"]]
        if len(part) < LEAST_MODULES or (values.nunique() < 2).any():
            continue
        r, low, high, _ = rank_correlation(list(part["kl_first"]), list(part["kl_second"]))
        yield RankChange(format=str(name), modules=len(part), correlation=r, low=low, high=high)


def _plans(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    rows = []
    others = {row["plan"]: row for row in second.to_dict("records")}
    for row in first.to_dict("records"):
        other = others.get(row["plan"])
        if other is None or str(row["plan"]).startswith("random-"):
            continue
        losses = [_loss(side, labelled=_labelled(row, other)) for side in (row, other)]
        kls = [_of(side, "kl") for side in (row, other)]
        rows.append(
            {
                "plan": row["plan"],
                "first": losses[0],
                "second": losses[1],
                "change": difference(*losses),
                "ratio": ratio(*kls) if min(kl.value for kl in kls) > 0 else None,
                "bits_first": float(row["avg_bits"]),
                "bits_second": float(other["avg_bits"]),
            }
        )
    return pd.DataFrame(rows, columns=list(PLANS))


def _of(row: Mapping[str, Any], name: str) -> Interval:
    return Interval(*(float(row[f"{name}{end}"]) for end in ("", "_low", "_high")))


def _labelled(*rows: Mapping[str, Any]) -> bool:
    return all(math.isfinite(float(row["drop"])) for row in rows)


def _loss(row: Mapping[str, Any], *, labelled: bool) -> Interval:
    """The drop, or 100 minus agreement where one of the runs has no labels; points."""
    if labelled:
        return _of(row, "drop")
    return Interval(*(100 - float(row[f"agreement{end}"]) for end in ("", "_high", "_low")))


def _accuracy(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> Change | None:
    if not first or not second:
        return None
    return difference(_of(first, "top1"), _of(second, "top1"))
