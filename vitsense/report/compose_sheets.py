"""One module's tensors: moments, outlier channels, heads, and the grids over the distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vitsense.report.formatters import number, percent, short, signs, spelled, visible
from vitsense.report.remedy import shown, tried
from vitsense.report.sheet import (
    SPARK_HEIGHT,
    TALLEST,
    WIDTH,
    Cause,
    Ladder,
    Picture,
    Sheet,
    Tensor,
)
from vitsense.report.source import Source
from vitsense.schemas import SCHEMAS
from vitsense.verdict import worst_modules

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

MOST_DRAWN = 24
"""Modules of the whole report whose tensors are drawn: the most sensitive of each model."""

STANDS_OUT = 3.0
"""A channel stands out when it reaches so many times the median channel."""

_SPARK = 32
_ROOM = 32  # pixels between the middles of two labels that do not meet


def drawn_modules(source: Source, model: str) -> frozenset[str]:
    """The modules of a model that get pictures: all, or the most sensitive where there are many."""
    modules = source.table("modules")
    mine = list(modules.loc[modules["model"] == model, "module"])
    known = modules["model"].isin(source.keys)
    if int(known.sum()) <= MOST_DRAWN:
        return frozenset(mine)
    worst = worst_modules(_both(source, model), MOST_DRAWN // len(source.keys))
    return frozenset(mine[:0] if worst is None else worst[0])


def _both(source: Source, model: str) -> pd.DataFrame:
    frame = source.table("sensitivity", model)
    parts = list(dict.fromkeys(frame["part"]))
    part = "both" if "both" in parts else parts[0]
    return frame[frame["part"] == part].assign(part="both")


def sheets(source: Source, model: str, bits: Mapping[str, int]) -> dict[str, Sheet]:
    """The sheet of every module of a model.

    Args:
        source: The run.
        model: Its key.
        bits: Module -> width in the plan; empty if there is no plan.
    """
    drawn = drawn_modules(source, model)
    grids: dict[str, list[Mapping[str, Any]]] = {}
    for row in source.table("grids", model).sort_values("bits", ascending=False).to_dict("records"):
        grids.setdefault(str(row["site"]), []).append(row)
    causes = _causes(source, model)
    found: dict[str, list[Tensor]] = {}
    for row in source.table("statistics", model).to_dict("records"):
        name = str(row["module"])
        site = _Site(source, model, row, grids.get(row["site"], ()), bits.get(name, 0))
        found.setdefault(name, []).append(site.tensor(drawn=name in drawn))
    return {
        name: Sheet(tensors=tuple(found.get(name, ())), causes=causes.get(name, ()))
        for name in source.table("modules", model)["module"]
    }


def _causes(source: Source, model: str) -> dict[str, tuple[Cause, ...]]:
    if "causes" not in SCHEMAS:
        return {}
    found: dict[str, tuple[Cause, ...]] = {}
    for row in source.table("causes", model).to_dict("records"):
        name = str(row["module"])
        made = Cause(
            cause=visible(str(row["cause"])),
            evidence=visible(spelled(signs(str(row["detail"])))),
            remedy=visible(tried(row)),
            shown=shown(row),
        )
        found[name] = (*found.get(name, ()), made)
    return found


@dataclass(frozen=True, slots=True)
class _Site:
    """One row of ``statistics.csv`` with the arrays and grids that belong to it."""

    source: Source
    model: str
    row: Mapping[str, Any]
    grids: Sequence[Mapping[str, Any]]
    bits: int

    def _channels(self, field: str) -> NDArray[np.float64] | None:
        return self.source.channels(f"{self.model}|{self.row['site']}|{field}")

    @property
    def role(self) -> str:
        return str(self.row["site"]).rpartition(":")[2].replace("_", " ")

    def tensor(self, *, drawn: bool) -> Tensor:
        row = self.row
        reach = self._reach()
        numbers = (
            f"variance {short(row['variance'])}, excess kurtosis {short(row['kurtosis'])}, "
            f"{percent(row['outliers_6'])} beyond 6σ, from {short(row['minimum'])} to "
            f"{short(row['maximum'])}"
        )
        return Tensor(
            role=self.role,
            numbers=numbers,
            grid=self._grid_words(),
            channels="" if reach is None else _channel_words(reach),
            heads=_head_words(self._channels("head_variance")),
            kurtosis=float(row["kurtosis"]),
            picture=self._picture(reach) if drawn else None,
        )

    def _reach(self) -> NDArray[np.float64] | None:
        """Largest magnitude of each channel."""
        low, high = self._channels("minimum"), self._channels("maximum")
        if low is None or high is None or len(low) < 2:
            return None
        reach: NDArray[np.float64] = np.maximum(np.abs(low), np.abs(high)).astype(np.float64)
        return reach

    def _grid_words(self) -> str:
        grid = next((g for g in self.grids if int(g["bits"]) == self.bits), None)
        if grid is None:
            return ""
        per = ""
        if grid["scales"] > 1:
            per = f" ({short(grid['scale_min'])} to {short(grid['scale_max'])} over channels)"
        return (
            f"at {self.bits} bits a step is {short(grid['scale'])}{per}, "
            f"{percent(grid['clipped'])} are clipped"
        )

    def _picture(self, reach: NDArray[np.float64] | None) -> Picture | None:
        key = f"{self.model}|{self.row['site']}"
        edges = self.source.histograms(f"{key}|edges")
        counts = self.source.histograms(f"{key}|counts")
        if edges is None or counts is None:
            return None
        low, high = float(edges[0]), float(edges[-1])
        ends = [low, high, *(g[k] for g in self.grids for k in ("low", "high"))]
        left, right = min(ends), max(ends)
        scale = WIDTH / ((right - left) or 1.0)
        logs = np.log10(1 + np.asarray(counts, dtype=float))
        heights = np.rint(TALLEST * logs / max(float(logs.max()), 1e-9)).astype(int)
        return Picture(
            left=_three(left),
            right=_three(right),
            start=round((low - left) * scale, 1),
            bin=round((high - low) * scale / len(heights), 3),
            heights=tuple(int(h) for h in heights),
            most=int(np.asarray(counts).max()),
            ticks=tuple(self._ticks(left, scale)),
            ladders=tuple(
                Ladder(
                    bits=int(g["bits"]),
                    start=round((g["low"] - left) * scale, 1),
                    step=round(g["scale"] * scale, 2),
                    steps=round((g["high"] - g["low"]) / g["scale"]),
                    low=_three(g["low"]),
                    high=_three(g["high"]),
                )
                for g in self.grids
            ),
            channels=() if reach is None else _spark(reach),
            top=0.0 if reach is None else _three(float(reach.max())),
            wide=0 if reach is None else len(reach),
            summary=self._summary(low, high),
        )

    def _ticks(self, left: float, scale: float) -> list[tuple[float, str]]:
        """The mean has no label where it would run into its neighbours'."""
        mean, deviation = float(self.row["mean"]), math.sqrt(float(self.row["variance"]))
        roomy = 6 * deviation * scale >= _ROOM
        names = ((-6, "\u22126σ"), (0, "mean" if roomy else ""), (6, "6σ"))
        places = [((mean + s * deviation - left) * scale, label) for s, label in names]
        return [(round(x, 1), label) for x, label in places if 0 <= x <= WIDTH]

    def _summary(self, low: float, high: float) -> str:
        deviation = math.sqrt(float(self.row["variance"])) or 1.0
        ends = ((edge - float(self.row["mean"])) / deviation for edge in (low, high))
        return "Histogram of {}, {} to {} σ".format(self.role, *(number(e) for e in ends))


