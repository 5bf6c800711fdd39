"""Charts of chapters: from data to a picture, in the report's one style."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitsense.report.drawing import (
    COLOURS,
    INK,
    MARKERS,
    Picture,
    drawn,
    legend,
    no_ticks,
    plain_ticks,
    whole_ticks,
)
from vitsense.report.formatters import number
from vitsense.report.labels import label_ends, place_labels
from vitsense.report.section import Chart, Series, Shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR = 0.2  # inches of height of one bar
_LONGEST = 48  # characters of a bar's label
_APART = 0.24  # rows between the marks of one row
_TICKS = (-30, -10, -3, -1, 0, 0.5, 1, 3, 10, 30, 100)  # of an axis that is linear below 1


def chart_picture(chart: Chart, models: Sequence[str]) -> Picture:
    """Draw a chart; series with a model's number take its colour and marker."""
    bars = chart.shape in {Shape.BARS, Shape.DOTS}
    count = sum(len(series.y) for series in chart.series)
    if chart.shape is Shape.DOTS:
        count = _rows(chart)
    height = max(1.6, _BAR * count + 0.9) if bars else 3.1

    def draw(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        if chart.shape is Shape.DOTS:
            _dots(ax, chart)
        elif bars:
            _bars(ax, chart)
        else:
            _points(ax, chart)
        ax.set_xlabel(chart.x_label)
        ax.set_ylabel(chart.y_label)
        named = sorted({s.colour for s in chart.series if s.colour >= 0})
        if len(named) > 1 and not bars:
            legend(ax, [models[i] if i < len(models) else str(i) for i in range(named[-1] + 1)])

    return Picture(chart.name, drawn(7.0, height, 1, draw), chart.title, chart.alt, chart.reading)


def _colour(series: Series) -> str:
    return INK if series.colour < 0 else COLOURS[series.colour % len(COLOURS)]


def _points(ax: Axes, chart: Chart) -> None:
    for series in chart.series:
        colour = _colour(series)
        marker: Any = MARKERS[max(series.colour, 0) % len(MARKERS)]
        line = chart.shape is Shape.LINE
        if series.low and line:
            ax.fill_between(
                series.x, series.low, series.high, color=colour, alpha=0.15, linewidth=0
            )
        elif series.low:
            ax.vlines(series.x, series.low, series.high, color=colour, alpha=0.5, linewidth=0.9)
        ax.plot(
            series.x,
            series.y,
            color=colour,
            linewidth=1.6 if line else 0,
            marker=marker if not line or len(series.x) < 40 else None,
            markersize=4,
            alpha=1.0 if line else 0.75,
            markeredgewidth=0,
        )
    if chart.log_x:
        ax.set_xscale("log")
        plain_ticks(ax.xaxis, log=True)
    elif chart.shape is Shape.LINE and all(x.is_integer() for s in chart.series for x in s.x):
        ax.xaxis.set_major_locator(whole_ticks())
    if chart.log_y:
        ax.set_yscale("log")
        plain_ticks(ax.yaxis, log=True)
    if chart.diagonal:
        low = max(ax.get_xlim()[0], ax.get_ylim()[0])
        high = min(ax.get_xlim()[1], ax.get_ylim()[1])
        ax.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)
    named = [
        (label, x, y)
        for series in chart.series
        for x, y, label in zip(series.x, series.y, series.labels, strict=False)
        if label
    ]
    if named:
        points = [[(x, y)] * 2 for s in chart.series for x, y in zip(s.x, s.y, strict=True)]
        place_labels(ax, named, points)
    if chart.shape is Shape.LINE:
        ends = [(s.name, s.x[-1], s.y[-1], _colour(s)) for s in chart.series if s.x]
        label_ends(ax, ends)


def _bars(ax: Axes, chart: Chart) -> None:
    """Horizontal, first on top, with the interval as a whisker and the label beside."""
    place = 0
    labels = []
    for series in chart.series:
        for i, value in enumerate(series.y):
            ax.barh(place, value, height=0.7, color=_colour(series), alpha=0.85)
            if series.low:
                ax.hlines(place, series.low[i], series.high[i], color=INK, linewidth=1)
            label = series.labels[i] if series.labels else series.name
            labels.append(label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…")
            place += 1
    ax.set_yticks(range(place), labels, fontsize=8)
    ax.set_ylim(place - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    if chart.log_x:
        ax.set_xscale("log")
        plain_ticks(ax.xaxis, log=True)


def _rows(chart: Chart) -> int:
    """How many rows a chart of dots has."""
    return len({place for series in chart.series for place in series.x})


def _dots(ax: Axes, chart: Chart) -> None:
    """Rows from top to bottom; the marks of one row stand a little above each other."""
    rows: dict[float, str] = {}
    marks = Counter(x for series in chart.series for x in series.x)
    for k, series in enumerate(chart.series):
        off = _APART * (k - (len(chart.series) - 1) / 2)
        places = [x + off * (marks[x] > 1) for x in series.x]
        colour = _colour(series)
        if series.low:
            ax.hlines(places, series.low, series.high, color=colour, alpha=0.6, linewidth=1.1)
        ax.plot(
            series.y,
            places,
            linestyle="none",
            marker=MARKERS[k % len(MARKERS)],
            markersize=5,
            color=colour,
            markerfacecolor="none" if k == 0 and len(chart.series) > 2 else colour,
            clip_on=False,
            label=series.name,
        )
        rows |= dict(zip(series.x, series.labels, strict=True))
    labels = [rows[x] for x in sorted(rows)]
    ax.set_yticks(
        sorted(rows),
        [t if len(t) <= _LONGEST else f"{t[: _LONGEST - 1]}…" for t in labels],
        fontsize=8,
    )
    ax.set_ylim(max(rows) + 0.6, min(rows) - 0.6)
    if chart.log_x:
        ax.set_xscale("symlog", linthresh=1.0)
        low, high = ax.get_xlim()
        ticks = [t for t in _TICKS if low <= t <= high]
        ax.set_xticks(ticks, [number(t, 1 if t == 0.5 else 0) for t in ticks])
        ax.xaxis.set_minor_locator(no_ticks())
    if len(chart.series) > 1 and len(rows) > len(chart.series):
        ax.figure.legend(
            *ax.get_legend_handles_labels(),
            frameon=False,
            fontsize=8.5,
            loc="outside upper left",
            ncols=len(chart.series),
        )
