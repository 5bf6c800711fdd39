"""Document to PDF, by typst: contents, page numbers, tags, and the same numbers as the HTML."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from vitsense.errors import InputMissingError, VitsenseError
from vitsense.glyphs import font_folder
from vitsense.report.compose_model import LEVELS
from vitsense.report.document import Document, ModelReport
from vitsense.report.drawing import COLOURS, Picture, cividis, diverging
from vitsense.report.html import template_root
from vitsense.report.runs_document import STEPS, RunsDocument
from vitsense.report.sheet import worst_tensor
from vitsense.report.svg import small_svg


def render_pdf(document: Document, pictures: dict[str, Picture], *, paper: str = "a4") -> bytes:
    """The report as a tagged PDF (PDF/UA-1), byte for byte the same every time.

    The document travels as a JSON file and is never pasted into typst source, so that names with
    markup in them stay text.

    Raises:
        InputMissingError: typst is not installed.
    """
    drawings = {name: picture.svg for name, picture in pictures.items()}
    for i, model in enumerate(document.models):
        tensors = [(model.rows[k].bits, worst_tensor(model.rows[k].sheet)) for k in model.worst]
        drawn = [(bits, t.picture) for bits, t in tensors if t is not None and t.picture]
        for j, (bits, small) in enumerate(drawn):
            drawings[f"small-{i}-{j}"] = small_svg(small, COLOURS[i % len(COLOURS)], bits)
    return _compiled("report.typ", _page_data(document, pictures), drawings, paper)


def render_runs_pdf(
    document: RunsDocument, pictures: dict[str, Picture], *, paper: str = "a4"
) -> bytes:
    """The comparison of two runs as a tagged PDF, byte for byte the same every time.

    Raises:
        InputMissingError: typst is not installed.
    """
    data = {
        "d": asdict(document),
        "pictures": _words(pictures),
        "diverging": diverging(STEPS),
    }
    drawings = {name: picture.svg for name, picture in pictures.items()}
    return _compiled("runs.typ", data, drawings, paper)


def _compiled(
    template: str, data: Mapping[str, object], drawings: Mapping[str, str], paper: str
) -> bytes:
    if find_spec("typst") is None:
        raise InputMissingError(
            "The PDF needs the typst package: pip install typst, or make the HTML alone with "
            "vitsense report --html."
        )
    import typst

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _copy_sources(root)
        (root / "data.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        for name, svg in drawings.items():
            (root / f"{name}.svg").write_text(svg, encoding="utf-8")
        try:
            made = typst.compile(
                str(root / template),
                root=folder,
                font_paths=[str(font_folder())],
                ignore_system_fonts=True,
                format="pdf",
                pdf_standards="ua-1",
                timestamp=0,
                sys_inputs={"paper": paper},
            )
        except typst.TypstError as error:
            raise VitsenseError(
                f"The PDF could not be typeset ({error}); the HTML is complete without it."
            ) from error
    assert isinstance(made, bytes)
    return made


def _words(pictures: Mapping[str, Picture]) -> dict[str, dict[str, str]]:
    return {
        name: {"title": p.title, "alt": p.alt, "reading": p.reading} for name, p in pictures.items()
    }


def _page_data(document: Document, pictures: dict[str, Picture]) -> dict[str, object]:
    return {
        "d": asdict(document),
        "pictures": _words(pictures),
        "heat": cividis(LEVELS),
        "small": [_small(model) for model in document.models],
    }


def _small(model: ModelReport) -> list[dict[str, object]]:
    """The heaviest-tailed tensor of each of the most sensitive modules."""
    found: list[dict[str, object]] = []
    for place in model.worst:
        row = model.rows[place]
        tensor = worst_tensor(row.sheet)
        if tensor is not None and tensor.picture is not None:
            words = [tensor.numbers, tensor.grid, tensor.channels, tensor.heads]
            causes = [f"{c.cause}: {c.remedy}" for c in row.sheet.causes]
            found.append(
                {
                    "place": len(found),
                    "name": row.name,
                    "role": tensor.role,
                    "alt": f"{row.name}: {tensor.picture.summary}. {tensor.numbers}.",
                    "words": "; ".join(filter(None, (*words, *causes))),
                }
            )
    return found


def _copy_sources(root: Path) -> None:
    """The typst files, where the compiler may read: it sees nothing outside its root."""
    source = template_root()
    for path in (*sorted(source.glob("*.typ")), *sorted((source / "sections").glob("*.typ"))):
        target = root / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
