"""The words of the report, in order, as they were last looked at by a person.

After a change that is meant, run with ``VITSENSE_UPDATE_GOLDEN=1`` and read the difference.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import html5lib
import pytest
from report_fixture import make_run

from vitsense.report import compose
from vitsense.report.figures import pictures
from vitsense.report.html import render_html

GOLDEN = Path(__file__).with_name("report.txt")
BLOCKS = {"p", "h1", "h2", "h3", "h4", "li", "tr", "div", "summary", "pre", "section", "label"}
SILENT = {"script", "style", "head"}


def words(element) -> str:
    """The text of a page, one block a line; pictures are replaced by their alternatives."""
    parts: list[str] = []

    def walk(node) -> None:
        if not isinstance(node.tag, str) or node.tag in SILENT:
            return
        if node.get("aria-hidden"):
            return
        if node.tag.endswith("svg"):
            parts.append(f"[picture: {node.get('aria-label')}]")
            return
        if node.tag in BLOCKS:
            parts.append("\n")
        if node.tag in {"td", "th", "dd"} or node.get("class") in {"value", "detail", "word"}:
            parts.append(" | ")
        parts.append(node.text or "")
        if node.get("title"):
            parts.append(f" {{{node.get('title')}}}")
        for child in node:
            walk(child)
            parts.append(child.tail or "")

    walk(element)
    lines = (re.sub(r"\s+", " ", line).strip() for line in "".join(parts).split("\n"))
    return "\n".join(line for line in lines if line) + "\n"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = make_run(
        tmp_path_factory.mktemp("golden") / "run",
        9,
        warnings=["Only 1000 made-up images."],
        unmeasured=True,
    )
    document = compose(run)
    page = render_html(document, pictures(document))
    return words(html5lib.parse(page, namespaceHTMLElements=False))


def test_the_report_says_what_it_said(text: str) -> None:
    if os.environ.get("VITSENSE_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_words_have_no_trace_of_programs(text: str) -> None:
    assert not re.search(r"\bnan\b|\bNone\b|\bNaN\b|<NA>|Undefined|\binf\b|array\(|np\.", text)
    assert "{{" not in text
