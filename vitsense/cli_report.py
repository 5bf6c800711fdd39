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

if TYPE_CHECKING:
    from vitsense.runfolder import RunFolder


@click.command(short_help="Write report.html and report.pdf of a run, or compare two runs.")
@click.argument("runs", nargs=-1, metavar="[RUN [SECOND]]")
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
    help="Exit with 1 if the recommended plan of the first model (of SECOND) loses more.",
)
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
@json_option
@debug_option
def report(
    *,
    runs: Sequence[str],
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
    """
    found = _found(runs)
    wanted = set(formats) | ({"html"} if html else set()) | ({"pdf"} if pdf else set())
    wanted = wanted or {"html", "pdf"}
    options: dict[str, Any] = {
        "html": "html" in wanted,
        "pdf": "pdf" in wanted,
        "markdown": "md" in wanted,
        "paper": "us-letter" if paper == "letter" else paper,
        "parquet": tables == "parquet",
    }
    written = _written(found, out, model, options)
    if as_json:
        emit_json("complete", {**summary(found[-1]), "written": [str(path) for path in written]})
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
    return [find_run(run) for run in runs or (None,)]


def _written(
    found: Sequence[RunFolder], out: Path | None, model: str | None, options: dict[str, Any]
) -> list[Path]:
    from vitsense.report import write_comparison, write_report

    if len(found) == 2:
        return write_comparison(found[0], found[1], out, model=model, **options)
    if model is not None:
        raise UserInputError(
            "--model is for a comparison: name a second run. The report of one run holds all its "
            "models."
        )
    return write_report(found[0], out, **options)
