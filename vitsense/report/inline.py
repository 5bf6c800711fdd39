"""A matplotlib SVG made fit to stand in an HTML page: small, with ids of its own, in page ink."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from vitsense.report.drawing import COLOURS, INK

_TAG = re.compile(r"<[^>]*>")
_TEXT = re.compile(r'<text[^>]* style="[^>]*>')
_MARK = re.compile(r'<use href="#([^"]+)" x="([^"]+)" y="([^"]+)" (style="[^"]+")/>')
"""A shape at a place: a tick, or one point of a series."""
_SEGMENT = re.compile(r'<path d="(M[^L"]*L[^L"]*)" (clip-path="[^"]*" style="[^"]*")/>')
"""A straight line: of the grid, or a whisker."""


_ROUND = re.compile(r' d="M0 ([\d.]+)(?:C[-\d. ]+){8}z"')
"""A round mark, which matplotlib draws as eight curves."""


_MANY = 12


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
    svg = re.sub(r'<path d="M[-\d. ]*" [^>]*/>', "", svg)  # a place to which no line leads
    svg = _ROUND.sub(_circle, svg)
    svg = _without_empty_groups(svg)
    svg = _without_plain_groups(svg)
    svg = re.sub(r"<g[^>]*></g>|</defs><defs>", "", _gathered(svg))
    head = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}" class="figure">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)


def _circle(mark: re.Match[str]) -> str:
    """The round mark as two arcs."""
    r = mark[1]
    return f' d="M0 {r}A{r} {r} 0 0 1 0 -{r}A{r} {r} 0 0 1 0 {r}z"'


_STEP = re.compile(f"<g[^>]*>|</g>|{_MARK.pattern}|{_SEGMENT.pattern}")


def _gathered(svg: str) -> str:
    """Marks that are alike in one group, and lines that are alike, drawn at once."""
    alike: dict[tuple[str, ...], list[re.Match[str]]] = {}
    keys: dict[int, tuple[str, ...]] = {}
    groups: list[str] = []
    for found in _STEP.finditer(svg):
        if found[0] == "</g>":
            groups.pop()
        elif found[0].startswith("<g"):
            groups.append(found[0])
        else:
            kind = (found[1], found[4]) if found[1] else (found[6],)
            keys[found.start()] = (*groups, *kind)
            alike.setdefault(keys[found.start()], []).append(found)

    markers: dict[tuple[str, str], str] = {}

    def once(found: re.Match[str]) -> str:
        those = alike[keys[found.start()]] if found.start() in keys else [found]
        if len(those) == 1:
            return found[0]
        if found.start() != those[0].start():
            return ""
        return _marks(those, markers) if found[1] else _segments(those)

    return _STEP.sub(once, svg)


def _marks(those: Sequence[re.Match[str]], markers: dict[tuple[str, str], str]) -> str:
    """Marks as the vertices of one path that has a marker: a third of the bytes.

    ``markers`` are those of the figure by shape and style; a new one joins them.
    """
    name, style = those[0][1], those[0][4]
    whole = len(those) > _MANY  # of so many points nobody sees half a pixel
    places = "L".join(
        " ".join(f"{float(v):.0f}" if whole else v for v in (found[2], found[3])) for found in those
    )
    defined = ""
    if (name, style) not in markers:
        own = markers[name, style] = f"{name}m{len(markers)}"
        defined = (
            f'<defs><marker id="{own}" overflow="visible" markerUnits="userSpaceOnUse">'
            f'<use href="#{name}" {style}/></marker></defs>'
        )
    return f'{defined}<path d="M{places}" style="fill:none;marker:url(#{markers[name, style]})"/>'


def _segments(those: Sequence[re.Match[str]]) -> str:
    return f'<path d="{"".join(found[5] for found in those)}" {those[0][6]}/>'


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
    for number, colour in enumerate(COLOURS):  # the page has lighter ones where it is dark
        style = style.replace(colour.lower(), f"var(--c{number})")
    style = re.sub(r"fill-opacity: 0\.1(?![\d])", "fill-opacity:var(--band)", style)
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


def _anchored(tag: re.Match[str]) -> str:
    """A text of a font says where it is anchored: else it would inherit that of the usual style."""
    if "text-anchor" in tag[0] or "font" not in tag[0]:
        return tag[0]
    return re.sub(r' style="', ' style="text-anchor:start;', tag[0], count=1)


def classes_for(svgs: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The SVGs with classes in place of styles that occur again and again, and the style sheet."""
    pattern = re.compile(r' style="([^"]*)"')
    svgs = {name: _TEXT.sub(_anchored, svg) for name, svg in svgs.items()}
    counts = Counter(
        style
        for svg in svgs.values()
        for tag in _TAG.findall(svg)
        for style in pattern.findall(tag)
    )
    texts = Counter(pattern.findall(tag)[0] for svg in svgs.values() for tag in _TEXT.findall(svg))
    usual = next((style for style, count in texts.most_common(1) if count > 1), "")
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
