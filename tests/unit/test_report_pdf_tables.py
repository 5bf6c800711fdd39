"""Tables of the PDF over pages: heads, rows and notes stay together; wide ones use two lines."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader

from vitsense.report.html import template_root

typst = pytest.importorskip("typst")

_PAGE = """
#import "/sections/blocks.typ": *
#set page(width: 210mm, height: 120mm, margin: 18mm)
#set text(9pt)
#for table in json("/tables.json") { block-table(table, 3) }
"""


def pages(folder: Path, tables: list[dict[str, Any]]) -> list[list[str]]:
    """Words of every page of a document of the tables, on paper that holds about fifteen rows."""
    shutil.copytree(template_root(), folder, dirs_exist_ok=True)
    (folder / "tables.json").write_text(json.dumps(tables))
    (folder / "main.typ").write_text(_PAGE)
    pdf = typst.compile(str(folder / "main.typ"), root=str(folder))
    return [page.extract_text().split() for page in PdfReader(io.BytesIO(pdf)).pages]


def table(number: int, count: int, **changes: Any) -> dict[str, Any]:
    cells = [[f"t{number}r{k}", "1"] for k in range(count)]
    made = {"title": f"title{number}", "head": ["Row", "Value"], "rows": cells, "marked": []}
    return {**made, "reading": f"note{number}", "code": False, "across": [], **changes}


def test_no_page_begins_or_ends_with_one_row_and_notes_stay_with_their_rows(tmp_path: Path) -> None:
    counts = range(1, 36)
    found = pages(tmp_path, [table(n, n) for n in counts])
    assert len(found) > 50
    for number in counts:
        names = [f"t{number}r{k}" for k in range(number)]
        held = [[name for name in names if name in words] for words in found]
        assert [name for part in held for name in part] == names
        parts = [part for part in held if part]
        first = next(words for words, part in zip(found, held, strict=True) if part)
        last = [words for words, part in zip(found, held, strict=True) if part][-1]
        assert f"title{number}" in first
        assert f"note{number}" in last
        assert all("Value" in words for words, part in zip(found, held, strict=True) if part)
        assert len(parts) == 1 or min(len(parts[0]), len(parts[-1])) >= 3, (number, parts)


def test_long_texts_of_wide_tables_stand_below_their_row(tmp_path: Path) -> None:
    head = ["Module", "Reason", "Before", "After", "Result", "Loss"]
    reason = "the affine grid in use wastes no codes on the missing side, a symmetric one would"
    row = ["m.fc1", reason, "0.0025", "0.0026 (0.0018 to 0.0037)", "no help", "0.1 (-0.6 to 0.6)"]
    words = pages(tmp_path, [table(0, 0, head=head, rows=[row] * 3, code=True, across=[1])])
    text = " ".join(words[0]).replace("\u200b", "")
    assert text.count(f"Reason: {reason}") == 3
    assert "Module Before After Result Loss" in text
    for cell in row:
        assert text.count(cell) == 3
