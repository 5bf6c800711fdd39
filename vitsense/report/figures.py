"""Figures as SVG text: seaborn's style, our colours, one picture for light, dark and print."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitsense.report.document import Document, ModelReport, Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#8F5BD6", "#2E8B57")
"""One hue per model, in order; the first two keep 3:1 contrast on white and on dark."""

MARKERS = ("o", "s", "^", "D")
"""A second cue beside the hue."""

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
            found[f"front-{i}"] = _front(model, i, document)
    return found


@contextmanager
def _style() -> Iterator[None]:
    """Our style for the length of a figure; matplotlib's settings are given back."""
    import matplotlib as mpl
    import seaborn as sns

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "vitsense",
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

    with _style():
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
    if high / max(low, 1e-30) < 50:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.set_major_locator(LogLocator(numticks=6))


def _line(axes: Axes, profile: Profile, number: int, name: str, *, floor: float | None) -> None:
    points = [
        (d, v)
        for d, v in zip(profile.depth, profile.series[name], strict=True)
        if v is not None and (floor is None or v > 0)
    ]
    if not points:
        return
    depth, values = zip(*points, strict=True)
    values = tuple(max(v, floor) if floor is not None else v for v in values)
    style: Any = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
    axes.plot(
        depth, values, linestyle="none", markersize=3.6, alpha=0.55, markeredgewidth=0, **style
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

    handles = [
        Line2D(
            [], [], color=COLOURS[i % 4], marker=MARKERS[i % 4], markersize=4, label=p.model[:40]
        )
        for i, p in enumerate(profiles)
    ]
    axes.legend(handles=handles, frameon=False, fontsize=8.5, loc="best")


def _sensitivity(document: Document) -> Picture:
    def draw(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        for i, profile in enumerate(document.profiles):
            _line(ax, profile, i, "kl", floor=1e-6)
        ax.set_yscale("log")
        _plain_ticks(ax.yaxis, log=True)
        ax.set_xlabel("relative depth (0 = first module, 1 = last)")
        ax.set_ylabel(f"divergence at {document.bits} bits (nats)")
        _legend(ax, document.profiles)

    peaks = "; ".join(_peak(p) for p in document.profiles)
    return Picture(
        "sensitivity",
        _drawn(7.0, 3.1, 1, draw),
        f"Where each model is sensitive at {document.bits} bits",
        f"Divergence of each module at {document.bits} bits along relative depth. {peaks}.",
        "Each point is one module quantized alone; the line is a running median. Higher is more "
        "sensitive; the scale is logarithmic, so one step is a factor of ten.",
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
    ("activation_kurtosis", "excess kurtosis"),
    ("activation_variance", "variance"),
    ("activation_channel_max_to_median", "largest / typical channel"),
)


def _statistics(document: Document) -> Picture:
    def draw(axes: Sequence[Axes]) -> None:
        for ax, (name, label) in zip(axes, _PANELS, strict=True):
            for i, profile in enumerate(document.profiles):
                _line(ax, profile, i, name, floor=1e-3)
            ax.set_yscale("log")
            _plain_ticks(ax.yaxis, log=True)
            ax.set_title(label, fontsize=9)
            ax.set_xlabel("relative depth")
        _legend(axes[0], document.profiles)

    words = "; ".join(
        f"{p.model}: median excess kurtosis {_median(p, 'activation_kurtosis')}, largest "
        f"{_largest(p, 'activation_kurtosis')}"
        for p in document.profiles
    )
    return Picture(
        "statistics",
        _drawn(7.4, 2.7, 3, draw),
        "How activations are distributed along depth",
        f"Excess kurtosis, variance and outlier channels of activations along depth. {words}.",
        "Activations of each module (the one with the heaviest tail). Excess kurtosis is 0 for a "
        "normal distribution; values at or below 0.001 are drawn at 0.001. All scales are "
        "logarithmic.",
    )


def _median(profile: Profile, name: str) -> str:
    values = sorted(v for v in profile.series[name] if v is not None)
    return f"{values[len(values) // 2]:.3g}" if values else "unknown"


def _largest(profile: Profile, name: str) -> str:
    values = [v for v in profile.series[name] if v is not None]
    return f"{max(values):.3g}" if values else "unknown"


def _front(model: ModelReport, number: int, document: Document) -> Picture:
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
            # uniform widths are labelled above, mixed plans below, so that neighbours do not meet
            offset, side = ((6, -11), "left") if mixed else ((5, 7), "left")
            ax.annotate(
                label, (x, value), textcoords="offset points", xytext=offset, ha=side, fontsize=7.5
            )
        ax.set_yscale("symlog", linthresh=1.0)
        ax.set_yticks([0, 0.5, 1, 3, 10, 30, 100])
        ax.set_yticklabels(["0", "0.5", "1", "3", "10", "30", "100"])
        ax.set_ylim(bottom=min(-1.0, *(m[3] for m in model.marks)) if model.marks else -1.0)
        ax.set_xlabel("model size (MB)")
        ax.set_ylabel(f"{document.loss} (points)")

    best = next((m for m in model.marks if m[0] == "recommended"), None)
    words = (
        f"The recommended plan needs {best[1]:.2f} MB and was measured at {best[2]:.1f} points "
        f"({best[3]:.1f} to {best[4]:.1f})."
        if best
        else ""
    )
    return Picture(
        f"front-{number}",
        _drawn(7.0, 3.1, 1, draw),
        f"{model.key}: what a smaller model costs",
        f"Predicted loss against model size for {model.key}, from {model.front[0].size_mb:.2f} to "
        f"{model.front[-1].size_mb:.2f} MB. {words}",
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
