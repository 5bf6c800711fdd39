"""What ``run.json`` says: settings, models, data, warnings, and how a cut run is completed."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any

from vitsense import provenance
from vitsense.data import GENERATED, ImageSet, ImageSource, labelled_for
from vitsense.models import LoadedModel
from vitsense.settings import AnalyzeSettings, SweepMode, WeightSource

FEW_IMAGES = 500
"""Below this many evaluation images the report warns."""


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """What ``run.json`` holds, filled as the run goes on."""

    settings: AnalyzeSettings
    status: str = "running"
    models: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    commands: list[list[str]] = field(default_factory=list)
    verdict: list[str] = field(default_factory=list)
    processes: int = 1
    rows: dict[str, int] = field(default_factory=dict)
    """Of every table that was written, so that one that was cut later is known by it."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "status": self.status,
            "settings": self.settings.to_json(),
            "fingerprint": fingerprint(self),
            "provenance": {
                "versions": provenance.versions(),
                "machine": provenance.machine(),
                "seed": self.settings.seed,
                "processes": self.processes,
            },
            "models": self.models,
            "data": self.data,
            "timings": {key: round(value, 2) for key, value in self.timings.items()},
            "warnings": self.warnings,
            "commands": self.commands,
            "verdict": self.verdict,
            "rows": self.rows,
        }


def fingerprint(record: RunRecord) -> dict[str, str]:
    """Everything, by name, that must be equal for old numbers to be used again."""
    found = {f"weights of {m['key']}": m["weights_digest"] for m in record.models}
    found["evaluation images"] = record.data["evaluation_digest"]
    found["calibration images"] = record.data["calibration_digest"]
    found["vitsense version"] = provenance.versions()["vitsense"]
    return found


def describe(model: LoadedModel) -> dict[str, Any]:
    """The model's entry in ``run.json``."""
    p = model.preprocessing
    return {
        "key": model.key,
        "requested": model.request.name,
        "name": model.resolved.name,
        "source": model.resolved.source.value,
        "family": model.family.value,
        "weights": model.weights.value,
        "checkpoint": None if model.request.checkpoint is None else model.request.checkpoint.name,
        "weights_digest": model.digest,
        "num_classes": model.num_classes,
        "params": model.params,
        "input_size": list(p.input_size),
        "mean": list(p.mean),
        "std": list(p.std),
        "interpolation": p.interpolation,
        "crop_pct": p.crop_pct,
        "notes": list(model.notes),
        "fp": None,
        "seconds": None,
    }


def describe_data(
    source: ImageSource, calibration: ImageSet, evaluation: ImageSet
) -> dict[str, Any]:
    """The data's entry in ``run.json``."""
    return {
        "spec": source.spec,
        "kind": source.kind,
        "labelled": evaluation.labelled,
        "images_total": len(source),
        "calibration": len(calibration),
        "evaluation": len(evaluation),
        "calibration_spec": calibration.source.spec,
        "skipped": [*calibration.skipped, *evaluation.skipped],
        "evaluation_digest": evaluation.digest,
        "calibration_digest": calibration.digest,
    }


def warnings_of(
    settings: AnalyzeSettings,
    models: list[LoadedModel],
    source: ImageSource,
    drawn: tuple[ImageSet, ImageSet],
) -> list[str]:
    """What a reader of the numbers must know first; ``drawn`` calibrates and evaluates."""
    evaluation = drawn[1]
    found = []
    random = [m.key for m in models if m.request.weights is WeightSource.RANDOM]
    if random:
        found.append(
            f"Random weights ({', '.join(random)}): the numbers show the mechanics only and say "
            "nothing about trained models."
        )
    if settings.mode is SweepMode.HESSIAN:
        found.append(
            "Divergences of single modules are estimates (mode hessian), not measurements, and "
            "single modules have no drop. Traces of Hessians, as HAWQ-V2 uses them, rank modules "
            "less well than --mode fast where both were compared; whole plans are measured."
        )
    if settings.mode is SweepMode.FAST:
        found.append(
            "Divergences of single modules are estimates from gradients (mode fast), not "
            "measurements, and single modules have no drop. Their order is good; one value can be "
            "wrong by a factor of two or three, more below 4 bits, where estimates are combined "
            "with a measurement on a few images. Whole plans are measured."
        )
    if source.kind == GENERATED:
        found.append(
            "Generated images (printed characters), not photographs: the numbers hold for this "
            "data set only."
        )
    unlabelled = [m.key for m in models if not labelled_for(source, m)]
    if unlabelled:
        found.append(
            f"No labels for {', '.join(unlabelled)}: agreement with the full-precision model takes "
            "the place of accuracy everywhere."
        )
    if len(evaluation) < FEW_IMAGES:
        found.append(
            f"Only {len(evaluation)} evaluation images: intervals are wide; {FEW_IMAGES} or more "
            "are advised."
        )
    if len(evaluation) < settings.images:
        found.append(f"{settings.images} images were asked for, {len(evaluation)} were there.")
    skipped = sum(len(images.skipped) for images in drawn)
    if skipped:
        found.append(f"{skipped} images could not be read and were left out.")
    return found


def completed_by(command: list[str]) -> str:
    """How a run that a time budget cut is completed."""
    whole = provenance.without_option(command, "--budget-time")
    if len(whole) == len(command):  # called from Python
        return "This run is not complete: the same settings without budget_time complete it."
    return (
        "This run is not complete. Nothing that was measured is measured again by the command "
        f"that completes it: {shlex.join(whole)}"
    )
