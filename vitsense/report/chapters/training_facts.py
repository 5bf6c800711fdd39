"""How one training was done: recipe, images, rates, and how to have it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from vitsense.decimals import counted
from vitsense.report.chapters.training_table import learned_from, nats
from vitsense.report.formatters import short
from vitsense.report.section import Facts
from vitsense.trainings import FOLDER, TrainingFolder

CURVE = 4
"""Logged losses that a curve needs."""


def facts_of(folder: TrainingFolder, record: Mapping[str, Any], name: str) -> Facts:
    """Recipe, images, rates, start, command and files of a training."""
    recipe, data = record["recipe"], record["data"]
    crops = counted(recipe["crops"], "crop")
    rows = [
        ("Recipe", f"{recipe['name']} {recipe['version']}: {recipe['about']}"),
        ("Source", recipe["source"]),
        ("Learned from", f"{learned_from(record)}; {crops} of an image per step"),
        ("Training images", f"{data['images']:,} of {data['spec']}"),
        ("Learning rate", f"{recipe['lr']:g}, cosine to {recipe['min_lr']:g}"),
        ("Regularizer", _regularizer(record)),
        *_few_losses(folder),
        *at_rest(folder),
        ("Speed", f"{record['crops_per_second']:.0f} crops/s on {record['device']}"),
        *_start(record),
        *_again(folder, record),
    ]
    return Facts(title=f"Training {name}: how it was done", rows=tuple(rows))


def _again(folder: TrainingFolder, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How to have it again, and where it lies."""
    plan, commands = record["plan"], record.get("commands") or ()
    made = f"solved for {plan['budget']}, " if plan.get("budget") else ""
    inside = folder.run_path is not None
    where = f"{FOLDER}/{folder.name} in the folder of this run" if inside else folder.name
    return [
        ("Plan", f"{made}kept as plan.json with the training"),
        *(("Command", shlex.join(words)) for words in commands[-1:]),
        ("Files", f"{where}: last.safetensors (what was trained), qat.json, metrics.jsonl, ..."),
    ]


_REGULARIZERS = {
    "obr": "bin regularization (obr)",
    "obr_mean": "bin regularization, as published (obr_mean)",
    "dampen": "dampening",
}


def _start(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Why the curve does not begin at the plan without training."""
    said = record.get("calibration", {}).get("start")
    return [("Start", str(said))] if said else []


def _few_losses(folder: TrainingFolder) -> list[tuple[str, str]]:
    """Losses that are too few for a curve."""
    rows = folder.metrics("train")
    if not 0 < len(rows) < CURVE:
        return []
    said = ", ".join(f"{nats(row['loss'])} at step {row['step']}" for row in rows)
    return [("Training loss (nats)", said)]


def at_rest(folder: TrainingFolder) -> list[tuple[str, str]]:
    """That nothing oscillated, which needs no picture."""
    rows = folder.metrics("oscillation")
    if not rows or any(row["all"] or any(row["share"].values()) for row in rows):
        return []
    looks = counted(len(rows), "look")
    limit = f"{rows[-1]['threshold']:g}"
    return [("Oscillation", f"none: no weight flips more often than {limit} per step, at {looks}")]


def _regularizer(record: Mapping[str, Any]) -> str:
    recipe, ratio = record["recipe"], record["gradient_ratio"]
    if recipe["regularizer"] == "none":
        return "none"
    called = _REGULARIZERS.get(recipe["regularizer"], recipe["regularizer"])
    text = f"{called}, strength {recipe['strength']:g}"
    if ratio is None:
        return text
    return f"{text}; its gradient is {short(ratio)} of the task's (median over logged steps)"
