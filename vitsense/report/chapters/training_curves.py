"""One training in detail: curves, oscillation and steps over time, latent weights in bins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitsense.report.chapters.training_facts import CURVE, at_rest, facts_of
from vitsense.report.chapters.training_table import nats
from vitsense.report.formatters import number as decimal
from vitsense.report.formatters import percent, short
from vitsense.report.section import Block, Chart, Series, Shape, Table
from vitsense.trainings import TrainingFolder

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_SHOWN = 5  # modules in a figure
_ROWS = 12  # modules in the table of movement
_INK = -1


def details(
    folder: TrainingFolder, record: Mapping[str, Any], number: int, name: str
) -> list[Block]:
    """The blocks about one training, each with its name.

    Args:
        folder: Of the training.
        record: Its ``qat.json``.
        number: The model's colour.
        name: Of the training in the report.
    """
    slug = f"training-{number}-" + re.sub(r"[^A-Za-z0-9]+", "-", folder.name)
    blocks: list[Block | None] = [
        facts_of(folder, record, name),
        _loss_curve(folder, slug, number),
        _accuracy_curve(folder, record, slug, number),
        _oscillation(folder, slug, number),
        _scales(folder, slug, number),
        *_histograms(folder, slug, number),
        _movement(folder),
        _sensitivities(folder),
    ]
    return [_titled(block, name) for block in blocks if block is not None]


def _titled(block: Block, name: str) -> Block:
    if isinstance(block, Chart | Table):
        return replace(block, title=f"Training {name}: {block.title}")
    return block


def _loss_curve(folder: TrainingFolder, slug: str, number: int) -> Chart | None:
    rows = folder.metrics("train")
    if len(rows) < CURVE:
        return None
    part = max(1, len(rows) // 5)  # single batches scatter: ends are means of a fifth of them
    first, last = (sum(row["loss"] for row in ends) / part for ends in (rows[:part], rows[-part:]))
    which = "" if part == 1 else f" (means of {part} logged steps)"
    said = f"from {nats(first)} to {nats(last)}{which}"
    return Chart(
        name=f"{slug}-loss",
        title=f"the training loss went {said}",
        alt=f"Training loss over {rows[-1]['step']} steps: {said}.",
        reading="Loss of single batches; it includes what the teacher itself is unsure of.",
        shape=Shape.LINE,
        x_label="step",
        y_label="loss (nats)",
        series=(_series("loss", rows, "loss", number),),
    )


def _series(name: str, rows: Sequence[Mapping[str, Any]], key: str, colour: int) -> Series:
    return Series(
        name=name,
        x=tuple(float(row["step"]) for row in rows),
        y=tuple(float(row[key]) for row in rows),
        colour=colour,
    )


def _accuracy_curve(
    folder: TrainingFolder, record: Mapping[str, Any], slug: str, number: int
) -> Chart | None:
    rows = folder.metrics("evaluation")
    key = "top1" if record["last"].get("top1") is not None else "agreement"
    rows = [row for row in rows if row.get(key) is not None]
    if len(rows) < 2:
        return None
    what = "top-1" if key == "top1" else "agreement"
    trained = Series(
        name="trained",
        x=tuple(float(row["step"]) for row in rows),
        y=tuple(float(row[key]) for row in rows),
        low=tuple(float(row[f"{key}_low"]) for row in rows),
        high=tuple(float(row[f"{key}_high"]) for row in rows),
        colour=number,
    )
    ends = (trained.x[0], trained.x[-1])
    lines = [trained]
    for name, row in (("full precision", record["fp"]), ("not trained", record["ptq"])):
        if row is not None and row.get(key) is not None:
            value = float(row[key])
            lines.append(Series(name=name, x=ends, y=(value, value), colour=_INK))
    against = ", ".join(f"{line.name} {line.y[0]:.1f} %" for line in lines[1:])
    return Chart(
        name=f"{slug}-accuracy",
        title=f"{what} ends at {trained.y[-1]:.1f} %" + (f"; {against}" if against else ""),
        alt=f"{what} by step: "
        + ", ".join(f"{x:.0f}: {y:.1f} %" for x, y in zip(trained.x, trained.y, strict=True))
        + ".",
        reading=(
            "The band is the 95 % interval over the evaluation images. The curve begins where "
            "training begins, on first grids of its own; what it is worth is its end against "
            "the plan that is not trained."
        ),
        shape=Shape.LINE,
        x_label="step",
        y_label=f"{what} (%)",
        series=tuple(lines),
    )


def _oscillation(folder: TrainingFolder, slug: str, number: int) -> Chart | None:
    rows = folder.metrics("oscillation")
    if len(rows) < 2 or at_rest(folder):
        return None
    last = rows[-1]["share"]
    most = {name: max(row["share"][name] for row in rows) for name in last}
    worst = sorted(last, key=lambda name: (-last[name], -most[name]))[:_SHOWN]
    x = tuple(float(row["step"]) for row in rows)
    lines = [Series(name="all weights", x=x, y=tuple(100 * r["all"] for r in rows), colour=_INK)]
    lines += [
        Series(name=name, x=x, y=tuple(100 * row["share"][name] for row in rows), colour=number)
        for name in worst
        if most[name] > 0.1 * most[worst[0]]  # lines at the bottom cannot be told apart
    ]
    total = 100 * rows[-1]["all"]
    said = ", ".join(f"{name} {100 * last[name]:.2f} %" for name in worst)
    return Chart(
        name=f"{slug}-oscillation",
        title=(
            f"at the end {percent(total / 100)} of the weights oscillate, most in {worst[0]}"
            if last[worst[0]]
            else f"at the end no weight oscillates; on the way most did in {worst[0]}"
        ),
        alt=f"Share of oscillating weights at the end: all {total:.2f} %; {said}.",
        reading=(
            "A weight oscillates when its whole code flips back and forth; counted are those whose "
            f"average of flips per step is above {rows[-1]['threshold']:g}. The modules with the "
            "largest shares at the end are drawn."
        ),
        shape=Shape.LINE,
        x_label="step",
        y_label="oscillating weights (%)",
        series=tuple(lines),
    )


def _scales(folder: TrainingFolder, slug: str, number: int) -> Chart | None:
    rows = folder.metrics("scales")
    if len(rows) < 2 or not rows[0]["scale"]:
        return None
    first, last = rows[0]["scale"], rows[-1]["scale"]
    moved = {name: last[name] / first[name] for name in first if first[name] > 0 and last[name] > 0}
    most = sorted(moved, key=lambda name: -max(moved[name], 1 / moved[name]))[:_SHOWN]
    x = tuple(float(row["step"]) for row in rows)
    return Chart(
        name=f"{slug}-scales",
        title=(
            f"the grid step that changed most is that of {most[0]}: {moved[most[0]]:.2f} of its "
            "start"
        ),
        alt="Grid steps at the end, relative to their start: "
        + ", ".join(f"{name} {moved[name]:.2f}" for name in most)
        + ".",
        reading="Mean learned step of a quantizer over its first value.",
        shape=Shape.LINE,
        x_label="step",
        y_label="grid step / its start",
        series=tuple(
            Series(
                name=name,
                x=x,
                y=tuple(row["scale"][name] / first[name] for row in rows),
                colour=number,
            )
            for name in most
        ),
    )


def _histograms(folder: TrainingFolder, slug: str, number: int) -> list[Chart]:
    """Latent weights of the modules that moved most, before and after, in steps of their grid."""
    import numpy as np

    path, table = folder.path / "weights.npz", _movement_table(folder)
    if not path.is_file() or table is None:
        return []
    narrow = table[table["bits"] <= 4].sort_values("change", ascending=False)
    charts = []
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        for place, row in enumerate(narrow.head(2).to_dict("records")):
            lines = [
                _density(stored, moment, row["module"], colour)
                for moment, colour in (("begin", _INK), ("end", number))
            ]
            charts.append(
                Chart(
                    name=f"{slug}-weights-{place}",
                    title=(
                        f"{row['module']}: {100 * row['codes_changed']:.1f} % of the weights "
                        "changed their code"
                    ),
                    alt=(
                        f"Histogram of the latent weights of {row['module']} in steps of its "
                        f"{row['bits']}-bit grid, before and after training; the distance to the "
                        f"grid went from {row['sqnr_before']:.1f} to {row['sqnr_after']:.1f} dB."
                    ),
                    reading=(
                        "Whole numbers are the levels of the grid, halves the thresholds between "
                        "them. Weights that pile up at thresholds oscillate; a peak at a level is "
                        "a bin that was drawn together."
                    ),
                    shape=Shape.LINE,
                    x_label="latent weight (steps)",
                    y_label="share of weights (%)",
                    series=tuple(lines),
                )
            )
    return charts


def _density(stored: Mapping[str, NDArray[Any]], moment: str, module: str, colour: int) -> Series:
    edges, counts = stored[f"{moment}|{module}|edges"], stored[f"{moment}|{module}|counts"]
    middle = (edges[:-1] + edges[1:]) / 2
    share = 100 * counts / max(int(counts.sum()), 1)
    middle, share = middle[1:-1], share[1:-1]  # the outermost bins hold all that lies beyond
    name = "before" if moment == "begin" else "after"
    x, y = (tuple(float(v) for v in values) for values in (middle, share))
    return Series(name=name, x=x, y=y, colour=colour)


def _movement_table(folder: TrainingFolder) -> pd.DataFrame | None:
    import pandas as pd

    path = folder.path / "movement.csv"
    return pd.read_csv(path) if path.is_file() else None


def _movement(folder: TrainingFolder) -> Table | None:
    table = _movement_table(folder)
    if table is None or table.empty:
        return None
    rows = table.sort_values("change", ascending=False).head(_ROWS).to_dict("records")
    most = rows[0]
    return Table(
        title=f"{most['module']} moved most: {100 * most['change']:.1f} % of its norm",
        code=True,
        head=(
            "Module",
            "Bits",
            "Moved (% of norm)",
            "Codes changed (%)",
            "Oscillating (%)",
            "Signal to rounding, before (dB)",
            "after (dB)",
            "Excess kurtosis, before",
            "after",
        ),
        rows=tuple(
            (
                str(row["module"]),
                str(row["bits"]),
                f"{100 * row['change']:.1f}",
                f"{100 * row['codes_changed']:.1f}",
                f"{100 * row['oscillating']:.2f}",
                decimal(row["sqnr_before"]),
                decimal(row["sqnr_after"]),
                short(row["kurtosis_before"]),
                short(row["kurtosis_after"]),
            )
            for row in rows
        ),
        reading=f"The {len(rows)} modules whose weights moved most; all are in movement.csv.",
    )


def _sensitivities(folder: TrainingFolder) -> Table | None:
    """What each module alone costs, before and after: the modules that were worst, and are."""
    import pandas as pd

    path = folder.path / "sensitivities.csv"
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    if table.empty:
        return None
    before, after = float(table["kl_before"].sum()), float(table["kl_after"].sum())
    better = int((table["kl_after"] < table["kl_before"]).sum())
    table["worst"] = table[["kl_before", "kl_after"]].max(axis=1)
    rows = table.sort_values("worst", ascending=False).head(_ROWS).to_dict("records")
    return Table(
        title=(
            f"modules rounded alone cost {short(before)} nats together before training, "
            f"{short(after)} after; {better} of {len(table)} became less sensitive"
        ),
        head=("Module", "Bits", "Alone, before (nats)", "95 %", "Alone, after (nats)", "95 %"),
        code=True,
        rows=tuple(
            (
                str(row["module"]),
                str(row["bits"]),
                short(row["kl_before"]),
                _to(row["kl_before_low"], row["kl_before_high"]),
                short(row["kl_after"]),
                _to(row["kl_after_low"], row["kl_after_high"]),
            )
            for row in rows
        ),
        reading=(
            f"Divergence of the class probabilities on {rows[0]['n']} evaluation images when one "
            "module alone is rounded, from the full precision of the same latent weights: before "
            "training on first grids, after it on learned ones. Training fits modules to each "
            "other's rounding, so one alone may cost more than before while the whole costs less. "
            "The rows with the largest values are shown; all are in sensitivities.csv."
        ),
    )


def _to(low: float, high: float) -> str:
    return f"{short(low)} to {short(high)}"
