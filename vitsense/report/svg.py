"""Small pictures written by hand, where a plotting library would cost a hundred times the bytes."""

from __future__ import annotations

from collections.abc import Sequence

from vitsense.report.sheet import HEIGHT, RUNG, WIDTH, Ladder, Picture

_TICK = 1.4  # pixels of a mark on a grid


def bars_path(heights: Sequence[int], floor: int) -> str:
    """Outline of bars one unit wide and of whole heights; equal neighbours are one line."""
    parts = [f"M0 {floor}"]
    before, run = 0, 0
    for height in (*heights, None):
        if height is not None and height == before:
            run += 1
            continue
        if run:
            parts.append(f"h{run}")
        if height is not None:
            parts.append(f"v{before - height}")
            before, run = height, 1
    parts.append(f"V{floor}Z")
    return "".join(parts)


def histogram_path(picture: Picture) -> tuple[str, str]:
    """Outline of the bins of a histogram as an SVG path, and the transform that places it."""
    start, width = f"{picture.start:g}", f"{picture.bin:.4g}"
    return bars_path(picture.heights, HEIGHT), f"matrix({width} 0 0 1 {start} 0)"


def height_of(picture: Picture) -> int:
    """Pixels from the top of the histogram to below its last grid."""
    return HEIGHT + RUNG * len(picture.ladders) + 4


def ladder_line(ladder: Ladder, place: int) -> tuple[str, str]:
    """`grid_line` of a ladder in its place below the histogram."""
    return grid_line(ladder.start, ladder.step, ladder.steps, HEIGHT + RUNG * place + 5)


def grid_line(start: float, step: float, steps: int, y: int) -> tuple[str, str]:
    """Path and dashes of a grid: a mark at every number it holds, solid where marks would meet."""
    half = _TICK / 2
    path = f"M{start - half:.4g} {y}H{start + steps * step + half:.4g}"
    gap = step - _TICK
    return path, f"{_TICK} {gap:.4g}" if gap > 0.4 else ""


_EDGE = 14
"""Pixels beside a drawing for the widths of its grids."""

_FOOT = 12
"""Pixels below it for the names of its dashed lines."""

_APART = 26  # pixels between the middles of two names


def small_svg(picture: Picture, colour: str, bits: int, wide: float = 1.0) -> str:
    """A histogram with its grids as an SVG file; the grid of ``bits`` is in ``colour``.

    Args:
        picture: What is drawn.
        colour: Of the model.
        bits: Of the plan.
        wide: How much wider than `WIDTH` it is drawn; letters keep their shape.
    """
    bottom = height_of(picture)
    right = WIDTH * wide
    lines = "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEIGHT}" stroke="#57606a" '
        'stroke-dasharray="2 3"/>'
        for x, _ in picture.ticks
    )
    grids = names = ""
    for place, ladder in enumerate(picture.ladders):
        path, dashes = ladder_line(ladder, place)
        shade = colour if ladder.bits == bits else "#8b949e"
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        grids += f'<path d="{path}" stroke="{shade}" stroke-width="5" fill="none"{dashed}/>'
        names += f'<text x="{right + 3:.1f}" y="{HEIGHT + RUNG * place + 8}">{ladder.bits}</text>'
    last = -float("inf")
    for x, label in sorted(picture.ticks):
        if x * wide - last >= _APART:
            last = x * wide
            at = min(max(last, _EDGE), right - 4)
            names += f'<text x="{at:.1f}" y="{bottom + 8}" text-anchor="middle">{label}</text>'
    path, at_bins = histogram_path(picture)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + _EDGE:.1f} '
        f'{bottom + _FOOT}"><g transform="scale({wide:g} 1)">'
        f'<path d="{path}" transform="{at_bins}" fill="{colour}"/>{lines}{grids}</g>'
        f'<g font-family="DejaVu Sans" font-size="8" fill="#57606a">{names}</g></svg>'
    )
