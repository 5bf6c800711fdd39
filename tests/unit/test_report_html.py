"""The HTML: valid, self-contained, complete without scripts, and deaf to hostile names."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import html5lib
import pytest
from report_fixture import HOSTILE, make_run
from report_record import IMAGES
from training_record import several_trainings

from vitsense.report import compose
from vitsense.report.compose_sheets import MOST_DRAWN
from vitsense.report.document import Document
from vitsense.report.figures import pictures
from vitsense.report.html import TOGETHER, embedded, render_html, together

VOID = {"meta", "input", "wbr", "br", "img", "link"}
IMPLIED = {"p", "tbody", "td", "th", "thead", "tr", "li", "dt", "dd", "option"}
KILOBYTES = 1000


@dataclass
class Page(HTMLParser):
    """Elements, text and rows of a page, as a browser without scripts would have them."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    data: str = ""
    _open: list[str] = field(default_factory=list)
    _broken: bool = False
    """Whether the last text goes on: a place where a line may break is no end."""

    def __post_init__(self) -> None:
        super().__init__()

    @classmethod
    def of(cls, html: str) -> Page:
        page = cls()
        page.feed(html)
        page.close()
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._broken = tag == "wbr"
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self._open[-1] != tag:  # HTML implies some ends
            assert self._open.pop() in IMPLIED
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.data = self.data or data
        elif self._broken and self.text:
            self.text[-1] += data
        elif self._open and self._open[-1] != "style":
            self.text.append(data)
        self._broken = False

    def having(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.elements if name in attrs]


def rendered(folder: Path, modules: int = 20, *args, **options) -> tuple[Document, str]:
    document = compose(make_run(folder / "run", modules, *args, **options))
    return document, render_html(document, pictures(document))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Document, str]:
    return rendered(tmp_path_factory.mktemp("html"), warnings=["Only 10 images."])


@pytest.fixture(scope="module")
def document(made: tuple[Document, str]) -> Document:
    return made[0]


@pytest.fixture(scope="module")
def html(made: tuple[Document, str]) -> str:
    return made[1]


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page.of(html)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Document, str]:
    keys = ["<i>a</i>", "b\"'&amp;"]
    return rendered(tmp_path_factory.mktemp("html"), 20, keys, hostile=True, unmeasured=True)


def test_the_page_parses_without_errors(html: str) -> None:
    html5lib.HTMLParser(strict=True).parse(html)


def test_no_id_occurs_twice(page: Page) -> None:
    ids = page.having("id")
    assert len(ids) == len(set(ids))


def test_every_reference_within_the_page_leads_somewhere(page: Page) -> None:
    ids = set(page.having("id"))
    wanted = {href[1:] for href in page.having("href") if href.startswith("#")}
    wanted |= set(page.having("aria-labelledby"))
    wanted |= {name for names in page.having("for") for name in names.split()}
    assert wanted
    assert wanted <= ids


def test_nothing_is_loaded_from_elsewhere(html: str, page: Page) -> None:
    links = page.having("href") + page.having("src")
    assert {link.split(":")[0] for link in links if not link.startswith("#")} == {"data"}
    assert not re.search(r"https?://(?!www\.w3\.org/)", html)
    assert "@import" not in html
    assert "url(http" not in html


def test_the_policy_forbids_everything_but_this_script(html: str, page: Page) -> None:
    policy = next(
        attrs["content"]
        for tag, attrs in page.elements
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe-eval" not in policy
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]


def test_all_modules_and_numbers_are_there_without_scripts(
    document: Document, html: str, page: Page
) -> None:
    text = " ".join(" ".join(page.text).split())
    for model in document.models:
        for row in model.rows:
            assert row.name in page.text
            assert row.reason in text
            for cell in row.cells:
                nats = f"; {cell.nats} nats" if cell.nats else ""
                detail = cell.detail.replace(")", ") points", 1) if nats else cell.detail
                assert f": {detail}{nats}" in text
            for tensor in row.sheet.tensors:
                assert tensor.numbers in text
                assert tensor.channels[1:] in text
    assert html.count("<tr id=") == sum(len(m.rows) for m in document.models)


