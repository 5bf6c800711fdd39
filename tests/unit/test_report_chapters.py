"""A chapter is one function: what it gives is shown in HTML and PDF and kept in report.json."""

from __future__ import annotations

import io
import json
from pathlib import Path

import html5lib
import pytest
from pypdf import PdfReader
from report_fixture import make_run

from vitsense.report import chapters, compose
from vitsense.report.figures import pictures
from vitsense.report.html import render_html, template_root
from vitsense.report.pdf import render_pdf
from vitsense.report.section import Chart, Facts, Finding, Section, Series, Shape, Table, Words
from vitsense.report.source import Source

CHART = Chart(
    name="made-up-chart",
    title="Made-up values rise",
    alt="Three made-up values: 1, 2 and 30.",
    reading="Higher is more.",
    shape=Shape.POINTS,
    x_label="place",
    y_label="value",
    series=(Series(name="a", x=(1.0, 2.0, 3.0), y=(1.0, 2.0, 30.0), labels=("", "", "third")),),
    log_y=True,
)
BLOCKS = (
    Words(text="A paragraph with <b>signs</b> & #panic()."),
    Finding(headline="It was found", numbers="1.0 (0.5 to 1.5)"),
    Facts(rows=(("Steps", "1,000"),)),
    Table(
        title="A table of its own",
        head=("Name", "Value"),
        rows=(("blocks.0.attn", "one"), ("</td>", "two")),
        reading="Read it so.",
        marked=(1,),
    ),
    CHART,
)


def about_the_run(source: Source) -> Section:
    return Section(key="made-up", title=f"Chapter of {len(source.keys)} models", blocks=BLOCKS)


def about_a_model(source: Source, model: str) -> Section | None:
    if model != source.keys[0]:
        return None
    return Section(
        key="of-model", title="Part of a model", blocks=(Words(text=f"Only here: {model}."),)
    )


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chapters, "FOR_THE_RUN", (about_the_run, lambda _source: None))
    monkeypatch.setattr(chapters, "FOR_EACH_MODEL", (about_a_model,))
    return compose(make_run(tmp_path / "run", 6))


def plain(text: str) -> str:
    return "".join(text.split()).replace("\u200b", "")


def test_a_chapter_is_shown_in_html_pdf_and_json(document) -> None:
    drawn = pictures(document)
    html = render_html(document, drawn)
    html5lib.HTMLParser(strict=True).parse(html)
    page = html5lib.parse(html, namespaceHTMLElements=False)
    seen = plain("".join(page.itertext()))
    pages = PdfReader(io.BytesIO(render_pdf(document, drawn))).pages
    printed = plain("".join(p.extract_text() for p in pages))
    said = [
        "Chapter of 2 models",
        "A paragraph with <b>signs</b> & #panic().",
        "It was found",
        "1.0 (0.5 to 1.5)",
        "Steps",
        "1,000",
        "A table of its own",
        "</td>",
        "Read it so.",
        "Made-up values rise",
        "Higher is more.",
        "Part of a model",
        "Only here: vit_made_up.",
    ]
    assert [words for words in said if plain(words) not in seen] == []
    assert [words for words in said if plain(words) not in printed] == []
    assert len(page.findall(".//section[@id='made-up']")) == 1
    assert len(page.findall(".//section[@id='of-model-0']")) == 1
    assert CHART.alt in html
    kept = json.loads(json.dumps(document.to_json()))["chapters"]
    assert kept[0]["blocks"][-1]["series"][0]["y"] == [1.0, 2.0, 30.0]


def test_a_row_that_lacks_a_cell_is_refused() -> None:
    with pytest.raises(AssertionError, match="crooked"):
        Table(title="crooked", head=("a", "b"), rows=(("only one",),))


def test_a_table_that_was_not_written_is_empty(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 6, ["vit"])
    (run.path / "coverage.csv").unlink()
    source = Source(run)
    assert source.table("coverage", "vit").empty
    assert len(source.table("modules", "vit")) == 6
    assert source.labelled("vit")


@pytest.mark.parametrize("shape", list(Shape))
@pytest.mark.parametrize("log", [False, True])
def test_every_shape_of_chart_can_be_drawn(shape: Shape, log: bool) -> None:
    from vitsense.report.charts import chart_picture

    series = tuple(
        Series(
            name=f"s{i}",
            x=(1.0, 10.0),
            y=(2.0, 20.0),
            low=(1.0, 15.0),
            high=(3.0, 25.0),
            colour=i - 1,
            labels=("left", "a label that is much longer than there is room for beside a bar"),
        )
        for i in range(3)
    )
    made = chart_picture(
        Chart(
            name="c",
            title="t",
            alt="a",
            reading="r",
            shape=shape,
            x_label="x",
            y_label="y",
            series=series,
            log_x=log,
            log_y=log,
            diagonal=True,
        ),
        ["one", "two"],
    )
    assert made.svg.startswith("<svg")
    assert ">left<" in made.svg or shape is Shape.LINE


def test_every_section_of_the_page_has_a_partner_in_print() -> None:
    """A template that a chapter names must exist for both."""
    names = {p.name.removesuffix(".typ") for p in (template_root() / "sections").glob("*.typ")}
    assert "blocks" in names
    for name in names - {"shared"}:
        assert (template_root() / "sections" / f"{name}.html.jinja").is_file()
