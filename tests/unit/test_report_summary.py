"""The report in short: no markup but its own, and the numbers of the report."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import html5lib
import pytest
from report_fixture import make_run

import vitsense
from vitsense.cli import run as call
from vitsense.errors import UserInputError
from vitsense.report import compose, write_report
from vitsense.report.summary import Run, plain, render_markdown
from vitsense.runfolder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("summary") / "run"
    return make_run(folder, 9, ["<b>vit</b>"], hostile=True, warnings=["Only 10 | images."])


def test_markdown_holds_warnings_cards_worst_modules_and_the_command(run: RunFolder) -> None:
    document = compose(run)
    text = render_markdown(document)
    model = document.models[0]
    assert "> **Read this first:** Only 10 \\| images." in text
    for card in model.cards:
        assert f"| {plain(card.label)} | **{plain(card.value)}** | {plain(card.detail)} |" in text
    for k in model.worst[:5]:
        assert f"| {plain(model.rows[k].name)} | {model.rows[k].label} |" in text
    assert document.commands[0] in text
    ours = re.compile(r"</?details>|<summary>\d+ more</summary>")
    assert "<" not in ours.sub("", text.replace("\\<", "")).split("```")[0]
    assert all(plain(headline) in text for headline, _ in document.findings)


def test_markdown_says_what_cells_are_and_marks_noise_only_where_it_is_of_the_loss(
    run: RunFolder,
) -> None:
    model = compose(run).models[0]
    document = replace(compose(run), models=(replace(model, by_divergence=True),))
    row = model.rows[model.worst[0]]
    cells = " | ".join(plain(cell.text) for cell in row.cells)
    assert f"| {plain(row.name)} | {row.label} | {cells} |" in render_markdown(document)
    assert "costs this divergence (nats):" in render_markdown(document)
    cells = " | ".join(plain(cell.shown) for cell in row.cells)
    assert f"| {plain(row.name)} | {row.label} | {cells} |" in render_markdown(compose(run))
    assert "in parentheses: not distinguishable from zero" in render_markdown(compose(run))


def test_every_row_of_a_markdown_table_has_as_many_cells_as_its_head(run: RunFolder) -> None:
    blocks = render_markdown(compose(run)).split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) == 3
    for rows in tables:
        assert len({row.replace("\\|", "").count("|") for row in rows}) == 1


@pytest.mark.parametrize("text", ["a_b*c*", "<img>", "| x", "#5", "@name", "`c`", "[a](b)", "$x$"])
def test_signs_of_markdown_are_escaped(text: str) -> None:
    assert not re.search(r"(?<!\\)[`*_<>|#@\[\]$]", plain(text))
    assert plain(text).replace("\\", "") == text


def test_a_notebook_shows_the_verdict_as_text(run: RunFolder) -> None:
    shown = vitsense.Run.load(run.path)
    html = shown._repr_html_()
    page = html5lib.parse(html, namespaceHTMLElements=False)
    text = "".join(page.itertext())
    model = compose(run).models[0]
    assert model.key in text
    assert all(card.value in text and card.detail in text for card in model.cards)
    assert "<script" not in html
    assert len(shown.table("modules")) == 9
    assert repr(shown) == f"Run({str(run.path)!r})"
    assert isinstance(shown, Run)


def test_a_notebook_draws_every_module_and_format(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 6, ["vit"])
    figure = vitsense.Run.load(run.path).heatmap()
    axes = figure.axes[0]
    table = run.table("sensitivity")
    key = run.read_run()["models"][0]["key"]
    mine = table[table["model"] == key]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == list(dict.fromkeys(mine["module"]))
    shown = [text.get_text() for text in axes.texts]
    first = mine[mine["module"] == rows[0]].sort_values("bits", ascending=False)
    assert shown[: len(first)] == [f"{kl:.1e}" for kl in first["kl"]]
    assert key in axes.get_title()
    with pytest.raises(UserInputError, match="no model 'other'"):
        vitsense.Run.load(run.path).heatmap("other")


def test_the_command_writes_the_formats_that_were_asked_for(run: RunFolder) -> None:
    assert call(["report", str(run.path), "--format", "md"]) == 0
    assert (run.path / "report.md").read_text() == render_markdown(compose(run))
    assert not (run.path / "report.html").exists()
    assert not (run.path / "report.pdf").exists()


def test_a_plan_that_loses_more_than_the_limit_fails_after_writing(run: RunFolder) -> None:
    drop = run.table("joint").set_index("plan").loc["recommended", "drop"]
    above, below = str(drop + 0.1), str(drop - 0.1)
    command = ["report", str(run.path), "--format", "md", "--fail-if-drop"]
    assert call([*command, above]) == 0
    (run.path / "report.md").unlink()
    assert call([*command, below]) == 1
    assert (run.path / "report.md").is_file()


def test_letter_paper_is_letter_paper(tmp_path: Path) -> None:
    import io

    from pypdf import PdfReader

    run = make_run(tmp_path / "run", 3, ["vit"])
    for paper, size in (("us-letter", (612, 792)), ("a4", (595, 842))):
        write_report(run, html=False, paper=paper)
        box = PdfReader(io.BytesIO((run.path / "report.pdf").read_bytes())).pages[0].mediabox
        assert (round(float(box.width)), round(float(box.height))) == size
