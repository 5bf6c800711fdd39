"""``vitsense report``: render a run, without torch."""

from __future__ import annotations

from collections.abc import Sequence

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


@click.command(short_help="Write report.html and report.pdf of a run.")
@click.argument("run", required=False)
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
    "--fail-if-drop",
    type=float,
    metavar="POINTS",
    help="Exit with 1 if the recommended plan of the first model loses more.",
)
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
@json_option
@debug_option
def report(
    *,
    run: str | None,
    html: bool,
    pdf: bool,
    formats: Sequence[str],
    paper: str,
    fail_if_drop: float | None,
    show: bool,
    as_json: bool,
) -> None:
    """Write the report of RUN (default: the newest in vitsense-runs) into its folder."""
    found = find_run(run)
    from vitsense.report import write_report

    wanted = set(formats) | ({"html"} if html else set()) | ({"pdf"} if pdf else set())
    wanted = wanted or {"html", "pdf"}
    written = write_report(
        found,
        html="html" in wanted,
        pdf="pdf" in wanted,
        markdown="md" in wanted,
        paper="us-letter" if paper == "letter" else paper,
    )
    if as_json:
        emit_json("complete", {**summary(found), "written": [str(path) for path in written]})
    else:
        for path in written:
            emit(str(path))
    if show:
        import webbrowser

        page = written[1]  # after report.json: the HTML, or the PDF when that alone was asked for
        if not webbrowser.open(page.resolve().as_uri()):
            say(f"No browser could be started; open {page} yourself.")
    if fail_if_drop is not None:
        check_drop(found, fail_if_drop)
