"""The one door to matplotlib: style, colours, and figures as small SVG text."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#8F5BD6", "#2E8B57")
"""One hue per model, in order; the first two keep 3:1 contrast on white and on dark."""

MARKERS = ("o", "s", "^", "D")
"""A second cue beside the hue."""

_LONGEST = 48  # characters of a name in a legend
_NARROW = 14  # characters of one of its lines in a narrow panel

INK = "#1b1f24"
"""Text and axes; becomes ``currentColor`` in HTML."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG with its words."""

    name: str
    svg: str
    title: str
    """States the finding."""
    alt: str
    """The picture in words."""
    reading: str
    """How to read it."""


@contextmanager
def _style() -> Iterator[None]:
    """Our style for the length of a figure; matplotlib's settings are given back."""
    import matplotlib as mpl

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "vitsense",
        "text.parse_math": False,  # a name with dollar signs is a name
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.axisbelow": True,
        "lines.solid_capstyle": "round",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.18,
        "grid.color": INK,
        "grid.linewidth": 0.6,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }
    with mpl.rc_context(settings):
        yield


def drawn(
    width: float,
    height: float,
    panels: int,
    draw: Callable[[Sequence[Axes]], None],
    rows: int = 1,
) -> str:
    """SVG of a figure of ``panels`` axes side by side, in equal rows (inches)."""
    from matplotlib.figure import Figure as NewFigure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    class Once(ConstrainedLayoutEngine):
        """Saving draws twice, and would arrange twice what the first time has arranged."""

        arranged = False

        def execute(self, fig: Figure) -> None:
            if not self.arranged:
                self.arranged = True
                super().execute(fig)

    with _style(), warnings.catch_warnings():
        # a reader's fonts may have what ours lacks: the text stays text
        warnings.filterwarnings("ignore", r"Glyph \d+|Matplotlib currently does not support")
        figure: Figure = NewFigure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, panels // rows, squeeze=False).flat
        draw(list(axes))
        figure.set_layout_engine(Once())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # tenths of a point are enough for coordinates; text between tags is left alone
    return re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d)\d+", r"\1", tag[0]), text)


def plain_ticks(axis: Any, *, log: bool) -> None:
    """Readable numbers, and no crowd of minor labels on short log axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if not log:
        return
    low, high = axis.get_view_interval()
    axis.set_minor_locator(NullLocator())
    span = high / max(low, 1e-30)
    short_axis = span < 50
    # within less than a decade 1, 2 and 5 may be a single tick
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if span < 8 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs) if short_axis else LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if short_axis else _power(v)))


def _power(value: float) -> str:
    """``10⁻²``; written out because mathematics in names, and so in all text, is off."""
    exponent = str(round(math.log10(value))) if value > 0 else "0"
    return "10" + exponent.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def no_ticks() -> Any:
    """For minor ticks, whose labels would crowd."""
    from matplotlib.ticker import NullLocator

    return NullLocator()


def whole_ticks() -> Any:
    """For an axis that counts: no ticks between whole numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=9, steps=[1, 2, 2.5, 5, 10], integer=True)


def _broken(name: str) -> str:
    """A name on lines that fit a narrow panel, broken after dots, dashes and underscores."""
    lines = [""]
    for part in re.findall(rf"[^._-]{{1,{_NARROW}}}[._-]?|[._-]", name):
        if len(lines[-1]) + len(part) > _NARROW:
            lines.append("")
        lines[-1] += part
    return "\n".join(line for line in lines if line)


def legend(axes: Axes, names: Sequence[str], *, inside: bool = False) -> None:
    """One entry per model, in its colour and marker, above the axes or in empty ones."""
    from matplotlib.lines import Line2D

    names = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…" for name in names]
    if inside:
        names = [_broken(name) for name in names]
    handles = [
        Line2D([], [], color=COLOURS[i % 4], marker=MARKERS[i % 4], markersize=4, label=name)
        for i, name in enumerate(names)
    ]
    if inside:
        axes.legend(handles=handles, frameon=False, fontsize=8.5, loc="center left")
        return
    axes.figure.legend(  # above the axes, where it covers no point
        handles=handles,
        frameon=False,
        fontsize=8.5,
        loc="outside upper left",
        ncols=2 if max(map(len, names)) <= _LONGEST // 2 else 1,
    )


def cividis(levels: int) -> list[tuple[str, str]]:
    """Background and readable text colour of each level, light end first."""
    return _shades("cividis", [1 - level / levels for level in range(levels + 1)])


def diverging(steps: int) -> list[tuple[str, str]]:
    """The same from purple over white to orange, ``steps`` on either side."""
    # the darkest ends of the map are left out: they say nothing more
    places = [1 - level / (2 * steps) for level in range(2 * steps + 1)]
    return _shades("PuOr", [0.1 + 0.8 * place for place in places])


def _shades(name: str, places: Sequence[float]) -> list[tuple[str, str]]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    shades = []
    for place in places:
        red, green, blue, _ = colormaps[name](place)
        luminance = sum(
            w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
            for w, c in zip((0.2126, 0.7152, 0.0722), (red, green, blue), strict=True)
        )
        dark_text = (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05)
        shades.append((to_hex((red, green, blue)), "#000000" if dark_text else "#ffffff"))
    return shades
