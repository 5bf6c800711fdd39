"""``vitsense report``: render a run, without torch."""

from __future__ import annotations

import click

from vitsense.cli_output import (
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
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
@json_option
@debug_option
def report(*, run: str | None, html: bool, pdf: bool, show: bool, as_json: bool) -> None:
    """Write the report of RUN (default: the newest in vitsense-runs) into its folder."""
    found = find_run(run)
    from vitsense.report import write_report

    both = html == pdf
    written = write_report(found, html=html or both, pdf=pdf or both)
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
