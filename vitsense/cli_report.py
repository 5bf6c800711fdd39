"""``vitsense report``: render a run, or compare two, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitsense.cli_output import (
    check_drop,
    debug_option,
    emit,
    emit_json,
    find_run,
    json_option,
    say,
    summary,
)
from vitsense.errors import UserInputError
from vitsense.trainings import AblationFolder, TrainingFolder

if TYPE_CHECKING:
    from vitsense.runfolder import RunFolder


@click.command(short_help="Write report.html and report.pdf of a run, or compare two runs.")
@click.argument("runs", nargs=-1, metavar="[RUN [SECOND]]")
@click.option(
    "--training",
    "trainings",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    multiple=True,
    help="A training (or an ablation) of the run's model that lies elsewhere: put it into the "
    "report of RUN; may be repeated.",
)
@click.option("--html", is_flag=True, help="Only the HTML.")
@click.option("--pdf", is_flag=True, help="Only the PDF.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(["html", "pdf", "md"]),
    multiple=True,
    help="Only these; may be repeated. md: a summary for a pull request.",
)
@click.option(
    "--paper",
    type=click.Choice(["a4", "letter"]),
    default="a4",
    show_default=True,
    help="Of the PDF.",
)
@click.option(
    "--tables",
    type=click.Choice(["csv", "parquet"]),
    default="csv",
    show_default=True,
    help="parquet: the run's tables as Parquet too, with the report (needs pyarrow).",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write the files here [default: RUN; of two runs: "
    "vitsense-runs/comparisons/RUN-to-SECOND].",
)
@click.option("--model", metavar="KEY", help="Of a comparison: only this model.")
@click.option(
    "--fail-if-drop",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Exit with 1 if the plan within the budget of the first model (of SECOND) loses more.",
)
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
@json_option
@debug_option
def report(
    *,
    runs: Sequence[str],
    trainings: Sequence[Path],
    html: bool,
    pdf: bool,
    formats: Sequence[str],
    paper: str,
    tables: str,
    out: Path | None,
    model: str | None,
    fail_if_drop: float | None,
    show: bool,
    as_json: bool,
) -> None:
    """Write the report of RUN (default: the newest in vitsense-runs) into its folder or --out.

    With two runs of one model: what changed from RUN to SECOND, in a folder of its own. The runs
    may differ in weights, images, settings or version.

    RUN may be the folder of a training: inside of a run, that run's report is written; else a
    report of the training alone (training.html, training.pdf).
    """
    wanted = set(formats) | ({"html"} if html else set()) | ({"pdf"} if pdf else set())
    wanted = wanted or {"html", "pdf"}
    options: dict[str, Any] = {
        "html": "html" in wanted,
        "pdf": "pdf" in wanted,
        "markdown": "md" in wanted,
        "paper": "us-letter" if paper == "letter" else paper,
        "parquet": tables == "parquet",
    }
    alone = _training_alone(runs)
    found = [] if alone is not None else _found(runs)
    if alone is None:
        written = _written(found, out, model, trainings, options)
    else:
        _refuse_with_training(alone, model, trainings, fail_if_drop, parquet=options["parquet"])
        written = _written_alone(alone, out, options)
    if as_json:
        told = {"out_dir": str(written[0].parent)} if alone is not None else summary(found[-1])
        emit_json("complete", {**told, "written": [str(path) for path in written]})
    else:
        for path in written:
            emit(str(path))
    if show:
        import webbrowser

        page = written[1]  # after the JSON: the HTML, or the PDF when that alone was asked for
        if not webbrowser.open(page.resolve().as_uri()):
            say(f"No browser could be started; open {page} yourself.")
    if fail_if_drop is not None:
        check_drop(found[-1], fail_if_drop)


def _found(runs: Sequence[str]) -> list[RunFolder]:
    if len(runs) > 2:
        raise UserInputError(
            f"{len(runs)} runs were given: name one for its report, or two to compare them."
        )
    return [_run_of(run) for run in runs or (None,)]


def _run_of(text: str | None) -> RunFolder:
    """The run that was named, also by the folder of one of its trainings."""
    if text is not None and (inside := TrainingFolder(Path(text)).run_path) is not None:
        return find_run(str(inside))
    return find_run(text)


def _training_alone(runs: Sequence[str]) -> Path | None:
    """The folder of a training or an ablation that lies in no run; None: something else."""
    if len(runs) != 1:
        return None
    path = Path(runs[0])
    started = TrainingFolder(path).started or AblationFolder(path).started
    return path if started and TrainingFolder(path).run_path is None else None


def _refuse_with_training(
    alone: Path,
    model: str | None,
    trainings: Sequence[Path],
    fail_if_drop: float | None,
    *,
    parquet: bool,
) -> None:
    given = {
        "--model": model is not None,
        "--training": bool(trainings),
        "--fail-if-drop": fail_if_drop is not None,
        "--tables parquet": parquet,
    }
    wrong = [option for option, there in given.items() if there]
    if wrong:
        raise UserInputError(
            f"{wrong[0]} is for the report of a run, and {alone} is a training in none. With its "
            f"run: vitsense report RUN --training {alone}"
        )


def _written_alone(alone: Path, out: Path | None, options: dict[str, Any]) -> list[Path]:
    from vitsense.report import write_training

    kept = {key: value for key, value in options.items() if key != "parquet"}
    return write_training(alone, out, **kept)


def _written(
    found: Sequence[RunFolder],
    out: Path | None,
    model: str | None,
    trainings: Sequence[Path],
    options: dict[str, Any],
) -> list[Path]:
    from vitsense.report import write_comparison, write_report

    if len(found) == 2 and trainings:
        raise UserInputError("--training is for the report of one run; leave SECOND out.")
    if len(found) == 2:
        return write_comparison(found[0], found[1], out, model=model, **options)
    if model is not None:
        raise UserInputError(
            "--model is for a comparison: name a second run. The report of one run holds all its "
            "models."
        )
    return write_report(found[0], out, trainings=trainings, **options)
