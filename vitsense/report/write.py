"""Write the report's files into the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitsense.report.compose import compose
from vitsense.report.figures import pictures
from vitsense.report.html import render_html
from vitsense.report.pdf import render_pdf
from vitsense.report.summary import render_markdown
from vitsense.report.tables import write_parquet_tables
from vitsense.runfolder import atomic_write, json_text

if TYPE_CHECKING:
    from vitsense.runfolder import RunFolder


def write_report(
    run: RunFolder,
    *,
    html: bool = True,
    pdf: bool = True,
    markdown: bool = False,
    paper: str = "a4",
    parquet: bool = False,
) -> list[Path]:
    """Render ``report.json``, ``report.html`` and ``report.pdf`` from the run's tables.

    Args:
        run: Must hold finished measurements.
        html: Write ``report.html``.
        pdf: Write ``report.pdf``.
        markdown: Write ``report.md``, a summary for a pull request.
        paper: Of the PDF: ``a4`` or ``us-letter``.
        parquet: Write every table as ``<table>.parquet`` beside its CSV.

    Returns:
        The files, ``report.json`` first.

    Raises:
        InputMissingError: nothing was measured yet, or typst or pyarrow is not installed.
        UserInputError: a file of the run is damaged, or the folder cannot be written.
    """
    document = compose(run)
    drawn = pictures(document) if html or pdf else {}
    written = [run.path / "report.json"]
    atomic_write(written[0], json_text(document.to_json()))
    if html:
        written.append(run.path / "report.html")
        atomic_write(written[-1], render_html(document, drawn))
    if pdf:
        written.append(run.path / "report.pdf")
        atomic_write(written[-1], render_pdf(document, drawn, paper=paper))
    if markdown:
        written.append(run.path / "report.md")
        atomic_write(written[-1], render_markdown(document))
    if parquet:
        written += write_parquet_tables(run)
    return written
