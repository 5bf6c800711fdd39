"""A made-up run with every chapter that a report can have, and what chapters say, as texts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from report_fixture import make_run
from training_record import add_training

from vitsense.report.section import Chart, Facts, Finding, Section, Table, Words
from vitsense.runfolder import RunFolder, atomic_write, json_text
from vitsense.schemas import EXPORT_SCHEMA, SCHEMAS

_REASON = "from -0.17 to 6.84, skewness 6.9: as after GELU; the affine grid in use wastes no codes"
_QUARTILES = {"median": 2.0, "low": 1.5, "high": 2.5, "runs": 9}
EXPORT = {
    "format": "onnx",
    "file": "export/first.onnx",
    "bytes": 2_500_000,
    "parity": {"images": 64, "same_top1": 63, "largest": 0.02, "step": 0.01},
    "first_difference": {"site": "head:input", "explanation": "a tie"},
    "sites": [{"site": "a:weight", "note": "int3 is held in 4 bits"}],
    "latency": {"quantized_ms": _QUARTILES, "float_ms": _QUARTILES, "speedup": 1.0},
}


def make_full_run(folder: Path, modules: int = 20, **options: Any) -> RunFolder:
    """A run of two models; the first was searched, explained, trained and exported."""
    run = make_run(folder, modules, **options)
    model = run.read_run()["models"][0]
    key = model["key"]
    names = list(run.table("modules").query("model == @key")["module"][:4])
    step = [key, "solved", 1, 16, 5, -0.846, 1.389, 0.874, True]
    _write(run, "refinement", [step])
    after = [0.004, 0.003, 0.001, 0.005, 1.5, 0.5, -0.2, 1.2]
    untried = [float("nan")] * 8
    causes = [
        [key, name, f"{name}:input", 4, "int4", "one-sided input", 6.9, _REASON, "two more bits"]
        for name in names
    ]
    both = zip(causes, (after, after, untried, untried), strict=True)
    _write(run, "causes", [cause + found + [None] * 8 for cause, found in both])
    add_training(run.path, model["weights_digest"])
    record = {"schema": EXPORT_SCHEMA, "exports": [EXPORT | {"model": key}]}
    atomic_write(run.path / "export.json", json_text(record))
    return run


def _write(run: RunFolder, name: str, rows: list[list[Any]]) -> None:
    frame = pd.DataFrame(rows, columns=list(SCHEMAS[name]))
    run.write_table(name, frame.astype(SCHEMAS[name]))


def texts(sections: Iterable[Section]) -> list[str]:
    """Every text of the sections that readers are to see."""
    found = []
    for section in sections:
        found.append(section.title)
        for block in section.blocks:
            match block:
                case Words():
                    found.append(block.text)
                case Finding():
                    found += [block.headline, block.numbers]
                case Facts():
                    found += [text for row in block.rows for text in row]
                case Table():
                    found += [block.title, *block.head, block.reading]
                    found += [cell for row in block.rows for cell in row]
                case Chart():
                    found += [block.title, block.reading]
    return found
