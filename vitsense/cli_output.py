"""What the commands share: the session, standard output and error, and how a run is found."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from vitsense.errors import GateFailedError, InputMissingError
from vitsense.image_files import existing
from vitsense.in_use import refuse_in_use
from vitsense.progress import Progress, ProgressStyle, make_progress
from vitsense.runfolder import DEFAULT_ROOT, RunFolder
from vitsense.team import Place
from vitsense.timm_images import is_timm_spec

RESULT_SCHEMA = "vitsense.result/1"
"""Schema of what ``--json`` prints."""

_LISTED_RUNS = 10

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])


@dataclass(slots=True)
class Session:
    """One call of the program: what the error handler needs to know."""

    arguments: tuple[str, ...] = ()
    debug: bool = False
    resumable: bool = False
    """The same command continues after an interruption."""
    log: Path | None = None
    """Where an unexpected error's traceback was written."""
    place: Place = field(default_factory=Place.of_environment)
    """Which of the processes that torchrun started this is."""
    started: float = field(default_factory=time.monotonic)
    """From when a time budget counts: loading torch, models and images is in it."""
    joined: bool = False
    """The processes know of each other, and agree on who speaks."""

    @property
    def speaks(self) -> bool:
        """Whether this process tells the person; what all would say alike, only the first does."""
        return self.joined or self.place.rank == 0

    @property
    def command(self) -> str:
        """The command line that was typed."""
        return shlex.join([*self.place.launcher, *self.arguments])


def session() -> Session:
    """The session of the running command."""
    found = click.get_current_context().find_object(Session)
    return Session() if found is None else found


def say(text: str) -> None:
    """A line for the person, on standard error."""
    click.echo(_printable(text, sys.stderr.encoding), err=True)


def emit(text: str) -> None:
    """A line of the result, on standard output; a reader that went away (``| head``) is fine."""
    try:
        click.echo(_printable(text, sys.stdout.encoding))
    except BrokenPipeError:
        # what Python flushes at exit must not fail a second time
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _printable(text: str, encoding: str | None) -> str:
    """The text in characters that a stream can show; the sign of a number is never lost."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        plain = text.replace("\N{MINUS SIGN}", "-")
        return plain.encode("ascii", errors="backslashreplace").decode()
    return text


def emit_json(status: str, values: Mapping[str, Any]) -> None:
    """The result as one JSON object."""
    emit(json.dumps({"schema": RESULT_SCHEMA, "status": status, **values}, indent=1))


def debug_option(command: AnyCommand) -> AnyCommand:
    """``--debug``: show tracebacks."""

    def remember(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        found = context.find_object(Session)
        if found is not None and value:
            found.debug = True

    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=remember,
        help="Show the traceback of an error.",
    )(command)


def json_option(command: AnyCommand) -> AnyCommand:
    """``--json``: the result as JSON."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print the result as one JSON object."
    )(command)


def progress_options(command: AnyCommand) -> AnyCommand:
    """``--progress`` and ``--quiet``."""
    command = click.option(
        "-q", "--quiet", is_flag=True, help="No progress and no notes, only the result."
    )(command)
    return click.option(
        "--progress",
        "progress_style",
        type=click.Choice([style.value for style in ProgressStyle]),
        default=ProgressStyle.AUTO.value,
        show_default=True,
        help="How progress is shown on standard error; auto: bars on a terminal, else lines.",
    )(command)


@contextmanager
def showing(style: str, quiet: bool) -> Iterator[Progress]:
    """Progress of work that the same command continues after an interruption."""
    quiet = quiet or session().place.rank > 0
    progress = make_progress(ProgressStyle.NONE if quiet else ProgressStyle(style))
    session().resumable = True
    try:
        yield progress
    finally:
        progress.close()


def find_run(text: str | None) -> RunFolder:
    """The run a person means: a folder, the name of one in ``vitsense-runs``, or the newest.

    Raises:
        InputMissingError: there is no such run; the runs that are there are listed.
    """
    if text is None:
        return RunFolder.newest()
    for path in (Path(text), DEFAULT_ROOT / text):
        if (path / "run.json").is_file():
            return RunFolder.open(path)
    runs = RunFolder.all_in()[-_LISTED_RUNS:]
    if not runs:
        raise InputMissingError(
            f"{text} is not a run folder, and there is none in {DEFAULT_ROOT}; make one with "
            "vitsense analyze or vitsense demo."
        )
    names = "\n".join(f"  {run.path}" for run in reversed(runs))
    raise InputMissingError(
        f"{text} is not a run folder (no run.json in it). The newest runs are:\n{names}"
    )


def summary(run: RunFolder) -> dict[str, Any]:
    """A run for ``--json``: where it is, its files, its verdict and its warnings."""
    record = run.read_run()
    return {
        "out_dir": str(run.path),
        "artifacts": sorted(
            path.name
            for path in run.path.iterdir()
            if path.is_file() and not path.name.startswith(".")  # a lock, a file being written
        ),
        "verdict": list(record.get("verdict", ())),
        "warnings": list(record.get("warnings", ())),
        "models": [entry.get("key") for entry in record.get("models", ())],
    }


def free_folder(out: Path | None) -> None:
    """Refuse a folder that another command writes into, in a second and not after loading torch.

    Raises:
        InUseError: one does.
    """
    if out is not None and session().place.rank == 0:  # the others leave it to the first process
        refuse_in_use(out)


def present(*specs: str | None) -> None:
    """Refuse images that are not there, in a second and not after loading torch and models.

    Raises:
        InputMissingError: one of them is not there.
    """
    for spec in specs:
        if spec is not None and spec != "generated" and not is_timm_spec(spec):
            existing(spec)


def emit_verdict(run: RunFolder) -> None:
    """The run in a few lines: warnings first, then the verdict."""
    found = summary(run)
    for warning in found["warnings"]:
        emit(f"Warning: {warning}")
    if found["warnings"]:
        emit("")
    for line in found["verdict"]:
        emit(line)


def check_drop(run: RunFolder, limit: float) -> None:
    """Refuse a recommended plan of the first model that loses more than ``limit`` points.

    Raises:
        GateFailedError: it does.
    """
    from vitsense.verdict import loss_text

    key = run.read_run()["models"][0]["key"]
    joint = run.table("joint")
    row = joint[(joint["model"] == key) & (joint["plan"] == "recommended")].iloc[0]
    loss = float(row["drop"])
    if math.isnan(loss):  # without labels, agreement takes the drop's place
        loss = 100.0 - float(row["agreement"])
    if loss > limit:
        raise GateFailedError(
            f"The best plan of {key} within the budget {loss_text(row)}: more than the {limit:g} "
            "points of --fail-if-drop. Raise --budget, or look into the report."
        )
