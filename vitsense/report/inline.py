"""A matplotlib SVG made fit to stand in an HTML page: small, with ids of its own, in page ink."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from vitsense.report.drawing import INK

_TAG = re.compile(r"<[^>]*>")
_RUN = re.compile(
    r'<use (href="[^"]+") x="[^"]+" y="[^"]+" (style="[^"]+")/>'
    r'(?:<use \1 x="[^"]+" y="[^"]+" \2/>)+'
)
"""Marks of one series: the same shape and style at many places."""


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
    svg = _without_empty_groups(svg)
    svg = _RUN.sub(lambda run: f"<g {run[2]}>{run[0].replace(f' {run[2]}', '')}</g>", svg)
    head = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}" class="figure">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)


def _small_tag(tag: str, ids: dict[str, str]) -> str:
    """One tag with its ids exchanged and without what the page's style says already."""
    tag = re.sub(r"\s+", " ", tag)
    tag = re.sub(r' id="([^"]+)"', lambda m: f' id="{ids[m[1]]}"' if m[1] in ids else "", tag)
    tag = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{ids[m[1]]})", tag)
    tag = re.sub(r'xlink:href="#([^"]+)"', lambda m: f'href="#{ids[m[1]]}"', tag)
    tag = tag.replace(INK, "currentColor")
    tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
    tag = re.sub(r' d="[^"]*"', lambda m: re.sub(r" ?([MLCQz]) ?", r"\1", m[0]), tag)
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
    names = {s: f"z{n}" for n, s in enumerate(s for s, k in counts.items() if k > 1 and len(s) > 9)}

    def small(tag: re.Match[str]) -> str:
        return pattern.sub(
            lambda m: f' class="{names[m[1]]}"' if m[1] in names else m[0], tag[0], count=1
        )

    style = "".join(f"\n.figure .{name}{{{text}}}" for text, name in names.items())
    return {name: _TAG.sub(small, svg) for name, svg in svgs.items()}, style
