"""The packed PDF is the same document in fewer bytes."""

from __future__ import annotations

import io
import re

import pytest
import typst
from pypdf import PdfReader
from pypdf.generic import ArrayObject, DictionaryObject, IndirectObject, PdfObject

from vitsense.glyphs import font_folder
from vitsense.report.pdf_packed import TOGETHER, packed

SOURCE = """
#set document(title: "rows", date: none)
#set text(font: "DejaVu Sans", lang: "en")
= First
#table(columns: 3, fill: yellow, table.header([a], [b], [c]), ..range(300).map(k => [cell #k]))
= Second
Text with endobj and 1 0 obj and endstream in it.
"""


@pytest.fixture(scope="module")
def plain() -> bytes:
    made = typst.compile(
        SOURCE.encode(),
        format="pdf",
        pdf_standards="ua-1",
        timestamp=0,
        font_paths=[str(font_folder())],
        ignore_system_fonts=True,
    )
    assert isinstance(made, bytes)
    return made


def test_every_object_is_the_same(plain: bytes) -> None:
    before, after = (PdfReader(io.BytesIO(pdf), strict=True) for pdf in (plain, packed(plain)))
    numbers = range(1, int(before.trailer["/Size"]))
    assert len(numbers) > TOGETHER
    for number in numbers:
        pair = [reader.get_object(IndirectObject(number, 0, reader)) for reader in (before, after)]
        said, kept = map(content, pair)
        if isinstance(said, dict) and "/MarkInfo" in said:  # false is what holds without it
            assert not said["/MarkInfo"].pop("/Suspects").value
        assert said == kept
    assert before.trailer["/ID"] == after.trailer["/ID"]


def content(value: PdfObject | None) -> object:
    """An object with references as numbers; of a stream its bytes as well."""
    if isinstance(value, IndirectObject):
        return ("to", value.idnum)
    if isinstance(value, DictionaryObject):
        found = {key: content(value.raw_get(key)) for key in value}
        return found | {"data": value.get_data()} if hasattr(value, "get_data") else found
    if isinstance(value, ArrayObject):
        return [content(each) for each in list.__iter__(value)]
    return value


def test_a_tagged_table_takes_half_of_the_bytes_at_most(plain: bytes) -> None:
    assert len(packed(plain)) < len(plain) / 2


def test_equal_input_gives_equal_bytes(plain: bytes) -> None:
    assert packed(plain) == packed(plain)


def test_it_is_not_packed_twice(plain: bytes) -> None:
    once = packed(plain)
    assert packed(once) == once


@pytest.mark.parametrize(
    "change",
    [
        lambda pdf: b"no PDF at all",
        lambda pdf: re.sub(rb"startxref\s*\d+", b"startxref\n0", pdf),
        lambda pdf: pdf.replace(b"/Root", b"/Prev 5/Root"),
        lambda pdf: pdf.replace(b" 00000 n", b" 00001 n", 1),
    ],
)
def test_another_layout_is_left_alone(plain: bytes, change) -> None:
    other = change(plain)
    assert packed(other) == other
