"""The PDF: tagged, searchable, paginated, and the same numbers as everywhere else."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import html5lib
import pytest
from pypdf import PdfReader
from report_chapters import make_full_run, texts
from report_fixture import HOSTILE, make_run

from vitsense.decimals import predicted
from vitsense.errors import InputMissingError, VitsenseError
from vitsense.report import compose
from vitsense.report.document import Document
from vitsense.report.drawing import Picture
from vitsense.report.figures import pictures
from vitsense.report.html import render_html
from vitsense.report.pdf import render_pdf

MEGABYTES = 1_000_000


def rendered(folder: Path, modules: int = 20, *args, **options) -> tuple[Document, bytes]:
    document = compose(make_run(folder / "run", modules, *args, **options))
    return document, render_pdf(document, pictures(document))


def plain(text: str) -> str:
    """Text without what only breaks lines."""
    return re.sub(r"[\s\u200b\u00a0]+", "", text)


def text_of(pdf: bytes) -> str:
    """All text without running heads and page numbers, which stand inside sentences that go on."""
    pages = [page.extract_text() for page in PdfReader(io.BytesIO(pdf)).pages]
    inner = [re.sub(r"page \d+ of \d+\s*$", "", page) for page in pages]
    return plain(inner[0] + "".join(page.partition("\n")[2] for page in inner[1:]))


class Made(NamedTuple):
    """A run with every chapter, as document and as PDF."""

    document: Document
    drawn: dict[str, Picture]
    pdf: bytes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    run = make_full_run(tmp_path_factory.mktemp("pdf") / "run", warnings=["Only 10 images."])
    document = compose(run)
    drawn = pictures(document)
    return Made(document, drawn, render_pdf(document, drawn))


@pytest.fixture(scope="module")
def document(made: Made) -> Document:
    return made.document


@pytest.fixture(scope="module")
def reader(made: Made) -> PdfReader:
    return PdfReader(io.BytesIO(made.pdf))


def test_the_plan_to_deploy_is_printed_and_copied_without_letters_that_nobody_sees(
    tmp_path: Path,
) -> None:
    document, pdf = rendered(tmp_path, 9, ["vit"])
    (model,) = document.models
    assert model.deployed is not None
    assert model.deployed.json
    assert not any("\u200b" in p.extract_text() for p in PdfReader(io.BytesIO(pdf)).pages)
    words = text_of(pdf)
    assert plain(model.deployed.command) in words
    assert plain(f"the plan to deploy ({model.deployed.plan})") in words
    bits = dict(model.deployed.bits)
    for row in model.rows:
        own = f"{row.label} pinned" if row.pinned else row.label
        assert plain(f"{row.name}{row.role}{row.params}{own}{bits[row.name]}") in words


def test_it_is_tagged_and_names_its_language_and_title(
    document: Document, reader: PdfReader
) -> None:
    root = reader.trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"]
    assert "/StructTreeRoot" in root
    assert root["/Lang"] == "en"
    assert reader.metadata is not None
    assert reader.metadata.title == document.title
    assert b"pdfuaid" in root["/Metadata"].get_data()


def test_the_outline_and_the_contents_name_every_chapter(
    document: Document, reader: PdfReader
) -> None:
    chapters = ["Verdict", "Models side by side", *(m.key for m in document.models)]
    chapters.append("Method and reproduction")
    titles = [plain(entry.title) for entry in reader.outline if not isinstance(entry, list)]
    assert titles == [plain(chapter) for chapter in chapters]
    listed = plain("".join(page.extract_text() for page in reader.pages[:2]))
    pages = [
        reader.get_destination_page_number(entry) + 1
        for entry in reader.outline
        if not isinstance(entry, list)
    ]
    for chapter, page in zip(chapters, pages, strict=True):
        assert re.search(re.escape(plain(chapter)) + r"\.+" + str(page), listed)
    parts = ["Bits and sensitivity of every module", "What gets no quantizer, and why"]
    for part in parts:
        assert len(re.findall(plain(part) + r"\.+\d+", listed)) == len(document.models)


def test_every_page_has_its_number_and_a_running_head(
    document: Document, reader: PdfReader
) -> None:
    count = len(reader.pages)
    for place, page in enumerate(reader.pages, start=1):
        text = page.extract_text()
        assert f"page {place} of {count}" in text
        assert len(text) > 200, "a page is nearly empty"
        assert place == 1 or plain(text).startswith(plain(document.title))


def test_every_text_and_number_is_there_and_on_the_page_too(made: Made) -> None:
    document = made.document
    said = [*document.warnings, document.question, *document.commands, *texts(document.chapters)]
    for model in document.models:
        said += [text for row in model.rows for text in (row.name, row.reason + row.more)]
        said += [value for card in model.cards for value in (card.value, card.detail, card.word)]
        said += [model.headline, *model.verdict]
        said += [v for p in model.plans for v in (p.predicted, p.measured)]
        said += [p.measured for p in model.front]
        said += [predicted(p.drop, p.low, p.high) for p in model.front]
        said += [cell for row in model.coverage for cell in row]
        said += texts(model.chapters)
    said += [
        value for pair in (*document.method, *document.findings, *document.words) for value in pair
    ]
    assert len(texts(document.models[0].chapters)) > 400
    print_ = text_of(made.pdf)
    assert [words for words in said if plain(words) not in print_] == []
    page = html5lib.parse(render_html(document, made.drawn), namespaceHTMLElements=False)
    screen = plain("".join(page.itertext()))
    assert [words for words in said if plain(words) not in screen] == []


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[Document, bytes]:
    return rendered(tmp_path_factory.mktemp("long"), 150, ["vit"])


def test_table_heads_are_repeated(long: tuple[Document, bytes]) -> None:
    document, pdf = long
    pages = [plain(page.extract_text()) for page in PdfReader(io.BytesIO(pdf)).pages]
    names = [plain(row.name) for row in document.models[0].rows]
    holding = [text for text in pages if sum(name in text for name in names) > 20]
    assert len(holding) >= 3
    heads = ("ModuleRoleWeightsBits8bits6bits", "ModuleBitsReason")
    assert all(any(head in text for head in heads) for text in holding)
    assert sum(heads[0] in text for text in holding) >= 2
    assert sum(heads[1] in text for text in holding) >= 2


def tags(node: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Tag, tags around it, and element of every structure element, in reading order."""
    node = node.get_object() if hasattr(node, "get_object") else node
    if isinstance(node, list):
        for each in node:
            yield from tags(each, above)
    elif isinstance(node, dict):
        tag = node.get("/S")
        if tag:
            yield tag, above, node
        yield from tags(node.get("/K", []), (*above, tag) if tag else above)


