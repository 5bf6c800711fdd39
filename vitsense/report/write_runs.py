"""Write the comparison of two runs into a folder of its own."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from vitsense.report.charts import chart_picture
from vitsense.report.compose_runs import RunPair, compose_runs
from vitsense.report.html import render_runs_html
from vitsense.report.pdf import render_runs_pdf
from vitsense.report.summary import render_runs_markdown
from vitsense.report.tables import write_parquet
from vitsense.runfolder import DEFAULT_ROOT, RunFolder, atomic_write, json_text

if TYPE_CHECKING:
    import pandas as pd

    from vitsense.report.drawing import Picture
    from vitsense.report.runs_document import RunsDocument

_LONGEST = 100  # characters of a folder's name in the name of the comparison


def write_comparison(
    first: RunFolder,
    second: RunFolder,
    out: Path | None = None,
    *,
    model: str | None = None,
    html: bool = True,
    pdf: bool = True,
    markdown: bool = False,
    paper: str = "a4",
    parquet: bool = False,
) -> list[Path]:
    """Write ``comparison.json``, ``changes.csv``, ``comparison.html`` and ``comparison.pdf``.

    The runs are only read.

    Args:
        first: A finished run.
        second: Another finished run of the same model: with other weights, images or settings, or
            of another version.
        out: Folder, made if it is not there; None is ``comparisons/FIRST-to-SECOND`` in the folder
            of runs.
        model: Key of the model; None is every model that both runs have.
        html: Write ``comparison.html``.
        pdf: Write ``comparison.pdf``.
        markdown: Write ``comparison.md``, a summary for a pull request.
        paper: Of the PDF: ``a4`` or ``us-letter``.
        parquet: Write ``changes.parquet`` beside ``changes.csv``.

    Returns:
        The files, ``comparison.json`` first.

    Raises:
        UserInputError: the same run twice, a run that is not finished or damaged, or a folder that
            cannot be written.
        SiteMismatchError: the runs have no model, module or format in common.
        InputMissingError: nothing was measured yet, or typst or pyarrow is not installed.
    """
    pair = RunPair(first, second, model)
    document = compose_runs(pair)
    folder = RunFolder.at(out or _default(pair)).path
    drawn = _pictures(document) if html or pdf else {}
    written = [folder / "comparison.json"]
    atomic_write(written[0], json_text(document.to_json()))
    if html:
        written.append(folder / "comparison.html")
        atomic_write(written[-1], render_runs_html(document, drawn))
    if pdf:
        written.append(folder / "comparison.pdf")
        atomic_write(written[-1], render_runs_pdf(document, drawn, paper=paper))
    if markdown:
        written.append(folder / "comparison.md")
        atomic_write(written[-1], render_runs_markdown(document))
    written.append(folder / "changes.csv")
    changes = _changes(pair)
    buffer = StringIO()
    changes.to_csv(buffer, index=False)
    atomic_write(written[-1], buffer.getvalue())
    if parquet:
        written.append(write_parquet(folder / "changes.parquet", changes))
    return written


def _default(pair: RunPair) -> Path:
    names = (source.run.path.resolve().name[:_LONGEST] for source in pair.sources)
    return DEFAULT_ROOT / "comparisons" / "-to-".join(names)


def _pictures(document: RunsDocument) -> dict[str, Picture]:
    keys = [model.key for model in document.models]
    charts = (c for m in document.models for section in m.chapters for c in section.charts)
    return {chart.name: chart_picture(chart, keys) for chart in charts}


def _changes(pair: RunPair) -> pd.DataFrame:
    import pandas as pd

    frames = []
    for key in pair.entries:
        cells = pair.changes(key).cells
        frames.append(cells.assign(model=key)[["model", *cells.columns]])
    return pd.concat(frames, ignore_index=True)
