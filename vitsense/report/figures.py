"""Figures as SVG text: seaborn's style, our colours, one picture for light, dark and print."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitsense.report.document import Document, ModelReport, Profile
from vitsense.report.formatters import number as decimal
from vitsense.report.formatters import short, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#8F5BD6", "#2E8B57")
"""One hue per model, in order; the first two keep 3:1 contrast on white and on dark."""

MARKERS = ("o", "s", "^", "D")
"""A second cue beside the hue."""

LEAST_KL, LEAST_KURTOSIS = 1e-6, 0.1
"""What is smaller is drawn here: logarithmic axes have no zero."""

_LONGEST = 48  # characters of a name in a legend
_CROWD = 150  # points of one model in one panel; more are drawn smaller and fainter

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


def pictures(document: Document) -> dict[str, Picture]:
    """All figures of the document, by name."""
    found = {}
    if document.profiles:
        for picture in (_sensitivity(document), _statistics(document)):
            found[picture.name] = picture
    for i, model in enumerate(document.models):
        if model.front:
            found[f"front-{i}"] = _front(model, i)
    return found


@contextmanager
def _style() -> Iterator[None]:
    """Our style for the length of a figure; matplotlib's settings are given back."""
    import matplotlib as mpl
    import seaborn as sns

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
    with mpl.rc_context(), sns.axes_style("ticks"), mpl.rc_context(settings):
        yield


def _drawn(width: float, height: float, panels: int, draw: Callable[[Sequence[Axes]], None]) -> str:
    """SVG of a figure of ``panels`` axes side by side (inches)."""
    from matplotlib.figure import Figure as NewFigure

    with _style(), warnings.catch_warnings():
        # a reader's fonts may have what ours lacks: the text stays text
        warnings.filterwarnings("ignore", r"Glyph \d+|Matplotlib currently does not support")
        figure: Figure = NewFigure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        draw(list(axes))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # tenths of a point are enough for coordinates; text between tags is left alone
    return re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d)\d+", r"\1", tag[0]), text)


