"""Names in a figure cover neither lines nor each other."""

from __future__ import annotations

from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from vitsense.report.labels import label_ends, place_labels, together_at

FALLING = [(0.15 + 0.05 * k, 60 / (1 + k) ** 2) for k in range(8)]


def drawn(marks: list[tuple[str, float, float]], scale: str):
    """The axes with their labels, the labels' boxes and the curve, both in pixels."""
    figure = Figure(figsize=(7.0, 3.1), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(*zip(*FALLING, strict=True))
    axes.set_yscale(scale)
    axes.set_ylim(-1, 100)
    place_labels(axes, marks, [FALLING])
    canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    line = axes.lines[0].get_path().interpolated(50).transformed(axes.transData)
    return axes, boxes, line.vertices


@pytest.mark.parametrize("scale", ["symlog", "linear"])
def test_no_name_lies_on_the_curve_or_on_another(scale: str) -> None:
    marks = [("recommended", 0.26, 6.0), ("4 bits", 0.26, 9.0), ("~5 bits", 0.31, 1.0)]
    marks += [("2 bits", 0.15, 80.0), ("8 bits", 0.5, 0.9)]
    axes, boxes, line = drawn(marks, scale)
    assert [text.get_text() for text in axes.texts] == [name for name, *_ in marks]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert not any(box.contains(x, y) for box in boxes for x, y in line)
    frame = axes.get_window_extent()
    assert all(box.y0 >= frame.y0 - 1 and box.x0 >= frame.x0 - 1 for box in boxes)


def test_a_name_stands_nearest_to_its_own_mark() -> None:
    """Three marks of one size, one over the other: names must not seem to change places."""
    marks = [("4 bits", 0.3, 67.0), ("solved", 0.3, 50.5), ("recommended", 0.3, 30.0)]
    axes, boxes, _ = drawn(marks, "symlog")
    places = [axes.transData.transform((x, y)) for _, x, y in marks]
    for k, box in enumerate(boxes):
        middle = (box.y0 + box.y1) / 2
        away = [abs(middle - y) for _, y in places]
        assert away.index(min(away)) == k


def test_many_names_at_one_place_are_all_written() -> None:
    axes, _, _ = drawn([(f"plan {k}", 0.3, 5.0) for k in range(20)], "symlog")
    assert len(axes.texts) == 20


def test_names_of_lines_that_end_together_move_apart() -> None:
    figure = Figure(figsize=(7.0, 3.1), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_ylim(0, 10)
    label_ends(axes, [(f"line {k}", 1.0, height, "k") for k, height in enumerate((5, 5.1, 9, 5))])
    canvas.draw()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines to them
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert boxes[2].y0 > max(box.y1 for k, box in enumerate(boxes) if k != 2)


def test_names_of_lines_stay_as_near_as_others_let_them() -> None:
    figure = Figure(figsize=(7.0, 3.1), layout="constrained")
    axes = figure.subplots()
    axes.set_ylim(0, 10)
    label_ends(axes, [(f"line {k}", 1.0, height, "k") for k, height in enumerate((5, 5, 5, 9))])
    away = [text.xyann[1] for text in axes.texts]
    assert away[:3] == pytest.approx([-10.0, 0.0, 10.0])  # around their ends, not above them
    assert away[3] == 0
    assert all(text.arrow_patch for text in axes.texts)  # those that moved are led back


def test_marks_at_one_place_have_one_label() -> None:
    axes = Figure(figsize=(7.0, 3.1), layout="constrained").subplots()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    labels = [("4 bits", 0.5, 0.5), ("3 bits", 0.4, 0.5), ("mixed", 0.501, 0.5)]
    assert together_at(axes, labels) == [("4 bits, mixed", 0.5, 0.5), ("3 bits", 0.4, 0.5)]
