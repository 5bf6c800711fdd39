"""The chapter of the report about exported files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from vitsense.report.chapters.deployment import deployment
from vitsense.report.section import Finding, Section, Table, Words
from vitsense.runfolder import RunFolder, atomic_write, json_text
from vitsense.schemas import EXPORT_SCHEMA


def _entry(**changes: Any) -> dict[str, Any]:
    quartiles = {"median": 2.0, "low": 1.5, "high": 2.5, "runs": 9}
    return {
        "model": "swin",
        "format": "onnx",
        "file": "export/swin.onnx",
        "bytes": 2_500_000,
        "parity": {"images": 64, "same_top1": 63, "largest": 0.02, "step": 0.01},
        "first_difference": {"site": "head:input", "explanation": "a tie"},
        "sites": [
            {"site": "a:weight", "note": "int3 is held in 4 bits"},
            {"site": "b:weight", "note": ""},
        ],
        "latency": {
            "quantized_ms": quartiles,
            "float_ms": {**quartiles, "median": 4.0},
            "speedup": 2.0,
        },
    } | changes


def _chapter(folder: Path, entries: list[dict[str, Any]], model: str = "swin") -> Section | None:
    atomic_write(folder / "export.json", json_text({"schema": EXPORT_SCHEMA, "exports": entries}))
    return deployment(cast("Any", SimpleNamespace(run=RunFolder(folder))), model)


def test_a_run_without_exports_has_no_chapter(tmp_path: Path) -> None:
    assert deployment(cast("Any", SimpleNamespace(run=RunFolder(tmp_path))), "swin") is None
    assert _chapter(tmp_path, [_entry()], model="resnet") is None


def test_the_chapter_says_how_files_agree_and_where_they_begin_to_differ(tmp_path: Path) -> None:
    found = _chapter(tmp_path, [_entry()])
    assert found is not None
    finding = next(b for b in found.blocks if isinstance(b, Finding))
    assert finding.headline == "export/swin.onnx gives other classes on some images"
    assert "63 of 64 images" in finding.numbers
    assert "(2 steps)" in finding.numbers
    words = [b.text for b in found.blocks if isinstance(b, Words)]
    assert words[0] == "The first difference is at head:input: a tie."
    assert words[1].startswith("1 tensor is held in a wider type, as the file's operator set has")
    assert words[1].endswith(" none of its width: int3 is held in 4 bits.")
    (row,) = next(b for b in found.blocks if isinstance(b, Table)).rows
    assert row[:3] == ("export/swin.onnx", "2.50 MB", "63 of 64")
    assert row[4:] == ("4.00 ms", "2.00 ms (1.50 to 2.50)", "2.00")


def test_a_trained_file_its_prediction_and_the_session_it_needs(tmp_path: Path) -> None:
    entry = _entry(by_itself=0.25, session={"session.key": "1"})
    entry["trained"] = {"name": "vvtq", "checkpoint": "best.safetensors"}
    entry["arithmetic"] = {"images": 64, "same_top1": 62, "within_step": 60, "largest": 0.5}
    said = {"ms": 1.75, "kind": "measured per module", "profile": "my machine"}
    entry["latency"] = {**entry["latency"], "predicted": said}
    found = _chapter(tmp_path, [entry])
    assert found is not None
    words = " ".join(b.text for b in found.blocks if isinstance(b, Words))
    assert "trained model vvtq (best.safetensors)" in words
    assert "Predicted latency: 1.75 ms for one image (measured per module; my machine)" in words
    assert "measured: 2.00 ms" in words
    assert "in double precision: 62 of 64 images get the same class" in words
    assert "up to 0.25; with the session setting session.key=1" in words


def test_sites_that_differ_are_shown_with_what_explains_them(tmp_path: Path) -> None:
    def site(name: str, differing: int, tie: float, suspicious: bool) -> dict[str, Any]:
        apart = {"differing": differing, "steps": 1.0, "tie": tie, "off": 0.0}
        running = {**apart, "differing": 1234, "steps": 3.0}
        parts = {"as_it_runs": running, "alone": apart, "double": {**apart, "differing": 5}}
        return {"site": name, "values": 5000, "suspicious": suspicious, **parts}

    entry = _entry()
    entry["compared_sites"] = {"images": 13, "sites": 3, "conclusion": "7 of 15000 codes differ"}
    rows = [site("a", 0, 0.0, False), site("b", 7, 1e-5, False), site("c", 2, 0.3, True)]
    entry["site_differences"] = rows
    own = {"images": 64, "same_top1": 62, "largest": 0.5, "conclusion": "within the noise"}
    entry["arithmetic"] = own
    found = _chapter(tmp_path, [entry])
    assert found is not None
    words = " ".join(b.text for b in found.blocks if isinstance(b, Words))
    assert "3 sites computed by the file from torch's own inputs, on 13 images: 7 of" in words
    assert "What follows: within the noise." in words
    table = next(b for b in found.blocks if isinstance(b, Table))
    assert table.title == "1 sites differ by more than ties"
    assert table.rows == (
        ("c", "5,000", "1,234 (3)", "2 (1)", "0.3", "5"),
        ("b", "5,000", "1,234 (3)", "7 (1)", "1e-05", "5"),
    )
    assert table.marked == (0,)
    entry["site_differences"] = rows[:2]
    found = _chapter(tmp_path, [entry])
    assert found is not None
    assert (
        next(b for b in found.blocks if isinstance(b, Table)).title == "1 sites differ, all by ties"
    )


def test_a_file_that_was_not_run_is_listed_as_such(tmp_path: Path) -> None:
    packed = {"model": "swin", "format": "safetensors", "file": "a", "bytes": 10_000}
    found = _chapter(tmp_path, [packed])
    assert found is not None
    (table,) = found.blocks
    assert isinstance(table, Table)
    assert table.rows == (("a", "0.01 MB", "not compared"),)
