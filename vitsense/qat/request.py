"""What a training is asked to do, and where its model and images come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsense.errors import InputMissingError, SiteMismatchError, StaleResultError, UserInputError
from vitsense.plan.plan import Plan
from vitsense.qat.recipes import Recipe
from vitsense.runfolder import RunFolder
from vitsense.settings import ModelRequest, WeightSource
from vitsense.trainings import TrainingFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class QatRequest:
    """Everything that decides the numbers of a training, and a few things that do not."""

    plan: Plan
    model: ModelRequest
    recipe: Recipe
    data: str | None = None
    """Training images; None: generated characters."""
    images: int | None = None
    """At most so many of them."""
    eval_data: str | None = None
    eval_images: int = 1000
    eval_calibration: int = 128
    """As the analysis of the plan drew them, so that evaluation images are the same."""
    eval_seed: int = 0
    eval_batch: int = 64
    """Evaluation images at once; that of the analysis, for sums that are equal bit for bit."""
    calibration_data: str | None = None
    """Where the analysis took its calibration images from, if not from the evaluation data."""
    analyzed_calibration: str = ""
    """Digest of the calibration images of the plan's run; empty: the plan has no run."""
    analyzed_evaluation: str = ""
    """Digest of its evaluation images."""
    labels: Path | None = None
    """A label bank."""
    teacher: ModelRequest | None = None
    device: str = "auto"
    sensitivity_images: int = 0
    """Evaluation images on which each module alone is measured before and after; 0: not at all."""
    workers: int = 0
    tensorboard: bool = False
    checkpoint_steps: int | None = None
    """Steps between checkpoints; None: about a minute."""

    def __post_init__(self) -> None:
        """Check what depends on several values.

        Raises:
            UserInputError: values contradict each other or are out of range.
        """
        if self.labels is not None and self.teacher is not None:
            raise UserInputError(
                "--labels and --teacher contradict each other: a bank holds its teacher's answers."
            )
        for name, value, least in (
            ("--eval-images", self.eval_images, 1),
            ("--workers", self.workers, 0),
            ("--sensitivity-images", self.sensitivity_images, 0),
        ):
            if value < least:
                raise UserInputError(f"{name} is {value}: it must be at least {least}.")

    def to_json(self) -> dict[str, Any]:
        """Plain values of what decides the numbers."""
        return {
            "model": self.model.name,
            "data": self.data,
            "images": self.images,
            "eval_data": self.eval_data,
            "eval_images": self.eval_images,
            "eval_seed": self.eval_seed,
            "labels": None if self.labels is None else str(self.labels),
            "teacher": None if self.teacher is None else self.teacher.name,
        }


def refuse_changed(
    earlier: Mapping[str, Any], now: Mapping[str, Any], folder: TrainingFolder
) -> None:
    """Refuse to go on with other settings.

    Args:
        earlier: ``qat.json`` of the training so far.
        now: The record the training would have.
        folder: Where it lies.

    Raises:
        StaleResultError: naming the settings that differ, with both values.
    """
    differing = []
    for part in ("settings", "recipe", "fingerprint"):
        old, new = earlier.get(part, {}), now[part]
        keys = sorted(k for k in old.keys() | new.keys() if k not in _NOT_COMPARED)
        differing += [
            f"{key} ({_value(old.get(key))} then, {_value(new.get(key))} now)"
            for key in keys
            if old.get(key) != new.get(key)
        ]
    if differing:
        raise StaleResultError(
            f"{folder.path} holds a training with other settings; different are: "
            f"{', '.join(differing)}. Use the same ones, or another {folder.another}."
        )


_NOT_COMPARED = {"about", "source", "schema", "name"}
"""Words about a recipe that do not decide its numbers."""


def _value(value: object) -> str:
    """A setting as a person writes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(_value, value))
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "default"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


_BATCH = 64  # images at once, where a run does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What the run of a plan says about its model and images."""

    model: ModelRequest
    data: str | None
    images: int
    calibration: int
    seed: int
    calibration_data: str | None
    batch: int
    """Images at once."""
    calibration_digest: str
    evaluation_digest: str

    def drawing(self) -> dict[str, Any]:
        """How its images were drawn, as fields of a `QatRequest`."""
        return {
            "eval_calibration": self.calibration,
            "eval_seed": self.seed,
            "eval_batch": self.batch,
            "calibration_data": self.calibration_data,
            "analyzed_calibration": self.calibration_digest,
            "analyzed_evaluation": self.evaluation_digest,
        }


def origin_of(plan: Plan, run: RunFolder, *, checkpoint: Path | None = None) -> Origin:
    """The model and the evaluation images that a plan was made with.

    Args:
        plan: Whose weights are looked for.
        run: The run that holds them.
        checkpoint: The weights' file, if it is not where it was.

    Raises:
        SiteMismatchError: the run measured no model of the plan's weights.
    """
    record = run.read_run()
    settings = record["settings"]
    requests = [settings["model"], *settings.get("compares", ())]
    digest, key = plan.model.get("weights_digest"), plan.model.get("key")
    data = record.get("data", {})
    entries = list(zip(record["models"], requests, strict=False))
    for entry, request in entries:
        same = entry["weights_digest"] == digest if digest else entry["key"] == key
        if same or (not digest and not key and len(entries) == 1):
            return Origin(
                model=_request(request, checkpoint),
                data=settings["data"],
                images=int(settings["images"]),
                calibration=int(settings["calibration"]),
                seed=int(settings["seed"]),
                calibration_data=settings.get("calibration_data"),
                batch=int(settings.get("batch") or entry.get("batch") or _BATCH),
                calibration_digest=str(data.get("calibration_digest", "")),
                evaluation_digest=str(data.get("evaluation_digest", "")),
            )
    there = ", ".join(entry["key"] for entry, _ in entries)
    raise SiteMismatchError(
        f"The plan is for {key or 'a model'} with the weights {digest or 'unknown'}, the run "
        f"{run.path} measured {there}: name the plan's own run with --run, or give --model."
    )


def _request(stored: Mapping[str, Any], given: Path | None) -> ModelRequest:
    if given is not None:
        return ModelRequest(name=stored["name"], checkpoint=given)
    checkpoint = stored.get("checkpoint")
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise InputMissingError(
            f"The checkpoint {checkpoint} that the run was made with is not there; give it with "
            "--checkpoint."
        )
    source = WeightSource(stored.get("weights", "hub"))
    return ModelRequest(
        name=stored["name"],
        checkpoint=None if checkpoint is None else Path(checkpoint),
        weights=source if checkpoint is None else WeightSource.HUB,
    )
