"""Small pictures written by hand, where a plotting library would cost a hundred times the bytes."""

from __future__ import annotations

from vitsense.report.document import Distribution

WIDTH, HEIGHT = 220, 70
"""Size of a small histogram in pixels."""

ROOM = 32
"""Pixels between the middles of two labels that do not meet."""


def histogram_path(picture: Distribution) -> str:
    """Outline of the 64 bars of a histogram as an SVG path, `WIDTH` x `HEIGHT`."""
    step = WIDTH / len(picture.heights)
    parts = [f"M0 {HEIGHT}"]
    for height in picture.heights:
        parts.append(f"V{HEIGHT - height * (HEIGHT - 4):.0f}h{step:.4g}")
    parts.append(f"V{HEIGHT}Z")
    return "".join(parts)


def sigma_ticks(picture: Distribution) -> list[tuple[float, str]]:
    """Positions (pixels) and labels of the mean and of plus and minus 6 standard deviations.

    The mean has no label where it would run into its neighbours'.
    """
    low, high = picture.edges
    if high <= low:
        return []
    roomy = 6 / (high - low) * WIDTH >= ROOM
    names = ((-6, "\u22126\u03c3"), (0, "mean" if roomy else ""), (6, "6\u03c3"))
    return [((s - low) / (high - low) * WIDTH, label) for s, label in names if low <= s <= high]


def small_svg(picture: Distribution, colour: str) -> str:
    """A histogram as an SVG file, with lines where `sigma_ticks` has labels."""
    lines = "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEIGHT}" stroke="#57606a" '
        'stroke-dasharray="2 3"/>'
        for x, _ in sigma_ticks(picture)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 2}">'
        f'<path d="{histogram_path(picture)}" fill="{colour}"/>{lines}</svg>'
    )