def test_every_module_has_a_part_of_its_own_with_its_grids(
    document: Document, html: str, page: Page
) -> None:
    ids = set(page.having("id"))
    links = page.having("href")
    for i, model in enumerate(document.models):
        for row in model.rows:
            assert f"m{i}-{row.index}" in ids
            assert f"#m{i}-{row.index}" in links  # from the table
            assert f"#r{i}-{row.index}" in links  # and back
    drawn = [
        (row.bits, tensor.picture)
        for model in document.models
        for row in (model.rows[k] for k in model.worst[: TOGETHER // len(document.models)])
        for tensor in row.sheet.tensors
        if tensor.picture
    ]
    assert len(drawn) >= TOGETHER
    assert html.count(' aria-label="Histogram of ') == len(drawn)
    assert [p.summary for _, p in drawn if p.summary not in html] == []
    marked = re.findall(r"<path class=k\d d=", html)
    assert len(marked) == sum(any(g.bits == bits for g in p.ladders) for bits, p in drawn)


def test_many_modules_have_pictures_only_where_it_matters(tmp_path: Path) -> None:
    document, html = rendered(tmp_path, 70, ["one"])
    drawn = [any(t.picture for t in row.sheet.tensors) for row in document.models[0].rows]
    assert sum(drawn) == MOST_DRAWN
    assert all(drawn[k] for k in document.models[0].worst)
    assert f"Pictures are drawn for the {MOST_DRAWN} most sensitive modules" in html


def test_what_needs_a_script_is_hidden_without_it(page: Page) -> None:
    for cls in ("whatif", "filters"):
        found = [attrs for _, attrs in page.elements if attrs.get("class") == cls]
        assert len(found) == 2
        assert all("hidden" in attrs for attrs in found)


def test_the_page_says_what_the_document_says(document: Document, page: Page) -> None:
    text = "\n".join(page.text).replace("\u00a0", " ")
    said = [document.title, document.question, *document.warnings, *document.commands]
    for model in document.models:
        said += [value for card in model.cards for value in (card.label, card.value, card.detail)]
        said += [model.headline, *model.verdict]
        said += [v for p in model.plans for v in (p.name, p.predicted, p.measured)]
        said += [cell for row in model.coverage for cell in row]
        said += [value for pair in model.facts for value in pair]
    said += [value for pair in (*document.method, *document.findings) for value in pair]
    said += [cell for row in document.roles for cell in row]
    assert [words for words in said if words not in text] == []


def test_the_order_is_warnings_verdict_comparison_models_method(html: str) -> None:
    places = [
        next(re.finditer(rf"id={name}[ >]", html)).start()
        for name in ("warnings-title", "verdict", "findings", "model-0", "model-1", "method")
    ]
    assert places == sorted(places)


def test_every_figure_and_table_says_how_to_read_it(html: str) -> None:
    assert html.count("How to read this.") >= html.count("<figure>") + 6
    assert html.count("<figure>") == 4


def test_the_chosen_width_is_marked_in_every_row(document: Document, html: str) -> None:
    rows = re.findall(r"<tr id=r(\d)-(\d+)[^>]*>(.*?)(?=<tr|</tbody)", html, flags=re.DOTALL)
    assert len(rows) == sum(len(m.rows) for m in document.models)
    for model, index, row in rows:
        planned = document.models[int(model)].rows[int(index)]
        cells = re.findall(r'<td class="?h\d+([^">]*)"?>', row)
        assert [" pick" in c for c in cells] == [c.label == planned.label for c in planned.cells]


def test_noise_is_in_parentheses_and_not_by_colour_alone(document: Document, html: str) -> None:
    noisy = sum(c.noise for m in document.models for r in m.rows for c in r.cells)
    assert noisy
    assert len(re.findall(r'<td class="h\d+ noise[^>]*>\([^)<]+\)(?=\s*<)', html)) == noisy


def test_the_plan_can_be_taken_from_the_page(document: Document, page: Page) -> None:
    links = [
        attrs["href"] or "" for tag, attrs in page.elements if tag == "a" and "download" in attrs
    ]
    packed = [base64.b64decode(link.partition(",")[2]) for link in links]
    plans = [gzip.decompress(content).decode() for content in packed]
    taken = [model.deployed for model in document.models if model.deployed is not None]
    assert plans == [*(t.json for t in taken), *(model.plan_json for model in document.models)]


def test_a_link_says_which_file_it_gives(document: Document, html: str) -> None:
    for name in ("plan.json", "plan-resnet_made_up.json"):
        assert f"Download {name}<span> (packed: {name}.gz)</span>" in html
        assert f"download={name}.gz" in html


def test_the_table_of_the_front_has_the_plan_in_force_in_its_place(
    document: Document, html: str
) -> None:
    tables = re.findall(r"<table class=front>.*?</table>", html, flags=re.DOTALL)
    for table, model in zip(tables, document.models, strict=True):
        shown = model.what_if
        assert shown is not None
        heads = re.findall(r"<tr(?: class=chosen)?><th>([^<]*)", table.partition("<tbody>")[2])
        numbers = [str(point.number) for point in model.front]
        assert heads == [*numbers[: shown.place], shown.called, *numbers[shown.place :]]
        assert f"<td>{shown.plan.size}<td>{shown.plan.bitops}" in table


def test_the_script_gets_the_bits_of_every_front_point(document: Document, page: Page) -> None:
    data = json.loads(page.data)
    for given, model in zip(data["models"], document.models, strict=True):
        formats = given["writer"]["formats"]
        for point, front in zip(given["front"], model.front, strict=True):
            named = dict(zip(data["names"], point, strict=False))
            assert tuple(formats[ord(c) - 48][0] for c in named["choices"]) == front.bits
            place = given["writer"]["cost"].index("avg_bits")
            said = float(named["text"].split()[1 + place])
            assert said == pytest.approx(front.avg_bits, abs=1e-3)


def test_status_is_a_symbol_and_a_word(html: str) -> None:
    assert re.search(r"class=word><span aria-hidden=true>■</span> breaks", html)


def test_equal_input_gives_equal_bytes(document: Document, html: str) -> None:
    assert render_html(document, pictures(document)) == html


def test_hostile_names_are_text(hostile: tuple[Document, str]) -> None:
    html5lib.HTMLParser(strict=True).parse(hostile[1])
    page = Page.of(hostile[1])
    rows = [
        "".join(element.itertext())
        for element in html5lib.parse(hostile[1], namespaceHTMLElements=False).iter("th")
        if element.get("scope") != "col"
    ]
    assert set(HOSTILE) <= set(rows)
    assert not [tag for tag, _ in page.elements if tag in {"img", "i"}]
    assert "49" not in rows  # a template would have made 49 of {{ 7*7 }}
    assert [tag for tag, _ in page.elements].count("script") == 2


def test_hostile_names_do_not_reach_attributes(hostile: tuple[Document, str]) -> None:
    names = {name for _, attrs in Page.of(hostile[1]).elements for name in attrs}
    assert not {name for name in names if name.startswith("on")}


def test_embedded_data_cannot_end_its_script() -> None:
    text = embedded({"name": "</script><!--", "amp": "&lt;", "quote": '"\u2028'})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text)["name"] == "</script><!--"


def test_no_line_ends_within_an_interval() -> None:
    shown = together("0.8 (\u22120.1 to 1.7), f(x) (as it is)")
    assert shown == "0.8 (\u22120.1\u00a0to\u00a01.7), f(x) (as it is)"


def test_without_labels_no_title_speaks_of_a_drop(tmp_path: Path) -> None:
    _, html = rendered(tmp_path, 9, ["vit"], labelled=False)
    body = html[html.index("id=model-0 ") : html.index("id=method ")]
    assert "Measured loss of agreement" in body
    assert "drop of top-1" not in body
    assert "top-1" not in body


def test_an_unfinished_run_without_plan_still_makes_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 8, ["vit"], status="interrupted")
    for name in ("joint", "pareto", "pareto_bits", "coverage"):
        (run.path / f"{name}.csv").unlink()
    run.plan_path().unlink()
    document = compose(run)
    html = render_html(document, pictures(document))
    html5lib.HTMLParser(strict=True).parse(html)
    assert "not finished" in html
    assert "whatif" not in html[html.index("<body") :].split("<script")[0]


@pytest.mark.parametrize(
    ("modules", "models", "trainings", "most"),
    [(60, 1, 12, 300), (30, 2, 0, 300), pytest.param(600, 1, 0, 1500, marks=pytest.mark.slow)],
)
def test_the_page_stays_small(
    tmp_path: Path, modules: int, models: int, trainings: int, most: int
) -> None:
    run = make_run(tmp_path / "run", modules, [f"model{i}" for i in range(models)])
    several_trainings(run, trainings)
    document = compose(run)
    html = render_html(document, pictures(document))
    assert len(html.encode()) <= most * KILOBYTES


def test_images_are_counted_where_noise_is_explained(html: str) -> None:
    assert f"not distinguishable from zero on the images that the cell saw ({IMAGES})" in html
