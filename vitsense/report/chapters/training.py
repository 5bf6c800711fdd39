"""The trainings of a model: what was predicted, what quantizing costs, what training reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitsense.report.chapters.training_curves import details
from vitsense.report.formatters import difference, loss_of
from vitsense.report.formatters import number as decimal
from vitsense.report.section import Block, Chart, Section, Series, Shape, Table
from vitsense.trainings import TrainingFolder

if TYPE_CHECKING:
    from vitsense.report.source import Source


def training(source: Source, model: str) -> Section | None:
    """What training the model's quantized form gave; None where it was not trained."""
    return training_chapter(trainings_of(source, model), source.keys.index(model))


def training_chapter(
    found: Sequence[tuple[TrainingFolder, dict[str, Any]]], number: int
) -> Section | None:
    """The chapter about finished trainings of one model; None without any.

    Args:
        found: Their folders and records.
        number: The model's colour.
    """
    if not found:
        return None
    blocks: list[Block] = [_summary([record for _, record in found]), _reached(found, number)]
    # details of the one that was finished last
    folder, record = max(found, key=lambda pair: (pair[0].path / "qat.json").stat().st_mtime)
    blocks += details(folder, record, number)
    return Section(key=f"training-{number}", title="Trained at these bits", blocks=tuple(blocks))


def trainings_of(source: Source, model: str) -> list[tuple[TrainingFolder, dict[str, Any]]]:
    """Finished trainings of the model's weights, by name."""
    entry = next(entry for entry in source.entries if entry["key"] == model)
    found = []
    for folder in source.trainings:
        record = folder.read_record()
        same = record["model"]["weights_digest"] == entry["weights_digest"]
        if same and record["status"] == "complete":
            found.append((folder, record))
    return found


def _value(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Accuracy, or without labels agreement, with its interval, percent."""
    key = "top1" if row.get("top1") is not None else "agreement"
    return float(row[key]), float(row[f"{key}_low"]), float(row[f"{key}_high"])


def _shown(row: Mapping[str, Any] | None) -> str:
    if row is None or (row.get("top1") is None and row.get("agreement") is None):
        return "\N{EN DASH}"
    value, low, high = _value(row)
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def _drop(row: Mapping[str, Any]) -> str:
    if row.get("drop") is None:
        return "\N{EN DASH}"
    return difference(*(float(row[f"drop{end}"]) for end in ("", "_low", "_high")))


def _measure(records: Sequence[Mapping[str, Any]]) -> str:
    return "top-1" if records[0]["last"].get("top1") is not None else "agreement"


def _summary(records: Sequence[Mapping[str, Any]]) -> Table:
    what = _measure(records)
    rows = tuple(
        (
            f"{record['recipe']['name']}, seed {record['recipe']['seed']}",
            _bits(record),
            _shown(record["fp"]),
            _shown(record["ptq"]),
            _shown(record["last"]),
            _shown(record["best"]),
            _drop(record["last"]),
            f"{record['steps']} x {record['recipe']['batch']}",
            f"{record['seconds']:.0f} s",
        )
        for record in records
    )
    best = max(records, key=lambda record: _value(record["last"])[0])
    return Table(
        title=f"Training reaches {_shown(best['last'])} {what} at {_bits(best)} bits on average",
        head=(
            "Training",
            "Bits",
            "Full precision",
            "Quantized only",
            "Trained, last",
            "Trained, best",
            "Drop of last (points)",
            "Steps x crops",
            "Time",
        ),
        rows=rows,
        reading=(
            "All on the same evaluation images, with 95 % intervals; the drop is paired. The best "
            "of several evaluations flatters, because it was chosen on these images: rely on the "
            "last."
        ),
    )


def _bits(record: Mapping[str, Any]) -> str:
    cost = record["plan"].get("cost")
    if cost:
        return f"{cost['avg_bits']:.2f}"
    widths = list(record["plan"]["bits"].values())
    return f"{sum(widths) / len(widths):.1f}"


def _reached(found: Sequence[tuple[TrainingFolder, Mapping[str, Any]]], number: int) -> Chart:
    """Plan predicted, quantized measured, trained measured: what is lost against full precision."""
    labels, values, low, high = [], [], [], []

    def add(label: str, value: float, least: float, most: float) -> None:
        labels.append(label)
        values.append(value)
        low.append(min(least, value))
        high.append(max(most, value))

    for folder, record in found:
        name = f"{folder.name}: " if len(found) > 1 else ""
        predicted = record["plan"].get("predicted")
        if predicted:
            add(f"{name}plan, predicted", predicted["drop"], predicted["low"], predicted["high"])
        for label, row in (
            ("quantized, measured", record["ptq"]),
            ("trained, measured", record["last"]),
        ):
            if row is not None:
                add(f"{name}{label}", *loss_of(row))
    what = "drop of top-1" if _measure([r for _, r in found]) == "top-1" else "loss of agreement"
    said = ", ".join(f"{name} {decimal(value)}" for name, value in zip(labels, values, strict=True))
    return Chart(
        name=f"training-{number}-reached",
        title=f"Predicted, quantized and trained: {what} in points",
        alt=f"{what} in points: {said}.",
        reading="Shorter is better; whiskers are 95 % intervals.",
        shape=Shape.BARS,
        x_label=f"{what} (points)",
        y_label="",
        series=(
            Series(
                name=what,
                x=tuple(float(i) for i in range(len(values))),
                y=tuple(values),
                low=tuple(low),
                high=tuple(high),
                colour=number,
                labels=tuple(labels),
            ),
        ),
    )