def _three(value: float) -> float:
    """To three digits: more is neither seen nor said."""
    return float(f"{value:.3g}")


def _spark(reach: NDArray[np.float64]) -> tuple[int, ...]:
    parts = np.array_split(reach, min(_SPARK, len(reach)))
    tops = np.array([part.max() for part in parts])
    top = float(tops.max()) or 1.0
    return tuple(int(v) for v in np.rint(SPARK_HEIGHT * tops / top))


def _channel_words(reach: NDArray[np.float64]) -> str:
    middle = float(np.median(reach))
    ratios = reach / middle if middle > 0 else reach
    if middle <= 0 or number(float(ratios.max())) == "1.0":
        return ""
    worst = int(ratios.argmax())
    beyond = int((ratios >= STANDS_OUT).sum())
    words = (
        f"channel {worst} of {len(reach)} reaches {number(float(ratios[worst]))} times the median"
    )
    if beyond:
        verb = "reaches" if beyond == 1 else "reach"
        words += f"; {beyond} {verb} {STANDS_OUT:g} times or more"
    return words


def _head_words(variance: NDArray[np.float64] | None) -> str:
    if variance is None or len(variance) < 2 or float(variance.min()) <= 0:
        return ""
    worst, least = int(variance.argmax()), int(variance.argmin())
    ratio = float(variance[worst] / variance[least])
    return (
        f"variance by head from {short(float(variance[least]))} (head {least}) to "
        f"{short(float(variance[worst]))} (head {worst}), {number(ratio)} times"
    )