def _plain_ticks(axis: Any, *, log: bool) -> None:
    """Readable numbers, and no crowd of minor labels on short log axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if not log:
        return
    low, high = axis.get_view_interval()
    axis.set_minor_locator(NullLocator())
    short_axis = high / max(low, 1e-30) < 50
    axis.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0)) if short_axis else LogLocator(numticks=6)
    )
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if short_axis else _power(v)))


def _power(value: float) -> str:
    """``10⁻²``; written out because mathematics in names, and so in all text, is off."""
    exponent = str(round(math.log10(value))) if value > 0 else "0"
    return "10" + exponent.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _line(axes: Axes, profile: Profile, number: int, name: str, *, floor: float | None) -> None:
    points = [
        (d, v if floor is None else max(v, floor))
        for d, v in zip(profile.depth, profile.series[name], strict=True)
        if v is not None
    ]
    if not points:
        return
    depth, values = zip(*points, strict=True)
    style: Any = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
    crowded = len(values) > _CROWD
    axes.plot(
        depth,
        values,
        linestyle="none",
        markersize=2.4 if crowded else 3.6,
        alpha=0.35 if crowded else 0.55,
        markeredgewidth=0,
        **style,
    )
    trend = _running_median(values)
    axes.plot(depth, trend, linewidth=1.8, color=style["color"])


def _running_median(values: Sequence[float]) -> list[float]:
    half = max(1, len(values) // 16)
    found = []
    for i in range(len(values)):
        window = sorted(values[max(0, i - half) : i + half + 1])
        found.append(window[len(window) // 2])
    return found


def _legend(axes: Axes, profiles: Sequence[Profile]) -> None:
    from matplotlib.lines import Line2D

    names = [p.model if len(p.model) <= _LONGEST else f"{p.model[:_LONGEST]}…" for p in profiles]
    handles = [
        Line2D([], [], color=COLOURS[i % 4], marker=MARKERS[i % 4], markersize=4, label=name)
        for i, name in enumerate(names)
    ]
    axes.figure.legend(  # above the axes, where it covers no point
        handles=handles,
        frameon=False,
        fontsize=8.5,
        loc="outside upper left",
        ncols=2 if max(map(len, names)) <= _LONGEST // 2 else 1,
    )


def _sensitivity(document: Document) -> Picture:
    def draw(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        for i, profile in enumerate(document.profiles):
            _line(ax, profile, i, "kl", floor=LEAST_KL)
        ax.set_yscale("log")
        _plain_ticks(ax.yaxis, log=True)
        ax.set_xlabel("relative depth (0 = first module, 1 = last)")
        ax.set_ylabel(f"divergence at {document.bits} bits (nats)")
        _legend(ax, document.profiles)

    peaks = "; ".join(_peak(p) for p in document.profiles)
    return Picture(
        "sensitivity",
        _drawn(7.0, 3.1, 1, draw),
        _most_sensitive(document),
        f"Divergence of each module at {document.bits} bits along relative depth. {peaks}.",
        "Each point is one module quantized alone; the line is a running median. Higher is more "
        "sensitive; the scale is logarithmic, so one step is a factor of ten (values below "
        f"{LEAST_KL:.6f} are drawn there).",
    )


def _most_sensitive(document: Document) -> str:
    peaks = [
        (value, profile.model, depth)
        for profile in document.profiles
        for value, depth in zip(profile.series["kl"], profile.depth, strict=True)
        if value is not None
    ]
    if not peaks:
        return f"Divergence at {document.bits} bits along depth"
    value, model, depth = max(peaks)
    return (
        f"At {document.bits} bits the most sensitive module is in {model}, at relative depth "
        f"{depth:.2f} ({short(value)} nats)"
    )


def _peak(profile: Profile) -> str:
    values = [
        (v, d) for v, d in zip(profile.series["kl"], profile.depth, strict=True) if v is not None
    ]
    if not values:
        return f"{profile.model}: nothing measured"
    ordered = sorted(v for v, _ in values)
    top, where = max(values)
    middle = ordered[len(ordered) // 2]
    return (
        f"{profile.model}: median {middle:.2g} nats, largest {top:.2g} nats at relative depth "
        f"{where:.2f}"
    )


_PANELS = (
    ("activation_kurtosis", "excess kurtosis", LEAST_KURTOSIS),
    ("activation_variance", "variance", None),
    ("activation_channel_max_to_median", "largest / typical channel", None),
)


def _statistics(document: Document) -> Picture:
    def draw(axes: Sequence[Axes]) -> None:
        for ax, (name, label, floor) in zip(axes, _PANELS, strict=True):
            for i, profile in enumerate(document.profiles):
                _line(ax, profile, i, name, floor=floor)
            ax.set_yscale("log")
            _plain_ticks(ax.yaxis, log=True)
            ax.set_title(label, fontsize=9)
            ax.set_xlabel("relative depth")
        _legend(axes[0], document.profiles)

    medians = ", ".join(f"{p.model} {_median(p, 'activation_kurtosis')}" for p in document.profiles)
    words = "; ".join(
        f"{p.model}: median excess kurtosis {_median(p, 'activation_kurtosis')}, largest "
        f"{_largest(p, 'activation_kurtosis')}"
        for p in document.profiles
    )
    return Picture(
        "statistics",
        _drawn(7.4, 2.7, 3, draw),
        f"Median excess kurtosis of activations: {medians}",
        f"Excess kurtosis, variance and outlier channels of activations along depth. {words}.",
        "Activations of each module (the one with the heaviest tail). Excess kurtosis is 0 for a "
        f"normal distribution; values at or below {LEAST_KURTOSIS:g} are drawn at "
        f"{LEAST_KURTOSIS:g}. All scales are logarithmic.",
    )


def _median(profile: Profile, name: str) -> str:
    values = sorted(v for v in profile.series[name] if v is not None)
    return f"{values[len(values) // 2]:.3g}" if values else "unknown"


def _largest(profile: Profile, name: str) -> str:
    values = [v for v in profile.series[name] if v is not None]
    return f"{max(values):.3g}" if values else "unknown"


def _front(model: ModelReport, number: int) -> Picture:
    from matplotlib.ticker import NullLocator

    colour = COLOURS[number % len(COLOURS)]

    def draw(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        size = [p.size_mb for p in model.front]
        ax.fill_between(
            size,
            [p.low for p in model.front],
            [p.high for p in model.front],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        ax.plot(size, [p.drop for p in model.front], color=colour, linewidth=1.6)
        for name, x, value, low, high in model.marks:
            chosen = name == "recommended"
            mixed = chosen or name.startswith("pareto")
            ax.errorbar(
                x,
                value,
                yerr=[[value - low], [high - value]],
                color=colour if mixed else INK,
                marker="o" if mixed else "D",
                markersize=7 if chosen else 4.5,
                linewidth=1,
            )
            label = name.replace("uniform-", "").replace("pareto-", "~") + (
                " bits" if not chosen else ""
            )
            # the front falls to the right: above it uniform widths, below it mixed plans
            offset, side = ((-6, -18 if chosen else -10), "right") if mixed else ((5, 7), "left")
            ax.annotate(
                label, (x, value), textcoords="offset points", xytext=offset, ha=side, fontsize=7.5
            )
        ax.set_yscale("symlog", linthresh=1.0)
        lowest = min([-1.0, *(1.15 * m[3] for m in model.marks)])
        highest = max([p.drop for p in model.front] + [m[4] for m in model.marks] + [1.0])
        ax.set_ylim(lowest, 1.4 * highest)
        ticks = [
            t for t in (-10, -3, -1, 0, 0.5, 1, 3, 10, 30, 100) if lowest <= t <= 1.4 * highest
        ]
        ax.set_yticks(ticks, [decimal(t, 1 if t == 0.5 else 0) for t in ticks])
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("model size (MB)")
        ax.set_ylabel(f"{model.loss} (points)")

    best = next((m for m in model.marks if m[0] == "recommended"), None)
    state = (
        f"the recommended plan needs {best[1]:.2f} MB; its measured {model.loss} is "
        f"{decimal(best[2])} points ({span(best[3], best[4])})"
        if best
        else "what a smaller model costs"
    )
    return Picture(
        f"front-{number}",
        _drawn(7.0, 3.1, 1, draw),
        f"{model.key}: {state}",
        f"Predicted loss against model size for {model.key}, from {model.front[0].size_mb:.2f} to "
        f"{model.front[-1].size_mb:.2f} MB: {state}.",
        "The line is the predicted loss of the best mixed plan of each size, the band its "
        "uncertainty. Round marks are mixed plans measured as a whole, diamonds the same width "
        "everywhere; bars are 95 % intervals. Linear below 1 point, logarithmic above.",
    )


def cividis(levels: int) -> list[tuple[str, str]]:
    """Background and readable text colour of each level, light end first."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    shades = []
    for level in range(levels + 1):
        red, green, blue, _ = colormaps["cividis"](1 - level / levels)
        luminance = sum(
            w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
            for w, c in zip((0.2126, 0.7152, 0.0722), (red, green, blue), strict=True)
        )
        dark_text = (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05)
        shades.append((to_hex((red, green, blue)), "#000000" if dark_text else "#ffffff"))
    return shades
