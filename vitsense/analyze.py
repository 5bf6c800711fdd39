"""One run from models to plans: the order of the stages, what is kept, and how a run continues."""

from __future__ import annotations

import shlex
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vitsense import provenance
from vitsense.analyze_folder import find_folder, folder_of_team, state_of_team
from vitsense.analyze_model import analyze_model
from vitsense.analyze_tables import ModelTables
from vitsense.data import (
    GENERATED,
    Draw,
    ImageSet,
    ImageSource,
    check_labels,
    draw_images,
    labelled_for,
    open_source,
)
from vitsense.deadline import Deadline
from vitsense.errors import UserInputError
from vitsense.model_names import resolve_name
from vitsense.models import LoadedModel, load_model
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.runfolder import DEFAULT_ROOT, RunFolder
from vitsense.settings import AnalyzeSettings, SweepMode, WeightSource
from vitsense.team import Team, joined

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        }


def fingerprint(record: RunRecord) -> dict[str, str]:
    """Everything, by name, that must be equal for old numbers to be used again."""
    found = {f"weights of {m['key']}": m["weights_digest"] for m in record.models}
    found["evaluation images"] = record.data["evaluation_digest"]
    found["calibration images"] = record.data["calibration_digest"]
    found["vitsense version"] = provenance.versions()["vitsense"]
    return found


def run_analysis(
    settings: AnalyzeSettings,
    *,
    out: Path | None = None,
    root: Path = DEFAULT_ROOT,
    progress: Progress = NO_PROGRESS,
    command: list[str] | None = None,
    team: Team | None = None,
) -> RunFolder:
    """Measure, compare and plan; continue where an interrupted run of equal settings stopped.

    Started by torchrun, the processes share the work; the first one writes the tables.

    Args:
        settings: What to measure.
        out: The run folder; None makes one below ``root``, or continues an unfinished equal one.
        root: Where new runs go.
        progress: Told of everything that takes long.
        command: The command line, for the report.
        team: The processes that share the work; None: those that torchrun started, if it did.

    Raises:
        StaleResultError: ``out`` holds results of other settings, weights, data or version.
        VitsenseError: see `vitsense.errors`.
    """
    if team is not None:
        return _run(settings, out, root, progress, command, team)
    with joined() as processes:
        heard = progress if processes.first else NO_PROGRESS
        return _run(settings, out, root, heard, command, processes)


def _run(
    settings: AnalyzeSettings,
    out: Path | None,
    root: Path,
    progress: Progress,
    command: list[str] | None,
    team: Team,
) -> RunFolder:
    deadline = Deadline.after(settings.budget_time)
    device = pick_device(settings.device, team.place.local_rank)
    for request in (settings.model, *settings.compares):
        resolve_name(request.name)  # a wrong name is said before anything is read or fetched
    source = open_source(settings.data, at_most=settings.images + settings.calibration)
    models = _load_models(settings, device)
    calibration, evaluation = _images(settings, source, models)
    record = RunRecord(settings=settings, commands=[command or provenance.command_line()])
    record.processes = team.place.size
    record.models = [describe(model) for model in models]
    record.data = describe_data(source, calibration, evaluation)
    record.warnings = warnings_of(settings, models, source, (calibration, evaluation))
    prints = fingerprint(record)
    run = folder_of_team(team, lambda: find_folder(settings, prints, out, root, progress))
    for model in models:
        for note in model.notes:
            progress.note(note)
    with _status_kept(run, record, deadline):
        _write_run(run, record)
        tables: list[ModelTables] = []
        state = state_of_team(run, team)
        for model, entry in zip(models, record.models, strict=True):
            progress.note(f"{model.key}: {model.resolved.name}, {model.params:,} parameters")
            started = time.monotonic()
            labelled = labelled_for(source, model)
            images = evaluation if labelled else evaluation.without_labels()
            until = deadline.part(1 / (len(models) - len(tables)))
            found = analyze_model(
                model, settings, calibration, images, run, state, device, progress, until, team
            )
            deadline.came |= until.came
            entry.update(fp=found.fp, seconds=round(time.monotonic() - started, 2), **found.facts)
            record.timings[model.key] = time.monotonic() - started
            record.verdict += found.verdict
            record.warnings += found.warnings
            tables.append(found)
            if team.first:
                _write_tables(run, tables)
                found.plan.save(run.plan_path(None if model is models[0] else model.key))
            _write_run(run, record)
        if deadline.came:
            record.warnings.append(_completed_by(record.commands[-1]))
    return run


def _completed_by(command: list[str]) -> str:
    """How a run that a time budget cut is completed."""
    whole = provenance.without_option(command, "--budget-time")
    if len(whole) == len(command):  # called from Python
        return "This run is not complete: the same settings without budget_time complete it."
    return (
        "This run is not complete. Nothing that was measured is measured again by the command "
        f"that completes it: {shlex.join(whole)}"
    )


def _write_run(run: RunFolder, record: RunRecord) -> None:
    if run.rank == 0:
        run.write_run(record.to_json())


@contextmanager
def _status_kept(run: RunFolder, record: RunRecord, deadline: Deadline) -> Iterator[None]:
    """Write how the run ended, whatever ended it; one that a deadline cut can be continued."""
    try:
        yield
    except BaseException:
        record.status = "interrupted"
        _write_run(run, record)
        raise
    record.status = "interrupted" if deadline.came else "complete"
    _write_run(run, record)


def pick_device(text: str, local_rank: int = 0) -> torch.device:
    """``auto`` is the first GPU if there is one; of several processes, each takes one in turn.

    Args:
        text: auto, cpu, cuda, cuda:1, ...
        local_rank: Number of the process on its machine.

    Raises:
        UserInputError: the device is unknown or not there.
    """
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    if text == "cuda" and torch.cuda.is_available() and local_rank:
        text = f"cuda:{local_rank % torch.cuda.device_count()}"
    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserInputError(
            f"The device {text!r} cannot be used ({reason}); use cpu, cuda, cuda:0 or auto."
        ) from error
    return device


def _load_models(settings: AnalyzeSettings, device: torch.device) -> list[LoadedModel]:
    loaded: list[LoadedModel] = []
    for request in (settings.model, *settings.compares):
        model = load_model(request, device)
        taken = [other.key for other in loaded]
        if model.key in taken:
            number = 2 + sum(key.startswith(f"{model.key}#") for key in taken)
            model = load_model(request, device, key=f"{model.key}#{number}")
        loaded.append(model)
    return loaded


def _images(
    settings: AnalyzeSettings, source: ImageSource, models: list[LoadedModel]
) -> tuple[ImageSet, ImageSet]:
    for model in models:
        if labelled_for(source, model) and source.kind != GENERATED:
            check_labels(source, model.num_classes, model.key)
    draw = Draw(
        evaluation=settings.images,
        calibration=settings.calibration,
        seed=settings.seed,
        strict=settings.strict,
    )
    other = None
    if settings.calibration_data is not None:
        other = open_source(settings.calibration_data)
    return draw_images(source, draw, other)


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


def _write_tables(run: RunFolder, tables: list[ModelTables]) -> None:
    import pandas as pd

    for name in tables[0].frames:
        run.write_table(name, pd.concat([t.frames[name] for t in tables], ignore_index=True))
    for name in tables[0].arrays:
        run.write_arrays(name, {k: v for t in tables for k, v in t.arrays[name].items()})
