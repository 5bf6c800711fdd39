"""A matplotlib SVG made fit to stand in an HTML page: small, with ids of its own, in page ink."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from vitsense.report.drawing import INK

_TAG = re.compile(r"<[^>]*>")
_TEXT = re.compile(r'<text[^>]* style="[^>]*>')
_MARK = re.compile(r'<use href="#([^"]+)" x="([^"]+)" y="([^"]+)" (style="[^"]+")/>')
"""A shape at a place: a tick, or one point of a series."""
_SEGMENT = re.compile(r'<path d="(M[^L"]*L[^L"]*)" (clip-path="[^"]*" style="[^"]*")/>')
"""A straight line: of the grid, or a whisker."""


def inline(svg: str, prefix: str, alt: str) -> str:
    """The SVG with ids that begin with ``prefix``, and ``alt`` as its name for screen readers.

    Only tags are rewritten: text between them, such as the name of a model, is left alone.
    """
    from markupsafe import escape

    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2]
    used = dict.fromkeys(
        found
        for tag in _TAG.findall(svg)
        for found in re.findall(r'(?:url\(|xlink:href=")#([^)"]+)', tag)
    )
    ids = {old: f"{prefix}-{n}" for n, old in enumerate(used)}
    svg = re.sub(r">\s+<", "><", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = _TAG.sub(lambda tag: _small_tag(tag[0], ids), svg)
    svg = re.sub(r'<path d="[^"]*" style="fill:none"/>', "", svg)  # nothing of it is seen
    svg = _without_empty_groups(svg)
    svg = _without_plain_groups(svg)
    svg = _gathered(svg, _MARK, (1, 4), _marks)
    svg = _gathered(svg, _SEGMENT, (2,), _segments)
    head = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}" class="figure">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)


def _gathered(
    svg: str,
    pattern: re.Pattern[str],
    key: tuple[int, ...],
    made: Callable[[Sequence[re.Match[str]]], str],
) -> str:
    """What is alike, drawn at once where the first of it stood."""
    alike: dict[tuple[str, ...], list[re.Match[str]]] = {}
    for found in pattern.finditer(svg):
        alike.setdefault(tuple(found[k] for k in key), []).append(found)

    def once(found: re.Match[str]) -> str:
        those = alike[tuple(found[k] for k in key)]
        if len(those) == 1:
            return found[0]
        return made(those) if found.start() == those[0].start() else ""

    return pattern.sub(once, svg)


def _marks(those: Sequence[re.Match[str]]) -> str:
    """Marks as the vertices of one path that has a marker: a third of the bytes."""
    name, style = those[0][1], those[0][4]
    own = f"{name}m{those[0].start()}"
    places = "L".join(f"{found[2]} {found[3]}" for found in those)
    return (
        f'<defs><marker id="{own}" overflow="visible" markerUnits="userSpaceOnUse">'
        f'<use href="#{name}" {style}/></marker></defs>'
        f'<path d="M{places}" style="fill:none;marker:url(#{own})"/>'
    )


def _segments(those: Sequence[re.Match[str]]) -> str:
    return f'<path d="{"".join(found[1] for found in those)}" {those[0][2]}/>'


def _without_plain_groups(svg: str) -> str:
    """Groups without attributes say nothing; their content stays."""
    kept: list[bool] = []

    def tag(found: re.Match[str]) -> str:
        if found[0].startswith("</"):
            return found[0] if kept.pop() else ""
        kept.append(found[0] != "<g>")
        return found[0] if kept[-1] else ""

    return re.sub(r"<g(?:\s[^>]*)?>|</g>", tag, svg)


def _small_tag(tag: str, ids: dict[str, str]) -> str:
    """One tag with its ids exchanged and without what the page's style says already."""
    tag = re.sub(r"\s+", " ", tag)
    tag = re.sub(r' id="([^"]+)"', lambda m: f' id="{ids[m[1]]}"' if m[1] in ids else "", tag)
    tag = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{ids[m[1]]})", tag)
    tag = re.sub(r'xlink:href="#([^"]+)"', lambda m: f'href="#{ids[m[1]]}"', tag)
    tag = tag.replace(INK, "currentColor")
    tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
    tag = re.sub(r' d="[^"]*"', lambda m: re.sub(r" ?([MLCQz]) ?| (?=\")", r"\1", m[0]), tag)
    tag = tag.replace(".0 ", " ").replace('.0"', '"')
    return re.sub(r' style="([^"]*)"', lambda m: f' style="{_small_style(m[1], tag)}"', tag)


def _small_style(style: str, tag: str) -> str:
    parts = [re.sub(r": ", ":", part.strip(), count=1) for part in style.split(";")]
    if tag.startswith("<text"):
        known = ("font-family", "fill:currentColor")
        parts = [part for part in parts if not part.startswith(known)]
    return ";".join(part for part in parts if part)


def _without_empty_groups(svg: str) -> str:
    before = ""
    while before != svg:
        before = svg
        svg = re.sub(r"<g>(<use [^>]*/>)</g>", r"\1", svg)
        svg = svg.replace("<g></g>", "").replace("<defs></defs>", "")
    return svg


def classes_for(svgs: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The SVGs with classes in place of styles that occur again and again, and the style sheet."""
    pattern = re.compile(r' style="([^"]*)"')
    counts = Counter(
        style
        for svg in svgs.values()
        for tag in _TAG.findall(svg)
        for style in pattern.findall(tag)
    )
    texts = Counter(pattern.findall(tag)[0] for svg in svgs.values() for tag in _TEXT.findall(svg))
    usual = max(texts, key=lambda style: texts[style], default="")
    counts.pop(usual, None)
    names = {s: f"z{n}" for n, s in enumerate(s for s, k in counts.items() if k > 1 and len(s) > 9)}

    def small(tag: re.Match[str]) -> str:
        if tag[0].startswith("<text") and usual in pattern.findall(tag[0]):
            return pattern.sub("", tag[0])
        return pattern.sub(
            lambda m: f' class="{names[m[1]]}"' if m[1] in names else m[0], tag[0], count=1
        )

    style = f"\n.figure text{{{usual}}}" if usual else ""
    style += "".join(f"\n.figure .{name}{{{text}}}" for text, name in names.items())
    return {name: _TAG.sub(small, svg) for name, svg in svgs.items()}, style
