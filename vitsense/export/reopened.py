"""A model of a run loaded again, with the run's images, if both are still those it measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitsense.data import Draw, ImageSet, ImageSource, draw_images, open_source
from vitsense.errors import SiteMismatchError, StaleResultError
from vitsense.models import LoadedModel, load_model
from vitsense.runfolder import RunFolder
from vitsense.settings import (
    Granule,
    ModelRequest,
    ProbsGrid,
    QuantSettings,
    RangeChoice,
    WeightSource,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reopened:
    """What a run's stages begin with."""

    record: Mapping[str, Any]
    """``run.json``."""
    number: int
    """The model's place in the run."""
    entry: Mapping[str, Any]
    """The model's entry in ``run.json``."""
    request: ModelRequest
    loaded: LoadedModel
    source: ImageSource
    calibration: ImageSet
    evaluation: ImageSet
    quant: QuantSettings

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the run, as ``run.json`` has them."""
        found: Mapping[str, Any] = self.record["settings"]
        return found


def reopen(run: RunFolder, *, model: str | None, device: torch.device) -> Reopened:
    """Load a model of a run and draw its images again.

    Args:
        run: A finished run.
        model: Its key; None is the first.
        device: Where the model is put.

    Raises:
        SiteMismatchError: no such model.
        StaleResultError: weights or calibration images are no longer those of the run.
        InputMissingError: weights or images are not there.
    """
    record = run.read_run()
    number, entry = _entry(record, run, model)
    settings, key = record["settings"], entry["key"]
    request = _request([settings["model"], *settings["compares"]][number])
    loaded = load_model(request, device, key=key)
    if loaded.digest != entry["weights_digest"]:
        raise StaleResultError(
            f"The weights of {key} are not those the run measured (digest {loaded.digest}, then "
            f"{entry['weights_digest']}); analyze them, or bring the old file back."
        )
    source, calibration, evaluation = _images(record)
    return Reopened(
        record=record,
        number=number,
        entry=entry,
        request=request,
        loaded=loaded,
        source=source,
        calibration=calibration,
        evaluation=evaluation,
        quant=_quant(settings["quant"]),
    )


def _entry(
    record: Mapping[str, Any], run: RunFolder, model: str | None
) -> tuple[int, Mapping[str, Any]]:
    keys = [entry["key"] for entry in record["models"]]
    if model is not None and model not in keys:
        raise SiteMismatchError(
            f"{run.path} has no model {model!r}; it has {', '.join(keys)}: use one with --model."
        )
    number = 0 if model is None else keys.index(model)
    return number, record["models"][number]


def _request(stored: Mapping[str, Any]) -> ModelRequest:
    checkpoint = stored["checkpoint"]
    return ModelRequest(
        name=stored["name"],
        checkpoint=None if checkpoint is None else Path(checkpoint),
        weights=WeightSource(stored["weights"]),
    )


def _quant(stored: Mapping[str, Any]) -> QuantSettings:
    return QuantSettings(
        weight_granularity=Granule(stored["weight_granularity"]),
        weight_range=RangeChoice(stored["weight_range"]),
        activation_range=RangeChoice(stored["activation_range"]),
        attention_probs=ProbsGrid(stored.get("attention_probs", ProbsGrid.UNIFORM.value)),
    )


def _images(record: Mapping[str, Any]) -> tuple[ImageSource, ImageSet, ImageSet]:
    settings = record["settings"]
    source = open_source(settings["data"], at_most=settings["images"] + settings["calibration"])
    draw = Draw(
        evaluation=settings["images"], calibration=settings["calibration"], seed=settings["seed"]
    )
    other = settings["calibration_data"]
    calibration, evaluation = draw_images(source, draw, open_source(other) if other else None)
    if calibration.digest != record["data"]["calibration_digest"]:
        raise StaleResultError(
            f"The calibration images of {source.spec} are no longer those of the run (digest "
            f"{calibration.digest}, then {record['data']['calibration_digest']}): bring them back, "
            "or analyze again."
        )
    return source, calibration, evaluation
