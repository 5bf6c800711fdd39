"""Document to PDF, by typst: contents, page numbers, tags, and the same numbers as the HTML."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vitsense.decimals import predicted
from vitsense.errors import InputMissingError, VitsenseError
from vitsense.glyphs import font_folder
from vitsense.report.compose_model import LEVELS
from vitsense.report.document import (
    Document,
    FrontPoint,
    HeatCell,
    ModelReport,
    PlanWriter,
    Profile,
)
from vitsense.report.drawing import COLOURS, Picture, cividis, diverging
from vitsense.report.html import template_root
from vitsense.report.pdf_packed import packed
from vitsense.report.runs_document import STEPS, RunsDocument
from vitsense.report.sheet import Cause, Sheet, worst_tensor
from vitsense.report.svg import small_svg
from vitsense.report.training_document import TrainingDocument


def render_pdf(document: Document, pictures: dict[str, Picture], *, paper: str = "a4") -> bytes:
    """The report as a tagged PDF (PDF/UA-1), byte for byte the same every time.

    The document travels as a JSON file and is never pasted into typst source, so that names with
    markup in them stay text.

    Raises:
        InputMissingError: typst is not installed.
    """
    drawings = {name: picture.svg for name, picture in pictures.items()}
    for i, model in enumerate(document.models):
        colour = COLOURS[i % len(COLOURS)]
        drawings |= {
            f"small-{i}-{at}-{k}": small_svg(
                tensor.picture, colour, model.rows[at].bits, ALONE_WIDE if rank < ALONE else 0.8
            )
            for rank, at in enumerate(model.worst)
            for k, tensor in enumerate(model.rows[at].sheet.tensors)
            if tensor.picture is not None
        }
    return _compiled("report.typ", _page_data(document, pictures), drawings, paper)


def render_runs_pdf(
    document: RunsDocument, pictures: dict[str, Picture], *, paper: str = "a4"
) -> bytes:
    """The comparison of two runs as a tagged PDF, byte for byte the same every time.

    Raises:
        InputMissingError: typst is not installed.
    """
    data = {
        "d": document,
        "pictures": _words(pictures),
        "diverging": diverging(STEPS),
    }
    drawings = {name: picture.svg for name, picture in pictures.items()}
    return _compiled("runs.typ", data, drawings, paper)


def render_training_pdf(
    document: TrainingDocument, pictures: dict[str, Picture], *, paper: str = "a4"
) -> bytes:
    """A training by itself as a tagged PDF, byte for byte the same every time.

    Raises:
        InputMissingError: typst is not installed.
    """
    data = {"d": document, "pictures": _words(pictures)}
    drawings = {name: picture.svg for name, picture in pictures.items()}
    return _compiled("training.typ", data, drawings, paper)


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
        text = json.dumps(data, ensure_ascii=False, default=_fields)
        (root / "data.json").write_text(text, encoding="utf-8")
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
    return packed(made)


_READ: Mapping[type, tuple[str, ...]] = {
    HeatCell: ("label", "level", "text", "noise"),
    Sheet: (),
    FrontPoint: (),
    PlanWriter: (),
    Profile: (),
}
"""What the templates read of parts that are long; what else they show of them is `_page_data`'s."""


def _fields(made: Any) -> dict[str, Any]:
    """A dataclass as JSON: reading what nobody shows would take typst as long as typesetting."""
    names = _READ.get(type(made), tuple(field.name for field in fields(made)))
    return {name: getattr(made, name) for name in names}


def _words(pictures: Mapping[str, Picture]) -> dict[str, dict[str, str]]:
    return {
        name: {"title": p.title, "alt": p.alt, "reading": p.reading} for name, p in pictures.items()
    }


def _page_data(document: Document, pictures: dict[str, Picture]) -> dict[str, object]:
    return {
        "d": document,
        "pictures": _words(pictures),
        "heat": cividis(LEVELS),
        "alone": [_alone(model) for model in document.models],
        "small": [_small(model) for model in document.models],
        "front": [_front(model) for model in document.models],
    }


def _front(model: ModelReport) -> list[tuple[str, ...]]:
    """Rows of the table of the Pareto front."""
    return [
        (
            str(p.number),
            f"{p.avg_bits:.2f}",
            f"{p.size_mb:.2f}",
            f"{p.bitops_g:.2f}",
            predicted(p.drop, p.low, p.high),
            p.measured or "\N{EN DASH}",
        )
        for p in model.front
    ]


ALONE_WIDE = 1.55
"""How much wider pictures in such a part are than those of the page."""

ALONE = 5
"""Most sensitive modules with a part of their own: all their tensors; others show the worst one."""


def _alone(model: ModelReport) -> list[dict[str, object]]:
    """The part of each of the most sensitive modules."""
    return [
        {
            "name": row.name,
            "about": f"{row.role}, {format_words(row.label)} in the plan" if row.bits else row.role,
            "reason": row.reason + row.more,
            "cells": [(format_words(c.label), c.detail, c.nats) for c in row.cells],
            "causes": [_cause_words(c) for c in row.sheet.causes],
            "tensors": [_tensor(model, place, k) for k in range(len(row.sheet.tensors))],
        }
        for place, row in ((place, model.rows[place]) for place in model.worst[:ALONE])
    ]


def _cause_words(cause: Cause) -> str:
    about = f"{'Reason' if cause.shown else 'Suspicion'}: {cause.cause}"
    about += f" ({cause.evidence})" if cause.evidence else ""
    return f"{about}. Remedy: {cause.remedy}" if cause.remedy else about


def format_words(label: str) -> str:
    """``4`` is ``4 bits``; other formats have their names."""
    return f"{label} bits" if label.isdecimal() else label


def _tensor(model: ModelReport, place: int, k: int) -> dict[str, object]:
    row = model.rows[place]
    tensor = row.sheet.tensors[k]
    words = [tensor.numbers, tensor.grid, tensor.channels, tensor.heads]
    drawn = tensor.picture
    return {
        "place": f"{place}-{k}",
        "drawn": drawn is not None,
        "name": row.name,
        "role": tensor.role,
        "alt": f"{row.name}: {drawn.summary}. {tensor.numbers}." if drawn else "",
        "words": "; ".join(filter(None, words)),
    }


def _small(model: ModelReport) -> list[dict[str, object]]:
    """The heaviest-tailed tensor of each of the sensitive modules without a part of its own."""
    found = []
    for place in model.worst[ALONE:]:
        sheet = model.rows[place].sheet
        tensor = worst_tensor(sheet)
        if tensor is not None:
            found.append(_tensor(model, place, sheet.tensors.index(tensor)))
    return found


def _copy_sources(root: Path) -> None:
    """The typst files, where the compiler may read: it sees nothing outside its root."""
    source = template_root()
    for path in (*sorted(source.glob("*.typ")), *sorted((source / "sections").glob("*.typ"))):
        target = root / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
