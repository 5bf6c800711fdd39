"""Write the report's files into the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitsense.report.compose import compose
from vitsense.report.figures import pictures
from vitsense.report.html import render_html
from vitsense.report.pdf import render_pdf
from vitsense.runfolder import atomic_write, json_text

if TYPE_CHECKING:
    from vitsense.runfolder import RunFolder


def write_report(run: RunFolder, *, html: bool = True, pdf: bool = True) -> list[Path]:
    """Render ``report.json``, ``report.html`` and ``report.pdf`` from the run's tables.

    Raises:
        InputMissingError: nothing was measured yet, or typst is not installed.
        UserInputError: a file of the run is damaged, or the folder cannot be written.
    """
    document = compose(run)
    drawn = pictures(document)
    written = [run.path / "report.json"]
    atomic_write(written[0], json_text(document.to_json()))
    if html:
        written.append(run.path / "report.html")
        atomic_write(written[-1], render_html(document, drawn))
    if pdf:
        written.append(run.path / "report.pdf")
        atomic_write(written[-1], render_pdf(document, drawn))
    return written
