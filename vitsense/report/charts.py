"""Charts of chapters: from data to a picture, in the report's one style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitsense.report.drawing import COLOURS, INK, MARKERS, Picture, drawn, legend, plain_ticks
from vitsense.report.labels import label_ends, place_labels
from vitsense.report.section import Chart, Series, Shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR = 0.2  # inches of height of one bar
_LONGEST = 48  # characters of a bar's label


def chart_picture(chart: Chart, models: Sequence[str]) -> Picture:
    """Draw a chart; series with a model's number take its colour and marker."""
    bars = chart.shape is Shape.BARS
    count = sum(len(series.y) for series in chart.series)
    height = max(1.6, _BAR * count + 0.9) if bars else 3.1

    def draw(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        if bars:
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
