"""Write the report of a training, or of an ablation, that belongs to no run."""

from __future__ import annotations

from pathlib import Path

from vitsense.report.charts import chart_picture
from vitsense.report.compose_training import compose_training
from vitsense.report.html import render_training_html
from vitsense.report.pdf import render_training_pdf
from vitsense.report.summary import render_training_markdown
from vitsense.runfolder import RunFolder, atomic_write, json_text
from vitsense.trainings import finished_in


def write_training(
    folder: Path,
    out: Path | None = None,
    *,
    html: bool = True,
    pdf: bool = True,
    markdown: bool = False,
    paper: str = "a4",
) -> list[Path]:
    """Render ``training.json``, ``training.html`` and ``training.pdf``.

    Args:
        folder: Of a finished training, or of an ablation.
        out: Folder for the files, made if it is not there; None is ``folder``.
        html: Write ``training.html``.
        pdf: Write ``training.pdf``.
        markdown: Write ``training.md``, a summary for a pull request.
        paper: Of the PDF: ``a4`` or ``us-letter``.

    Returns:
        The files, ``training.json`` first.

    Raises:
        InputMissingError: the folder holds no training, or typst is not installed.
        UserInputError: the training is not finished or damaged, or ``out`` cannot be written.
    """
    document = compose_training(finished_in(folder))
    where = folder if out is None else RunFolder.at(out).path
    keys = [model.key for model in document.models]
    charts = [c for m in document.models for section in m.chapters for c in section.charts]
    drawn = {c.name: chart_picture(c, keys) for c in charts} if html or pdf else {}
    written = [where / "training.json"]
    atomic_write(written[0], json_text(document.to_json()))
    if html:
        written.append(where / "training.html")
        atomic_write(written[-1], render_training_html(document, drawn))
    if pdf:
        written.append(where / "training.pdf")
        atomic_write(written[-1], render_training_pdf(document, drawn, paper=paper))
    if markdown:
        written.append(where / "training.md")
        atomic_write(written[-1], render_training_markdown(document))
    return written
