"""The page's scripts and figures in fewer bytes, with nothing of them lost."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PARTS = re.compile(
    r"""(?P<kept>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'"""  # a string
    r"""|(?<=[(=,:\s])/(?![/*\s])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\[\n])+/[gimuy]*)"""
    r"""|(?P<remark>//[^\n]*|/\*.*?\*/)""",
    re.DOTALL,
)
_AROUND = re.compile(r" ?([={}()\[\],;:?!<>&|]+) ?")
_SUM = re.compile(r"(?<![+-]) ([+-]) (?![+-])")
_LINES = re.compile(r"(?<=[{;,(\[=:?&|])\n+|\n+(?=[})\]])")


def lean_script(script: str) -> str:
    """A script without indentation, remarks, and spaces that part nothing.

    Strings and patterns are kept as they are. Ends of lines go only where a statement goes on, so
    that a missing semicolon stays harmless.
    """
    kept: list[str] = []

    def out(found: re.Match[str]) -> str:
        if found["kept"] is None:
            return ""
        kept.append(found["kept"])
        return f"\0{len(kept) - 1}\0"

    text = _PARTS.sub(out, script)
    text = "\n".join(filter(None, (line.strip() for line in text.splitlines())))
    text = _SUM.sub(r"\1", _AROUND.sub(r"\1", text))
    text = _LINES.sub("", text)
    return re.sub("\0(\\d+)\0", lambda found: kept[int(found[1])], text)


_STRAIGHT = re.compile(r' d="(M[-\d. ML]*z?)"')


def relative_lines(svg: str) -> str:
    """Paths of straight lines with each point counted from the one before: fewer digits."""
    return _STRAIGHT.sub(lambda found: f' d="{_relative(found[1])}"', svg)


def _relative(path: str) -> str:
    """The path in tenths from point to point, so that no error adds up; as it is if not shorter.

    Every point stays one, for marks stand at them.
    """
    steps: list[tuple[str, tuple[int, ...]]] = []
    at = (0, 0)
    for kind, place in re.findall(r"([ML])([^MLz]+)", path):
        values = [round(10 * float(number)) for number in place.split()]
        if len(values) != 2:
            return path
        x, y = values[0] - at[0], values[1] - at[1]
        if kind == "M":
            steps.append(("M", tuple(values)))
        else:
            steps.append(("h", (x,)) if not y else ("l", (x, y)) if x else ("v", (y,)))
        at = (values[0], values[1])
    return min(path, _commands(steps) + "z" * path.endswith("z"), key=len)


def _commands(steps: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    """Commands of a path; a letter, a zero or a space stands only where it parts something.

    Source: SVG 2, section 9.3.9 "The grammar for path data".
    """
    text = before = ""
    for kind, values in steps:
        if kind != before or kind == "M":
            text += kind
        for value in values:
            number = re.sub(r"^(-?)0\.", r"\1.", f"{value / 10:g}")
            fraction = "." in re.split("[a-zA-Z -]", text)[-1]
            apart = number[0] == "-" or (number[0] == "." and fraction)
            joined = apart or not text[-1].isdigit()
            text += number if joined else f" {number}"
        before = kind
    return text
