"""A PDF's many small objects gathered in compressed streams: the same, a quarter as large.

A tagged table has an object for every cell, and typst writes each as plain text.

Source: ISO 32000-1, section 7.5.7 (object streams) and 7.5.8 (cross-reference streams).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence

TOGETHER = 200
"""Objects of one stream: a reader unpacks it whole to see one of them."""

_TRAILER = re.compile(rb"trailer\s*<<(.*?)>>\s*startxref\s*(\d+)\s*%%EOF\s*$", re.DOTALL)
_TABLE = re.compile(rb"xref\s+0 (\d+)\s+")
_ENTRY = 20  # bytes of a line of the table
_WIDTHS = (1, 4, 2)  # bytes of kind, place, and number within it


def packed(pdf: bytes) -> bytes:
    """The PDF with its objects in compressed streams; those that are streams stay as they are.

    One entry goes: that tags are not suspect, which holds without it and of which poppler warns.

    Pages, text, tags and object numbers are the same. A file with another layout than typst's (one
    cross-reference table, numbered from 1 without holes) is given back unchanged.
    """
    objects = _objects(pdf)
    if objects is None:
        return pdf
    trailer = _TRAILER.search(pdf)
    assert trailer is not None
    begin = pdf.index(b"1 0 obj")
    written = [pdf[:begin]]
    place = begin
    entries: list[tuple[int, int, int]] = [(0, 0, 65535)]
    small: list[tuple[int, bytes]] = []
    for number, body in enumerate(objects, start=1):
        entries.append((1, place, 0))
        if not body.endswith(b"endstream"):
            small.append((number, body))
            continue
        written.append(b"%d 0 obj\n%s\nendobj\n" % (number, body))
        place += len(written[-1])
    for at in range(0, len(small), TOGETHER):
        those = small[at : at + TOGETHER]
        for k, (number, _) in enumerate(those):
            entries[number] = (2, len(entries), k)
        entries.append((1, place, 0))
        written.append(_object_stream(len(entries) - 1, those))
        place += len(written[-1])
    entries.append((1, place, 0))
    table = b"".join(
        b"".join(v.to_bytes(w, "big") for v, w in zip(entry, _WIDTHS, strict=True))
        for entry in entries
    )
    rest = re.sub(rb"/Size \d+", b"", trailer[1])
    head = b"/Type/XRef/W[%d %d %d]/Size %d%s" % (*_WIDTHS, len(entries), rest)
    written.append(_stream(len(entries) - 1, head, table))
    written.append(b"startxref\n%d\n%%%%EOF\n" % place)
    return b"".join(written)


def _objects(pdf: bytes) -> list[bytes] | None:
    """Content of every object, from the first on; None where the layout is another."""
    trailer = _TRAILER.search(pdf)
    table = _TABLE.match(pdf, int(trailer[2])) if trailer else None
    if trailer is None or table is None or b"/Prev" in trailer[1]:
        return None
    count = int(table[1])
    start = table.end()
    lines = [pdf[start + k * _ENTRY : start + (k + 1) * _ENTRY] for k in range(count)]
    if any(line[11:18] != b"00000 n" for line in lines[1:]):
        return None
    places = [int(line[:10]) for line in lines[1:]]
    return list(_contents(pdf, [*places, table.start()]))


def _contents(pdf: bytes, places: Sequence[int]) -> Iterator[bytes]:
    order = sorted(places)
    after = dict(zip(order, order[1:], strict=False))
    for number, place in enumerate(places[:-1], start=1):
        text = pdf[place : after[place]].strip()
        if b"/MarkInfo" in text:  # false is what holds without it, and some readers warn of it
            text = re.sub(rb"\s*/Suspects false", b"", text)
        yield text.removeprefix(b"%d 0 obj" % number).removesuffix(b"endobj").strip()


def _object_stream(number: int, those: Sequence[tuple[int, bytes]]) -> bytes:
    heads, bodies, at = [], [], 0
    for each, body in those:
        heads.append(b"%d %d" % (each, at))
        bodies.append(body)
        at += len(body) + 1
    head = b" ".join(heads) + b"\n"
    about = b"/Type/ObjStm/N %d/First %d" % (len(those), len(head))
    return _stream(number, about, head + b"\n".join(bodies))


def _stream(number: int, about: bytes, content: bytes) -> bytes:
    small = zlib.compress(content, 9)
    return b"%d 0 obj\n<<%s/Filter/FlateDecode/Length %d>>\nstream\n%s\nendstream\nendobj\n" % (
        number,
        about,
        len(small),
        small,
    )
