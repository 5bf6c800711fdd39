"""The page's scripts and figures in fewer bytes, with nothing of them lost."""

from __future__ import annotations

import re

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


_STRAIGHT = re.compile(r' d="(M[-\d. ML]*)"')


def relative_lines(svg: str) -> str:
    """Paths of straight lines with each point counted from the one before: fewer digits."""
    return _STRAIGHT.sub(lambda found: f' d="{_relative(found[1])}"', svg)


def _relative(path: str) -> str:
    """The path in tenths from point to point, so that no error adds up; as it is if not shorter."""
    parts: list[str] = []
    at = (0, 0)
    for kind, place in re.findall(r"([ML])([^ML]+)", path):
        values = [round(10 * float(number)) for number in place.split()]
        if len(values) != 2:
            return path
        step = _pair(values[0] - at[0], values[1] - at[1])
        if kind == "M":
            parts += [f"M{_pair(*values)}", "l"]
        else:
            parts.append(step if parts[-1] == "l" or step.startswith("-") else f" {step}")
        at = (values[0], values[1])
    return min(path, "".join(parts).removesuffix("l"), key=len)


def _pair(x: int, y: int) -> str:
    across, down = f"{x / 10:g}", f"{y / 10:g}"
    return across + down if down.startswith("-") else f"{across} {down}"
