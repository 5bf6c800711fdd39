"""The worth of each part: the recipe, the recipe without it, and its rivals, over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from vitsense.data import labelled_for
from vitsense.decimals import counted
from vitsense.errors import UserInputError
from vitsense.in_use import sole_writer
from vitsense.models import load_model
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.qat.recipes import Recipe, load_recipe
from vitsense.qat.request import QatRequest
from vitsense.qat.train import train
from vitsense.qat.training_images import training_source
from vitsense.runfolder import atomic_write
from vitsense.sensitivity.interval import t_quantile
from vitsense.team import Place
from vitsense.trainings import ABLATION_TABLE, TrainingFolder, budget_words

FULL = "full"
"""Name of the recipe itself in the table."""

ON_LABELS = "lsq+ on labels"
"""LSQ+ as it was published: the rival recipes here learn from the teacher, as the full one does."""

_LABELS = {"teacher": "none", "hard": 1.0}

_RIVALS = ("lsq+", "lsq", "dampen", "freeze", "ofq", "gplq")

_BUDGET = (
    "epochs", "batch", "accumulate", "lr", "min_lr", "warmup", "weight_decay", "clip", "norms",
    "crop_scale", "flip", "calibration", "evaluate", "precision", "ema", "scale_lr",
)  # fmt: skip
"""What rivals take over from the recipe, so that methods differ and budgets do not."""


def variants(recipe: Recipe, names: Sequence[str] | None = None) -> dict[str, Recipe]:
    """The recipes of an ablation by name.

    Args:
        recipe: The full one.
        names: Which of them; None: all.

    Raises:
        UserInputError: a name is not among them.
    """
    found = {FULL: recipe}
    parts = {
        "without several crops": {"crops": 1},
        "without module-dependent steps": {"step_gradient": "lsq"},
        "without offsets": {"offsets": "never"},
        "without regularizer": {"regularizer": "none", "strength": 0.0},
        "published reduction": {"regularizer": "obr_mean", "strength": 0.01},
        "labels instead of teacher": _LABELS,
    }
    for name, change in parts.items():
        other = replace(recipe, **change)  # type: ignore[arg-type]
        if other != recipe:
            found[name] = other
    kept = {key: getattr(recipe, key) for key in _BUDGET}
    for rival in _RIVALS:
        if rival != recipe.name:
            own = load_recipe(rival)
            # GPLQ's small rate is its point: it stays near full precision
            lr = own.lr if rival == "gplq" else recipe.lr
            found[rival] = replace(own, **kept | {"lr": lr})
            if rival == "lsq+":
                found[ON_LABELS] = replace(found[rival], **_LABELS)  # type: ignore[arg-type]
    if names is None:
        return found
    unknown = [name for name in names if name not in found]
    if unknown:
        raise UserInputError(
            f"An ablation has no variant {unknown[0]!r}; there are {', '.join(found)}."
        )
    return {name: found[name] for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """A variant's trainings over seeds."""

    variant: str
    records: tuple[Mapping[str, Any], ...]
    """``qat.json`` of each seed."""

    def values(self, moment: str) -> list[float]:
        """Accuracy (without labels: agreement) of each seed, percent."""
        key = "top1" if self.records[0]["last"].get("top1") is not None else "agreement"
        return [float(record[moment][key]) for record in self.records]

    @property
    def divergences(self) -> list[float]:
        """Divergence from full precision after the last step, of each seed, nats (or NaN)."""
        found = (record["last"].get("kl") for record in self.records)
        return [math.nan if value is None else float(value) for value in found]


def ablate(
    request: QatRequest,
    where: Path,
    device: torch.device,
    seeds: Sequence[int],
    progress: Progress = NO_PROGRESS,
    names: Sequence[str] | None = None,
) -> Path:
    """Train every variant with every seed, and write ``ablation.csv`` and ``ablation.md``.

    Trainings that are complete are not done again, so that an interrupted ablation goes on.

    Args:
        request: The full training; its recipe is what is taken apart.
        where: Folder of the ablation; each training has its own folder in it.
        device: Where to train.
        seeds: One training each.
        progress: Told of every step.
        names: Which variants; None: all.

    Returns:
        The table in Markdown.
    """
    chosen = variants(request.recipe, names)
    if names is None and any(r.hard > 0 for r in chosen.values()) and not _labelled(request):
        chosen = {name: recipe for name, recipe in chosen.items() if recipe.hard == 0}
        progress.note("The training images have no labels: variants that learn from them are out.")
    progress.note(
        f"{counted(len(chosen), 'variant')} with {counted(len(seeds), 'seed')}: "
        f"{counted(len(chosen) * len(seeds), 'training')}, into {where}"
    )
    with ExitStack() as held:
        if Place.of_environment().rank == 0:  # the processes of torchrun work together
            held.enter_context(sole_writer(where, progress))
        found: list[Ablation] = []
        for name, recipe in chosen.items():
            one = replace(request, recipe=recipe, sensitivity_images=0)
            found.append(_trainings(name, one, where, device, seeds, progress))
            _write(where, found)  # what is known so far survives an interruption
    return where / "ablation.md"


