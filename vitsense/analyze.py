"""One run from models to plans: the order of the stages, what is kept, and how a run continues."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vitsense import provenance
from vitsense.analyze_budget import refuse_impossible_budgets
from vitsense.analyze_folder import find_folder, folder_of_team, state_of_team
from vitsense.analyze_model import analyze_model
from vitsense.analyze_record import (
    RunRecord,
    completed_by,
    describe,
    describe_data,
    fingerprint,
    warnings_of,
)
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
from vitsense.errors import TooLittleTimeError, UserInputError
from vitsense.in_use import sole_writer
from vitsense.model_names import resolve_name
from vitsense.models import LoadedModel, load_model
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.runfolder import DEFAULT_ROOT, RunFolder
from vitsense.settings import AnalyzeSettings
from vitsense.team import Team, joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def run_analysis(
    settings: AnalyzeSettings,
    *,
    out: Path | None = None,
    root: Path = DEFAULT_ROOT,
    progress: Progress = NO_PROGRESS,
    command: list[str] | None = None,
    team: Team | None = None,
    since: float | None = None,
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
        since: From when a time budget counts, by ``time.monotonic``; None: from now.

    Raises:
        InUseError: another process measures in ``out``, or continues the same run.
        StaleResultError: ``out`` holds results of other settings, weights, data or version.
        VitsenseError: see `vitsense.errors`.
    """
    if team is not None:
        return _alone(settings, out, root, progress, command, team, since)
    with joined() as processes:
        heard = progress if processes.first else NO_PROGRESS
        return _alone(settings, out, root, heard, command, processes, since)


def _alone(
    settings: AnalyzeSettings,
    out: Path | None,
    root: Path,
    progress: Progress,
    command: list[str] | None,
    team: Team,
    since: float | None,
) -> RunFolder:
    """The run, whose folder the first process locks: one that was named before anything is read."""
    deadline = Deadline.after(settings.budget_time, since=since)
    with ExitStack() as held:

        def lock(path: Path) -> None:
            held.enter_context(sole_writer(path, progress))

        if team.first and out is not None:
            lock(out)
        return _run(settings, out, root, progress, command, team, deadline, lock)


def _run(
    settings: AnalyzeSettings,
    out: Path | None,
    root: Path,
    progress: Progress,
    command: list[str] | None,
    team: Team,
    deadline: Deadline,
    lock: Callable[[Path], None],
) -> RunFolder:
    device = pick_device(settings.device, team.place.local_rank)
    for request in (settings.model, *settings.compares):
        resolve_name(request.name)  # a wrong name is said before anything is read or fetched
    source = open_source(settings.data, at_most=settings.images + settings.calibration)
    models = _load_models(settings, device)
    calibration, evaluation = _images(settings, source, models)
    refuse_impossible_budgets(settings, models, calibration, device)
    record = RunRecord(settings=settings, commands=[command or provenance.command_line()])
    record.processes = team.place.size
    record.models = [describe(model) for model in models]
    record.data = describe_data(source, calibration, evaluation)
    record.warnings = warnings_of(settings, models, source, (calibration, evaluation))
    prints = fingerprint(record)

    def find() -> RunFolder:
        found = find_folder(settings, prints, out, root)
        if out is None:
            lock(found.path)
        _say_continuing(found, progress)
        return found

    run = folder_of_team(team, find)
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
                record.rows = _write_tables(run, tables)
                found.plan.save(run.plan_path(None if model is models[0] else model.key))
            _write_run(run, record)
        if deadline.came:
            record.warnings.append(completed_by(record.commands[-1]))
    return run


def _say_continuing(run: RunFolder, progress: Progress) -> None:
    if (run.path / "run.json").is_file():
        whole = run.read_run().get("status") == "complete"
        how = "is complete: what it measured is used again" if whole else "was not finished"
        progress.note(f"{run.path} {how}." if whole else f"Continuing {run.path}, which {how}.")


def _write_run(run: RunFolder, record: RunRecord) -> None:
    if run.rank == 0:
        run.write_run(record.to_json())


@contextmanager
def _status_kept(run: RunFolder, record: RunRecord, deadline: Deadline) -> Iterator[None]:
    """Write how the run ended, whatever ended it; one that a deadline cut can be continued."""
    try:
        yield
    except BaseException as error:
        record.status = "interrupted"
        if isinstance(error, TooLittleTimeError):  # its tables are of this model alone
            record.rows = {}
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


def _write_tables(run: RunFolder, tables: list[ModelTables]) -> dict[str, int]:
    """Write them, and count their rows."""
    import pandas as pd

    rows = {}
    for name in tables[0].frames:
        frame = pd.concat([t.frames[name] for t in tables], ignore_index=True)
        run.write_table(name, frame)
        rows[name] = len(frame)
    for name in tables[0].arrays:
        run.write_arrays(name, {k: v for t in tables for k, v in t.arrays[name].items()})
    return rows