def test_figures_are_vectors_and_all_have_alternatives(reader: PdfReader) -> None:
    assert sum(len(page.images) for page in reader.pages) == 0
    found = [
        n for tag, _, n in tags(reader.trailer["/Root"]["/StructTreeRoot"]) if tag == "/Figure"
    ]
    assert len(found) >= 4 + 2 * 12  # figures, and small distributions of both models
    assert all(len(node.get("/Alt", "")) > 20 for node in found)


def test_every_table_has_heads_and_headings_skip_no_level(reader: PdfReader) -> None:
    found = list(tags(reader.trailer["/Root"]["/StructTreeRoot"]))
    tables = sum(tag == "/Table" for tag, _, _ in found)
    heads = sum(tag == "/THead" for tag, _, _ in found)
    assert tables == heads > 20
    assert all(above[-1] == "/TR" for tag, above, _ in found if tag in {"/TH", "/TD"})
    levels = [int(tag[2:]) for tag, _, _ in found if re.fullmatch(r"/H\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_equal_input_gives_equal_bytes(made: Made) -> None:
    assert render_pdf(made.document, pictures(made.document)) == made.pdf


ODD = ("#panic()", "$x^2$ *b* @r </svg>" + "a_b." * 30)
"""Names of models."""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return rendered(tmp_path_factory.mktemp("odd"), 10, ODD, hostile=True, unmeasured=True)[1]


def test_hostile_names_are_text(odd: bytes) -> None:
    text = text_of(odd)
    latin = [name for name in (*HOSTILE, *ODD) if name.isascii()]
    assert len(latin) >= 6
    for name in latin:
        assert plain(name) in text


def test_long_names_stay_on_the_page(odd: bytes) -> None:
    """Nothing is drawn beyond the right margin of A4."""
    wrong = []
    for page in PdfReader(io.BytesIO(odd)).pages:

        def visit(text, cm, tm, font, size, wrong=wrong):
            if text.strip() and tm[4] * cm[0] + cm[4] > 595 - 40:
                wrong.append(text)

        page.extract_text(visitor_text=visit)
    assert wrong == []


def test_the_file_stays_small(long: tuple[Document, bytes], tmp_path: Path) -> None:
    """Every further module takes so few bytes that a thousand stay below two megabytes.

    The reports of 600 and 1,000 modules themselves are measured by benchmarks/report_render.py.
    """
    sizes = {150: len(long[1]), 75: len(rendered(tmp_path, 75, ["vit"])[1])}
    each = (sizes[150] - sizes[75]) / 75
    assert sizes[150] + 850 * each <= 2 * MEGABYTES


def test_an_unfinished_run_without_plan_still_makes_a_pdf(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 8, ["vit"], labelled=False, status="interrupted")
    for name in ("joint", "pareto", "pareto_bits", "coverage"):
        (run.path / f"{name}.csv").unlink()
    run.plan_path().unlink()
    document = compose(run)
    text = text_of(render_pdf(document, pictures(document)))
    assert "notfinished" in text
    assert "lossofagreement" in text


def test_without_typst_one_is_told_what_to_install(
    document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitsense.report.pdf.find_spec", lambda name: None)
    with pytest.raises(InputMissingError, match="pip install typst"):
        render_pdf(document, {})


def test_a_template_that_cannot_be_typeset_is_a_named_error(
    document: Document, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "report.typ").write_text("#unknown-thing")
    monkeypatch.setattr("vitsense.report.pdf.template_root", lambda: tmp_path)
    with pytest.raises(VitsenseError, match="unknown variable"):
        render_pdf(document, {})


def test_importing_the_report_does_not_import_typst() -> None:
    code = "import sys, vitsense.report; print('typst' in sys.modules, 'matplotlib' in sys.modules)"
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == ["False", "False"]
