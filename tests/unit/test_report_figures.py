"""Pictures: the same bytes every time, colours that can be read, text that stays text."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from report_fixture import make_run

from vitsense.report import compose
from vitsense.report.compose_model import LEVELS
from vitsense.report.document import Document
from vitsense.report.drawing import COLOURS, MARKERS, Picture, cividis
from vitsense.report.figures import pictures
from vitsense.report.formatters import short
from vitsense.report.inline import classes_for, inline

PAGES = ("#ffffff", "#14171c")
"""Backgrounds of the light and the dark theme."""


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    return compose(make_run(tmp_path_factory.mktemp("figures") / "run", 20))


@pytest.fixture(scope="module")
def drawn(document: Document) -> dict[str, Picture]:
    return pictures(document)


def luminance(colour: str) -> float:
    """Source: WCAG 2.2, relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", PAGES)
def test_the_hues_of_models_stand_out_from_both_pages(page: str) -> None:
    """WCAG 1.4.11: three to one for what carries meaning."""
    assert min(contrast(colour, page) for colour in COLOURS) >= 3


def test_hues_and_markers_differ() -> None:
    assert len(set(COLOURS)) == len(set(MARKERS)) == 4


def test_text_on_every_shade_of_the_heatmap_can_be_read() -> None:
    shades = cividis(LEVELS)
    assert len(shades) == LEVELS + 1
    assert min(contrast(back, front) for back, front in shades) >= 4.5


def test_shades_get_darker_with_every_level() -> None:
    values = [luminance(back) for back, _ in cividis(LEVELS)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_colours_of_the_page_can_be_read(theme: str) -> None:
    from vitsense.report.html import template_root

    style = (template_root() / "style.css").read_text()
    blocks = re.findall(r"{(--back[^}]*)}", style)
    assert len(blocks) == 3
    assert blocks[1] == blocks[2], "the dark theme of the system and of the button differ"
    names = dict(re.findall(r"--(\w+):(#\w+)", blocks[0 if theme == "light" else 1]))
    full = {k: v if len(v) == 7 else "#" + "".join(c * 2 for c in v[1:]) for k, v in names.items()}
    for ink in ("ink", "soft", "accent", "good", "caution", "bad"):
        for back in ("back", "tint", "warn"):
            if back != "warn" or ink == "ink":
                assert contrast(full[ink], full[back]) >= 4.5, (ink, back)


def test_the_hues_of_models_can_be_read_where_the_page_is_dark() -> None:
    from vitsense.report.html import template_root

    style = (template_root() / "style.css").read_text()
    dark = re.findall(r"{(--back[^}]*)}", style)[1]
    hues = re.findall(r"--c\d:(#\w{6})", dark)
    assert len(hues) == len(COLOURS)
    assert min(contrast(hue, "#14171c") for hue in hues) >= 4.5
    bright = [luminance(hue) for hue in hues]
    assert all(one > luminance(other) for one, other in zip(bright, COLOURS, strict=True))


def test_the_pages_pictures_take_the_hues_of_its_theme(drawn: dict[str, Picture]) -> None:
    made = "".join(inline(picture.svg, "p", "") for picture in drawn.values())
    assert not [hue for hue in COLOURS if hue.lower() in made]
    assert "stroke:var(--c0)" in made
    assert "fill-opacity:var(--band)" in made


def test_each_model_has_a_front_and_all_share_the_profiles(drawn: dict[str, Picture]) -> None:
    assert list(drawn) == ["sensitivity", "statistics", "front-0", "front-1"]


def test_every_picture_has_title_alternative_and_instructions(drawn: dict[str, Picture]) -> None:
    for picture in drawn.values():
        assert len(picture.title) > 20
        assert re.search(r"\d", picture.alt), "the alternative states numbers"
        assert len(picture.reading) > 40


def test_titles_state_numbers_of_the_document(
    document: Document, drawn: dict[str, Picture]
) -> None:
    top = max(
        value
        for profile in document.profiles
        for value in profile.series["kl"]
        if value is not None
    )
    assert f"({short(top)} nats)" in drawn["sensitivity"].title
    mark = next(m for m in document.models[1].marks if m[0] == "recommended")
    assert f"{mark[1]:.2f} MB" in drawn["front-1"].title
    assert f"{mark[2]:.1f} points" in drawn["front-1"].title


def test_the_same_document_gives_the_same_bytes(
    document: Document, drawn: dict[str, Picture]
) -> None:
    assert {k: p.svg for k, p in pictures(document).items()} == {k: p.svg for k, p in drawn.items()}


def test_pictures_carry_no_date_and_no_foreign_metadata(drawn: dict[str, Picture]) -> None:
    for picture in drawn.values():
        assert "<metadata" not in picture.svg
        assert not re.search(r"20\d\d-\d\d-\d\d", picture.svg)


def test_drawing_leaves_the_settings_of_matplotlib_alone(document: Document) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    pictures(document)
    assert dict(mpl.rcParams) == before


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    """Dollar signs would start mathematics, and glyphs that the font lacks would warn."""
    keys = ["net$a_b$<i>", "\u05e9\u05dc\u05d5\u05dd \U0001f9e0 \u6a21"]
    svg = pictures(compose(make_run(tmp_path / "run", 8, keys)))["sensitivity"].svg
    words = [element.text for element in ET.fromstring(svg).iter() if element.text]
    assert set(keys) <= set(words)


def test_inline_ids_are_unique_and_found() -> None:
    svg = (
        '<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="10pt" height="20pt">'
        '<defs><path id="a" d="M 0 1.5 L 2.0 3 z "/><g id="unused"/></defs>'
        '<use xlink:href="#a" x="1.0" y="2" style="fill: #1b1f24"/></svg>'
    )
    one, two = inline(svg, "p0", "x"), inline(svg, "p1", "x")
    assert re.findall(r' id="([^"]+)"', one) == ["p0-0"]
    assert 'href="#p0-0"' in one
    assert set(re.findall(r' id="([^"]+)"', one + two)) == {"p0-0", "p1-0"}
    assert 'd="M0 1.5L2 3z"' in one
    assert 'style="fill:currentColor"' in one


def test_inline_pictures_refer_only_to_themselves(drawn: dict[str, Picture]) -> None:
    for number, picture in enumerate(drawn.values()):
        svg = inline(picture.svg, f"p{number}", picture.alt)
        ids = re.findall(r'\bid="([^"]+)"', svg)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) == set(ids)
        assert "xlink" not in svg
        assert "<style" not in svg
        ET.fromstring(svg)


