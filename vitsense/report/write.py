"""Write the report's files into the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitsense.report.compose import compose
from vitsense.report.figures import pictures
from vitsense.report.html import render_html
from vitsense.report.pdf import render_pdf
from vitsense.report.summary import render_markdown
from vitsense.report.tables import write_parquet_tables
from vitsense.runfolder import RunFolder, atomic_write, json_text


def write_report(
    run: RunFolder,
    out: Path | None = None,
    *,
    trainings: Sequence[Path] = (),
    html: bool = True,
    pdf: bool = True,
    markdown: bool = False,
    paper: str = "a4",
    parquet: bool = False,
) -> list[Path]:
    """Render ``report.json``, ``report.html`` and ``report.pdf`` from the run's tables.

    Args:
        run: Must hold finished measurements.
        out: Folder for the files, made if it is not there; None is the run's own. With another one
            the run is only read.
        trainings: Folders of more trainings and ablations of its models, which lie elsewhere.
        html: Write ``report.html``.
        pdf: Write ``report.pdf``.
        markdown: Write ``report.md``, a summary for a pull request.
        paper: Of the PDF: ``a4`` or ``us-letter``.
        parquet: Write every table as ``<table>.parquet`` too.

    Returns:
        The files, ``report.json`` first.

    Raises:
        InputMissingError: nothing was measured yet, a folder holds no training, or typst or
            pyarrow is not installed.
        UserInputError: a file of the run is damaged, a training is not finished, or the folder
            cannot be written.
        SiteMismatchError: a training of other weights than the run's.
    """
    document = compose(run, trainings)
    drawn = pictures(document) if html or pdf else {}
    folder = run.path if out is None else RunFolder.at(out).path
    written = [folder / "report.json"]
    atomic_write(written[0], json_text(document.to_json()))
    if html:
        written.append(folder / "report.html")
        atomic_write(written[-1], render_html(document, drawn))
    if pdf:
        written.append(folder / "report.pdf")
        atomic_write(written[-1], render_pdf(document, drawn, paper=paper))
    if markdown:
        written.append(folder / "report.md")
        atomic_write(written[-1], render_markdown(document))
    if parquet:
        written += write_parquet_tables(run, folder)
    return written
