"""Several trainings in one table: what differs between them, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vitsense.decimals import counted
from vitsense.report.chapters.trained import (
    NONE,
    Planned,
    Row,
    Trained,
    drop_shown,
    gain_shown,
    shown,
    value_of,
    what,
)
from vitsense.report.formatters import number, percent, short, shortened
from vitsense.report.section import Table, without_dashes

_LARGE = 1000.0  # numbers from here on are of trainings that diverged
_RESULTS, _MANY = 6, 2  # columns before those of settings, and settings that fit beside them
_PARTS = 2  # of the path of a data set


def _data(record: Row) -> str:
    parts = str(record["data"]["spec"]).rstrip("/").split("/")
    return shortened("/".join(parts[-_PARTS:]))


def learned_from(record: Row) -> str:
    """What gave the answers: a label bank, a teacher, or labels."""
    bank = record["teacher"].get("bank")
    if bank:
        return f"label bank of {bank['teacher']['name']}, {counted(bank['crops'], 'crop')}"
    return str(record["teacher"].get("live") or "labels")


_PRECISION = {"no": "32-bit", "bf16": "bfloat16", "fp16": "16-bit"}

_SETTINGS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("Recipe", lambda r: f"{r['recipe']['name']} {r['recipe']['version']}"),
    ("Learning rate", lambda r: f"{r['recipe']['lr']:g}"),
    ("Training data", _data),
    ("Training images", lambda r: f"{r['data']['images']:,}"),
    ("Learned from", learned_from),
    ("Steps x crops", lambda r: f"{r['steps']:,} x {r['recipe']['batch']}"),
    ("Seed", lambda r: str(r["recipe"]["seed"])),
    (
        "Precision",
        lambda r: _PRECISION.get(
            str(r["recipe"].get("precision", "no")), str(r["recipe"].get("precision"))
        ),
    ),
    ("Evaluation images", lambda r: f"{r['fp']['n']:,}"),
    ("Full precision", lambda r: shown(r["fp"])),
)
"""What trainings may differ in, as a column or, where they do not, as a line above the table."""

_TOLD = {
    "schema", "name", "version", "about", "source", "lr", "batch", "seed", "precision", "epochs",
    "calibration",
}  # fmt: skip
"""Keys of a recipe that the settings above tell of."""


def same_for_all(trainings: Sequence[Trained]) -> str:
    """Settings that all trainings share, in a sentence."""
    told = [
        f"{name[:1].lower()}{name[1:]} {value(trainings[0].record)}"
        for name, value in _SETTINGS
        if not _differs(trainings, value)
    ]
    return f"Alike in all {len(trainings)} trainings: {'; '.join(told)}."


def _differs(trainings: Sequence[Trained], told: Callable[[Row], str]) -> bool:
    return len({told(one.record) for one in trainings}) > 1


def _others(trainings: Sequence[Trained]) -> list[str]:
    """Values of the recipe that differ between trainings of one recipe, as ``crops 2``."""
    differ = set()
    for one in trainings:
        for other in trainings:
            mine, theirs = one.record["recipe"], other.record["recipe"]
            if mine["name"] == theirs["name"]:
                differ |= {key for key in mine if mine[key] != theirs.get(key, mine[key])}
    keys = sorted(differ - _TOLD)
    return [
        ", ".join(f"{key} {one.record['recipe'].get(key, NONE)}" for key in keys) or NONE
        for one in trainings
    ]


def table_of(plans: Sequence[Planned]) -> Table:
    """A row for every training, by plan and name; of settings, those that differ."""
    trainings = [one for plan in plans for one in plan.trainings]
    said = [plan.short for plan in plans for _ in plan.trainings]
    first = trainings[0]
    columns = [(name, told) for name, told in _SETTINGS if _differs(trainings, told)]
    if len(trainings) == 1:
        columns = [row for row in _SETTINGS if row[0] in {"Steps x crops", "Full precision"}]
    others = _others(trainings)
    rows = tuple(
        (
            one.name,
            said[k] if len(plans) > 1 else NONE,
            shown(one.record["ptq"]),
            shown(one.record["last"]),
            gain_shown(one),
            drop_shown(one.record["last"]),
            *(told(one.record) for _, told in columns),
            others[k],
            _best(one),
            f"{one.record['seconds']:.0f} s",
        )
        for k, one in enumerate(trainings)
    )
    table = Table(
        title=_title(plans),
        head=(
            "Training",
            "Plan (bits)",
            f"Not trained, {what(first)}",
            "Trained",
            "Gain (points)",
            "Drop left (points)",
            *(name for name, _ in columns),
            "Other settings",
            "Best step, if not the last",
            "Time",
        ),
        rows=rows,
        reading=_reading(trainings),
        across=tuple(range(_RESULTS, _RESULTS + len(columns) + 1)) if len(columns) > _MANY else (),
    )
    return without_dashes(table)


def _title(plans: Sequence[Planned]) -> str:
    trainings = [one for plan in plans for one in plan.trainings]
    if len(trainings) == 1:
        (one,) = trainings
        return (
            f"Training {one.name}: {what(one)} {shown(one.record['last'])} at {one.bits:.2f} bits"
        )
    if len(plans) == 1:
        return f"{len(trainings)} trainings of {plans[0].said}, by name"
    return f"{len(trainings)} trainings of {len(plans)} plans, by plan and name"


def _best(one: Trained) -> str:
    """The best evaluation, where it is not the last."""
    best, last = one.record["best"], one.record["last"]
    if value_of(best) == value_of(last):
        return NONE
    step = f" (step {best['step']:,})" if "step" in best else ""
    return f"{value_of(best)[0]:.1f} %{step}"


def _reading(trainings: Sequence[Trained]) -> str:
    images = {one.record["fp"]["n"] for one in trainings}
    of = f"the same {counted(images.pop(), 'evaluation image')}" if len(images) == 1 else "images"
    paired = (
        "The gain is trained minus not trained, the drop full precision minus trained, both on "
        "the same images, with 95 % intervals. "
    )
    best = (
        "The best of several steps or trainings flatters, because it was chosen on the images it "
        "is judged by: rely on the last step, and repeat the best training with another seed."
    )
    return f"Measured on {of}. {paired}{best}"


def in_short(trainings: Sequence[Trained]) -> Table:
    """What happened in every training, in numbers: what the curves show of one."""
    table = Table(
        title="What happened in each training",
        head=(
            "Training",
            "Loss, first to last step (nats)",
            "Oscillating at the end",
            "Module that moved most",
            "Divergence, not trained to trained (nats)",
        ),
        rows=tuple(
            (one.name, _losses(one), _oscillating(one), _moved(one), _divergence(one))
            for one in trainings
        ),
        reading=(
            "The loss is of single batches; a module moved by so many percent of its weights' "
            "norm. The divergence is that from full precision, on the evaluation images."
        ),
    )
    return without_dashes(table)


def _losses(one: Trained) -> str:
    rows = one.folder.metrics("train")
    return f"{nats(rows[0]['loss'])} to {nats(rows[-1]['loss'])}" if len(rows) > 1 else NONE


def nats(loss: float) -> str:
    """A training loss; of one that diverged, its magnitude."""
    return number(loss, 2) if abs(loss) < _LARGE else short(loss)


def _oscillating(one: Trained) -> str:
    share = one.record.get("oscillating")
    if share is None:
        return NONE
    return f"{percent(share)} of the weights" if share else "no weight"


def _moved(one: Trained) -> str:
    import pandas as pd

    path = one.folder.path / "movement.csv"
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    if table.empty:
        return NONE
    most = table.loc[table["change"].idxmax()]
    change = 100 * float(most["change"])
    moved = number(change) if change < _LARGE else short(change)
    return f"{shortened(str(most['module']))}, {moved}\u00a0%"


def _divergence(one: Trained) -> str:
    before, after = one.record["ptq"], one.record["last"]
    if before is None or before.get("kl") is None or after.get("kl") is None:
        return NONE
    return f"{short(before['kl'])} to {short(after['kl'])}"