def _labelled(request: QatRequest) -> bool:
    source = training_source(request.data, request.images)
    return labelled_for(source, load_model(request.model, torch.device("cpu")))


def _trainings(
    name: str,
    request: QatRequest,
    where: Path,
    device: torch.device,
    seeds: Sequence[int],
    progress: Progress,
) -> Ablation:
    """One variant, with every seed; equal trainings that are complete are not done again."""
    records = []
    for seed in seeds:
        one = replace(request, recipe=replace(request.recipe, seed=seed))
        folder = TrainingFolder(where / f"{name.replace(' ', '-')}-seed{seed}")
        progress.note(f"{name}, seed {seed}")
        records.append(train(one, folder, device, progress=progress))
    return Ablation(variant=name, records=tuple(records))


def _write(where: Path, found: Sequence[Ablation]) -> None:
    frame = table(found)
    atomic_write(where / ABLATION_TABLE, frame.to_csv(index=False))
    atomic_write(where / "ablation.md", markdown(found, frame))


def table(found: Sequence[Ablation]) -> pd.DataFrame:
    """A row per variant: mean over seeds with t interval, and the paired difference to `FULL`.

    Accuracy, and beside it the divergence from full precision: on few evaluation images it tells
    methods apart that the count of right answers does not.
    """
    full = next((one for one in found if one.variant == FULL), None)
    rows = []
    for one in found:
        last = one.values("last")
        row: dict[str, Any] = {"variant": one.variant, "seeds": len(last)}
        row |= dict(zip(("last", "last_low", "last_high"), mean_interval(last), strict=True))
        row |= dict(zip(("kl", "kl_low", "kl_high"), mean_interval(one.divergences), strict=True))
        row["best"] = sum(one.values("best")) / len(last)
        row["seconds"] = sum(float(r["seconds"]) for r in one.records) / len(last)
        if full is not None and one is not full and len(full.values("last")) == len(last):
            gaps = [a - b for a, b in zip(last, full.values("last"), strict=True)]
            keys = ("against_full", "against_low", "against_high")
            row |= dict(zip(keys, mean_interval(gaps), strict=True))
            gaps = [a - b for a, b in zip(one.divergences, full.divergences, strict=True)]
            keys = ("kl_against_full", "kl_against_low", "kl_against_high")
            row |= dict(zip(keys, mean_interval(gaps), strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval over seeds (Student's t); one value has an infinite one."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, -math.inf, math.inf
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


def markdown(found: Sequence[Ablation], frame: pd.DataFrame) -> str:
    """The table with what it was made with."""
    record = found[0].records[0]
    fp, ptq = record["fp"], record["ptq"]
    what = "top-1" if fp["top1"] is not None else "agreement with full precision"
    lines = [
        f"# {record['model']['key']}, plan {record['plan']['budget'] or 'by hand'}: {what} in %",
        "",
        budget_words(record),
    ]
    if fp["top1"] is not None:
        untrained = "" if ptq is None else f"; quantized without training {ptq['top1']:.2f}"
        lines.append(f"Full precision {fp['top1']:.2f}{untrained}.")
    lines += [
        "",
        "| variant | seeds | last | 95 % interval | against full | 95 % interval | divergence | "
        "against full | 95 % interval | best | s |",
        "|---|--:|--:|---|--:|---|--:|--:|---|--:|--:|",
        *map(_line, frame.to_dict("records")),
        "",
        "Last: after the last step; best: highest of all evaluations, so it flatters. Intervals "
        "are over seeds (Student's t), without the sampling error of the evaluation images. "
        "Divergence: nats from full precision after the last step, less is better.",
    ]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[Any, Any]) -> str:
    gap = row.get("against_full")
    known = gap is not None and not math.isnan(gap)
    cells: Iterable[str] = (
        str(row["variant"]),
        str(row["seeds"]),
        f"{row['last']:.2f}",
        _span(row["last_low"], row["last_high"]),
        f"{gap:+.2f}" if known else "",
        _span(row["against_low"], row["against_high"]) if known else "",
        f"{row['kl']:.3f}",
        f"{row['kl_against_full']:+.3f}" if known else "",
        _span(row["kl_against_low"], row["kl_against_high"], 3) if known else "",
        f"{row['best']:.2f}",
        f"{row['seconds']:.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def _span(low: float, high: float, digits: int = 2) -> str:
    return "one seed" if math.isinf(low) else f"{low:.{digits}f} to {high:.{digits}f}"
