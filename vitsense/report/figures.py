"""The figures of the report's fixed parts; chapters' are drawn by `charts`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from vitsense.report.charts import chart_picture
from vitsense.report.document import Document, ModelReport, Profile
from vitsense.report.drawing import (
    COLOURS,
    INK,
    MARKERS,
    Picture,
    drawn,
    legend,
    no_ticks,
    plain_ticks,
)
from vitsense.report.formatters import number as decimal
from vitsense.report.formatters import short, span, visible
from vitsense.report.labels import place_labels, together_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_KL, LEAST_KURTOSIS = 1e-6, 0.1
"""What is smaller is drawn here: logarithmic axes have no zero."""

_CROWD = 150  # points of one model in one panel; more are drawn smaller and fainter


def pictures(document: Document) -> dict[str, Picture]:
    """All figures of the document, by name."""
    found = {}
    if document.profiles:
        for picture in (_sensitivity(document), _statistics(document)):
            found[picture.name] = picture
    for i, model in enumerate(document.models):
        if model.front:
            found[f"front-{i}"] = _front(model, i)
    for chart in _charts(document):
        found[chart.name] = chart_picture(chart, [model.key for model in document.models])
    return found


def _charts(document: Document) -> Iterator[Any]:
    for section in (*document.chapters, *(s for m in document.models for s in m.chapters)):
        yield from section.charts


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
        alpha=0.35 if crowded else 0.7,
        markeredgewidth=0,
        **style,
    )
    trend = _running_median(values)
    axes.plot(depth, trend, linewidth=1.8, color=style["color"])


def _running_median(values: Sequence[float]) -> list[float]:
    half = max(1, len(values) // 16)
    found = []
    for i in range(len(values)):
        found.append(median(values[max(0, i - half) : i + half + 1]))
    return found


def _sensitivity(document: Document) -> Picture:
    def draw(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        for i, profile in enumerate(document.profiles):
            _line(ax, profile, i, "kl", floor=LEAST_KL)
        ax.set_yscale("log")
        plain_ticks(ax.yaxis, log=True)
        ax.set_xlabel("relative depth (0 = first module, 1 = last)")
        ax.set_ylabel(f"divergence at {document.at} (nats)")
        legend(ax, [p.model for p in document.profiles])

    peaks = "; ".join(_peak(p) for p in document.profiles)
    return Picture(
        "sensitivity",
        drawn(7.0, 3.1, 1, draw),
        _most_sensitive(document),
        f"Divergence of each module at {document.at} along relative depth. {peaks}.",
        f"Each point is one module quantized alone{_how(document)}; the line is a running median. "
        "Higher is more "
        "sensitive; the scale is logarithmic, so one step is a factor of ten (values below "
        f"{LEAST_KL:.6f} are drawn there).",
    )


def _how(document: Document) -> str:
    estimated = [model.estimated for model in document.models]
    return ", by estimate" if all(estimated) else ""


_LONGEST = 60  # letters of a name in a title


def _named(name: str) -> str:
    """A name as it stands in a title: visible, and not longer than a line."""
    shown = visible(name)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}\u2026"


def _most_sensitive(document: Document) -> str:
    peaks = [
        (value, profile.model, module)
        for profile in document.profiles
        for value, module in zip(profile.series["kl"], profile.modules, strict=True)
        if value is not None
    ]
    if not peaks:
        return f"Divergence at {document.at} along depth"
    value, model, module = max(peaks)
    return (
        f"At {document.at} the most sensitive module is {_named(module)} of {_named(model)} "
        f"({short(value)} nats)"
    )


def _peak(profile: Profile) -> str:
    values = [
        (v, d) for v, d in zip(profile.series["kl"], profile.depth, strict=True) if v is not None
    ]
    if not values:
        return f"{profile.model}: nothing measured"
    top, where = max(values)
    middle = median(v for v, _ in values)
    return (
        f"{profile.model}: median {middle:.2g} nats, largest {top:.2g} nats at relative depth "
        f"{where:.2f}"
    )


LEAST_SHARE = 1e-6

_PANELS = (
    ("activation_variance", "variance", None),
    ("activation_kurtosis", "excess kurtosis", LEAST_KURTOSIS),
    ("activation_outliers_6", "share beyond 6σ", LEAST_SHARE),
    ("activation_sdam", "SDAM: how much channels differ", None),
    ("activation_channel_max_to_median", "largest / typical channel", None),
)


def _statistics(document: Document) -> Picture:
    def draw(axes: Sequence[Axes]) -> None:
        *panels, rest = axes
        for ax, (name, label, floor) in zip(panels, _PANELS, strict=True):
            for i, profile in enumerate(document.profiles):
                _line(ax, profile, i, name, floor=floor)
            ax.set_yscale("log")
            plain_ticks(ax.yaxis, log=True)
            ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            ax.set_title(label, fontsize=8.5)
            ax.set_xlabel("relative depth")
        rest.set_axis_off()
        legend(rest, [p.model for p in document.profiles], inside=True)

    words = "; ".join(
        f"{p.model}: median excess kurtosis {_median(p, 'activation_kurtosis')}, largest "
        f"{_largest(p, 'activation_kurtosis')}, median SDAM {_median(p, 'activation_sdam')}"
        for p in document.profiles
    )
    return Picture(
        "statistics",
        drawn(7.4, 4.6, len(_PANELS) + 1, draw, rows=2),
        _heaviest(document),
        f"Variance, excess kurtosis, outliers, SDAM and outlier channels of activations along "
        f"depth. {words}.",
        "Activations of each module (the tensor with the heaviest tail). Excess kurtosis is 0 for "
        "a normal distribution; SDAM is the standard deviation over channels of the mean absolute "
        "value. All scales are logarithmic; the line is a running median. Values at or below "
        f"{LEAST_KURTOSIS:g} (kurtosis) and {LEAST_SHARE:.6f} (shares) are drawn there.",
    )


def _heaviest(document: Document) -> str:
    """The finding on tails: where they are heaviest."""
    peaks = [
        (value, profile.model, module)
        for profile in document.profiles
        for value, module in zip(
            profile.series["activation_kurtosis"], profile.modules, strict=True
        )
        if value is not None
    ]
    if not peaks:
        return "Activations along depth"
    value, model, module = max(peaks)
    medians = ", ".join(
        f"{_named(p.model)} {_median(p, 'activation_kurtosis')}" for p in document.profiles
    )
    return (
        f"The heaviest tail is in {_named(module)} of {_named(model)} (excess kurtosis "
        f"{short(value)}); medians: {medians}"
    )


def _median(profile: Profile, name: str) -> str:
    values = [v for v in profile.series[name] if v is not None]
    return short(median(values)) if values else "unknown"


def _largest(profile: Profile, name: str) -> str:
    values = [v for v in profile.series[name] if v is not None]
    return short(max(values)) if values else "unknown"


def _mark_label(name: str) -> str:
    if name == "recommended":
        return "within the budget"
    label = name.replace("uniform-", "").replace("pareto-", "~")
    return f"{label} bits" if label[-1].isdecimal() and label[0] in "~0123456789" else label


def _named_marks(model: ModelReport) -> list[tuple[str, float, float]]:
    return [(_mark_label(name), x, value) for name, x, value, *_ in model.marks]


def _front(model: ModelReport, number: int) -> Picture:
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
            mixed = not name.startswith("uniform")
            chosen = name == "recommended"
            ax.errorbar(
                x,
                value,
                yerr=[[value - low], [high - value]],
                color=colour if mixed else INK,
                marker="o" if mixed else "D",
                # a ring, through which a mark at the same place is seen
                markersize=9 if chosen else 4.5,
                markerfacecolor="none" if chosen else None,
                markeredgewidth=1.5 if chosen else None,
                linewidth=1,
            )
        ax.set_yscale("symlog", linthresh=1.0)
        lowest = min([-1.0, *(1.15 * m[3] for m in model.marks)])
        highest = max([p.drop for p in model.front] + [m[4] for m in model.marks] + [1.0])
        ax.set_ylim(lowest, 1.4 * highest)
        ticks = [
            t for t in (-10, -3, -1, 0, 0.5, 1, 3, 10, 30, 100) if lowest <= t <= 1.4 * highest
        ]
        ax.set_yticks(ticks, [decimal(t, 1 if t == 0.5 else 0) for t in ticks])
        ax.yaxis.set_minor_locator(no_ticks())
        ax.set_xlabel("model size (MB)")
        ax.set_ylabel(f"{model.loss} (points)")
        whiskers = [[(x, low), (x, high)] for _, x, _, low, high in model.marks]
        curve = [(p.size_mb, p.drop) for p in model.front]
        place_labels(ax, together_at(ax, _named_marks(model)), [curve, *whiskers])

    best = next((m for m in model.marks if m[0] == "recommended"), None)
    state = (
        f"the best plan within the budget needs {best[1]:.2f} MB; its measured {model.loss} is "
        f"{decimal(best[2])} points ({span(best[3], best[4])})"
        if best
        else "what a smaller model costs"
    )
    return Picture(
        f"front-{number}",
        drawn(7.0, 3.1, 1, draw),
        f"{model.key}: {state}",
        f"Predicted loss against model size for {model.key}, from {model.front[0].size_mb:.2f} to "
        f"{model.front[-1].size_mb:.2f} MB: {state}.",
        "The line is the predicted loss of the best mixed plan of each size, the band its "
        "uncertainty. Round marks are mixed plans measured as a whole (a ring is the one within "
        "the budget), diamonds the same width everywhere; bars are 95 % intervals. "
        "Linear below 1 point, logarithmic above.",
    )
