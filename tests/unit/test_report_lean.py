"""Smaller scripts and figures say the same."""

from __future__ import annotations

import re

import pytest

from vitsense.report.html import template_root
from vitsense.report.lean import lean_script, relative_lines


@pytest.mark.parametrize(
    ("script", "lean"),
    [
        ("if (a === b) {\n  // why\n  go( 1 );\n} else { c = a; }", "if(a===b){go(1);}else{c=a;}"),
        ('var t = "a  =  b // no remark", u = \'{ }\';', "var t=\"a  =  b // no remark\",u='{ }';"),
        ('x = /["/ ] = ( )/g.f(y) ? a - -1 : 9 / c;', 'x=/["/ ] = ( )/g.f(y)?a - -1:9 / c;'),
        ("a = 1\nb = 2\n", "a=1\nb=2"),
        ("f(function () { return 1; },\n  2)\n(3)", "f(function(){return 1;},2)\n(3)"),
    ],
)  # fmt: skip
def test_only_what_says_nothing_is_left_out(script: str, lean: str) -> None:
    assert lean_script(script) == lean


def test_the_pages_scripts_lose_only_space() -> None:
    for name in ("report.js", "runs.js"):
        script = (template_root() / name).read_text(encoding="utf-8")
        code = "\n".join(line for line in script.splitlines() if not line.strip().startswith("//"))
        lean = lean_script(script)
        assert re.sub(r"\s", "", lean) == re.sub(r"\s|/\*.*?\*/", "", code)
        assert len(lean) < 0.85 * len(code)


def points(path: str) -> list[tuple[str, float, float]]:
    """Where a path goes, read literally: absolute, or each point from the one before."""
    found, at = [], (0.0, 0.0)
    for kind, text in re.findall(r"([MLlhv])([^MLlhvz]+)", path):
        numbers = [float(n) for n in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", text)]
        steps = {"h": [(n, 0.0) for n in numbers], "v": [(0.0, n) for n in numbers]}
        for x, y in steps.get(kind) or zip(numbers[::2], numbers[1::2], strict=True):
            at = (x, y) if kind in "ML" else (at[0] + x, at[1] + y)
            found.append(("M" if kind == "M" else "L", *at))
    return found


@pytest.mark.parametrize(
    "path",
    [
        "M63.6 144.9L75.8 124.1L88.1 144.9L100.3 150L100.3 90.2",
        "M10 20L30 40M50.1 60.2L50.1 2L-3.5 2",
        "M1 1L1 1L1.5 1.3L1.9 1.7L0 0.7z",
        "M0.4 -0.6L10 -0.6L10 -0.2L9.5 -0.9M-0.5 0.5L-0.5 10.5L20 10.5L20 11",
        "M1 1",
    ],
)
def test_lines_go_where_they_went(path: str) -> None:
    svg = relative_lines(f'<path d="{path}" class="a"/>')
    made = re.findall(r' d="([^"]*)"', svg)[0]
    assert len(made) <= len(path)
    assert made.endswith("z") == path.endswith("z")
    assert len(points(made)) == path.count("M") + path.count("L")
    for mine, theirs in zip(points(made), points(path), strict=True):
        assert mine == (theirs[0], pytest.approx(theirs[1]), pytest.approx(theirs[2]))


def test_curves_are_left_as_they_are() -> None:
    svg = '<path d="M0 1C0 2 3 4 5 6"/><path d="M1 2 3 4L5 6"/>'
    assert relative_lines(svg) == svg
