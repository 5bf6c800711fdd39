"""Small pictures written by hand, where a plotting library would cost a hundred times the bytes."""

from __future__ import annotations

from vitsense.report.document import Distribution

WIDTH, HEIGHT = 220, 70
"""Size of a small histogram in pixels."""


def histogram_path(picture: Distribution) -> str:
    """Outline of the 64 bars of a histogram as an SVG path, `WIDTH` x `HEIGHT`."""
    step = WIDTH / len(picture.heights)
    parts = [f"M0 {HEIGHT}"]
    for height in picture.heights:
        parts.append(f"V{HEIGHT - height * (HEIGHT - 4):.0f}h{step:.4g}")
    parts.append(f"V{HEIGHT}Z")
    return "".join(parts)


def sigma_ticks(picture: Distribution) -> list[tuple[float, str]]:
    """Positions (pixels) and labels of the mean and of plus and minus 6 standard deviations."""
    low, high = picture.edges
    found = []
    for sigma, label in ((-6, "\u22126\u03c3"), (0, "mean"), (6, "6\u03c3")):
        if low <= sigma <= high and high > low:
            found.append(((sigma - low) / (high - low) * WIDTH, label))
    return found