def test_inline_keeps_every_mark(drawn: dict[str, Picture]) -> None:
    picture = drawn["statistics"]
    made = inline(picture.svg, "p", "")
    # marks of one series are the vertices of a path with a marker, which has a use of its own
    runs = re.findall(r'<path d="(M[^"]*)" style="fill:none;marker:', made)
    marks = sum(len(re.findall("[ML]", run)) for run in runs)
    assert runs
    assert made.count("<use ") - made.count("<marker ") + marks == picture.svg.count("<use ")
    assert len(inline(picture.svg, "p", "")) < 0.6 * len(picture.svg)


def test_inline_escapes_the_alternative_and_leaves_text_alone() -> None:
    svg = '<svg width="1pt" height="1pt"><text>#1b1f24 id="a" url(#b) 1.0 </text></svg>'
    made = inline(svg, "p", '"><script>')
    assert "<script>" not in made
    assert '<text>#1b1f24 id="a" url(#b) 1.0 </text>' in made


def test_styles_that_recur_become_classes_and_nothing_else_changes() -> None:
    svgs = {
        "a": '<svg><path style="fill:#0072B2;stroke:none"/><text style="x:1"> style="a"</text>',
        "b": '<svg><path d="M0 0" style="fill:#0072B2;stroke:none"/></svg>',
    }
    made, style = classes_for(svgs)
    assert made["a"] == '<svg><path class="z0"/><text style="x:1"> style="a"</text>'
    assert made["b"] == '<svg><path d="M0 0" class="z0"/></svg>'
    assert style == "\n.figure .z0{fill:#0072B2;stroke:none}"


def test_a_text_without_an_anchor_does_not_inherit_that_of_the_others() -> None:
    usual = '<text style="font:9px a;text-anchor:middle">b</text>'
    svg = f'<svg>{usual}{usual}<text style="font:9px a">first line</text></svg>'
    made, style = classes_for({"a": svg})
    assert ".figure text{font:9px a;text-anchor:middle}" in style
    assert '<text style="text-anchor:start;font:9px a">first line' in made["a"]
