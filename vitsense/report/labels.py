"""Names beside points of a figure, where they cover neither lines nor each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LETTER, _LINE = 0.62, 1.25  # width and height of a letter, of its size
_GAP = 6.0  # points between a mark and its name
_SAME = 4.0  # points between two marks that are one to the eye
_STEP = 2.0  # points between two looks along a line
_NEAR = 6.0  # points that the name of a line may stand above or below its end
_STRAY = 60.0  # cost of a name that is nearer to another mark, in covered spots

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points."""


def place_labels(
    axes: Axes,
    labels: Sequence[tuple[str, float, float]],
    lines: Sequence[Sequence[tuple[float, float]]],
    *,
    size: float = 7.5,
) -> None:
    """Write every label beside its point, on the side where it covers least.

    No label is nearer to another point than to its own, if there is room.

    Args:
        axes: With their final limits and scales.
        labels: Text and place of each point, in the axes' values.
        lines: What is drawn and should stay visible, in the axes' values.
        size: Of the letters, points.
    """
    _settle(axes)
    drawn = [spot for line in lines for spot in _along([_points(axes, *p) for p in line])]
    marks = [_points(axes, x, y) for _, x, y in labels]
    taken: list[Box] = [(x - 3, y - 3, x + 3, y + 3) for x, y in marks]
    frame = axes.get_window_extent()
    points = 72.0 / axes.figure.dpi
    room = (frame.x0 * points, frame.y0 * points, frame.x1 * points + 25, frame.y1 * points + 4)
    for (text, x, y), mark in zip(labels, marks, strict=True):
        width, height = len(text) * size * _LETTER, size * _LINE
        boxes = list(_around(mark, width, height))
        costs = [
            _cost(box, drawn, taken, room) + _STRAY * (_nearest(box, marks) != mark)
            for box in boxes
        ]
        box = boxes[costs.index(min(costs))]
        taken.append(box)
        axes.annotate(
            text,
            (x, y),
            textcoords="offset points",
            xytext=(box[0] - mark[0], box[1] - mark[1]),
            ha="left",
            va="bottom",
            fontsize=size,
        )


def together_at(
    axes: Axes, labels: Sequence[tuple[str, float, float]]
) -> list[tuple[str, float, float]]:
    """The labels, with one for all marks at the same place: nobody could tell whose is whose.

    Args:
        axes: With their final limits and scales.
        labels: Text and place of each point, in the axes' values.
    """
    _settle(axes)
    found: list[tuple[str, float, float]] = []
    for text, x, y in labels:
        mark = _points(axes, x, y)
        for k, (other, there, up) in enumerate(found):
            if math.dist(mark, _points(axes, there, up)) < _SAME:
                found[k] = (f"{other}, {text}", there, up)
                break
        else:
            found.append((text, x, y))
    return found


def _settle(axes: Axes) -> None:
    """Lay the figure out, after which places in it are final."""
    figure = axes.get_figure(root=True)
    engine = None if figure is None else figure.get_layout_engine()
    if figure is not None and engine is not None:
        engine.execute(figure)


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Write the name of every line right of its end; names that would meet move apart.

    Args:
        axes: With their final limits and scales.
        ends: Name, place in the axes' values and colour of each line.
    """
    _settle(axes)
    size = 8.0
    heights = [_points(axes, x, y)[1] for _, x, y, _ in ends]
    order, places = _apart(heights, size * _LINE)
    moved = {k: place - heights[k] for k, place in zip(order, places, strict=True)}
    # names that had to go away from their lines are led back to them
    led = any(abs(away) > _NEAR for away in moved.values())
    for k, (name, x, y, colour) in enumerate(ends):
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            name,
            (x, y),
            xytext=(18 if led else 5, moved[k]),
            textcoords="offset points",
            fontsize=size,
            va="center",
            color=colour,
            arrowprops=line if led else None,
        )


def _apart(heights: Sequence[float], least: float) -> tuple[list[int], list[float]]:
    """Order from below, and the places nearest to ``heights`` that are ``least`` apart.

    Source: pool adjacent violators (Barlow et al. 1972), on heights less ``least`` for every rank.
    """
    order = sorted(range(len(heights)), key=lambda k: (heights[k], k))
    pools: list[tuple[float, int]] = []  # sum and number
    for rank, k in enumerate(order):
        total, number = heights[k] - least * rank, 1
        while pools and pools[-1][0] / pools[-1][1] > total / number:
            total, number = total + pools[-1][0], number + pools[-1][1]
            pools.pop()
        pools.append((total, number))
    levels = [total / number for total, number in pools for _ in range(number)]
    return order, [level + least * rank for rank, level in enumerate(levels)]


def _points(axes: Any, x: float, y: float) -> tuple[float, float]:
    across, up = axes.transData.transform((x, y))
    points = 72.0 / axes.figure.dpi
    return float(across) * points, float(up) * points


def _along(line: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Spots close to each other along a line."""
    for (x0, y0), (x1, y1) in zip(line, line[1:], strict=False):
        steps = max(1, int(max(abs(x1 - x0), abs(y1 - y0)) / _STEP))
        for k in range(steps + 1):
            yield x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps


def _around(mark: tuple[float, float], width: float, height: float) -> Iterator[Box]:
    """Places for a name, the most natural first."""
    x, y = mark
    yield x + _GAP, y - height / 2, x + _GAP + width, y + height / 2
    yield x - _GAP - width, y - height / 2, x - _GAP, y + height / 2
    for reach in (_GAP, 2.2 * _GAP, 4 * _GAP, 6 * _GAP):
        for left, bottom in (
            (x + _GAP, y + reach - 2),
            (x - _GAP - width, y - reach - height + 2),
            (x - _GAP - width, y + reach - 2),
            (x + _GAP, y - reach - height + 2),
            (x - width / 2, y + reach),
            (x - width / 2, y - reach - height),
        ):
            yield left, bottom, left + width, bottom + height


def _nearest(box: Box, marks: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mark that a name seems to belong to: the one its box is nearest to."""
    left, bottom, right, top = box

    def distance(mark: tuple[float, float]) -> float:
        x, y = mark
        across = max(left - x, 0.0, x - right)
        up = max(bottom - y, 0.0, y - top)
        # of two as near, the one at the height of the name
        return across * across + up * up + 0.01 * abs((bottom + top) / 2 - y)

    return min(marks, key=distance)


def _cost(box: Box, drawn: Sequence[tuple[float, float]], taken: Sequence[Box], room: Box) -> float:
    left, bottom, right, top = box
    covered = sum(left <= x <= right and bottom <= y <= top for x, y in drawn)
    over = sum(
        left < other[2] and other[0] < right and bottom < other[3] and other[1] < top
        for other in taken
    )
    out = left < room[0] or bottom < room[1] or right > room[2] or top > room[3]
    return covered + 100.0 * over + 100.0 * out
