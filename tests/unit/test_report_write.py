"""Writing the report: which files, atomically, without torch, in time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from report_fixture import make_run

from vitsense.cli import run as call
from vitsense.errors import UserInputError
from vitsense.report import compose, write_report
from vitsense.report.html import template_root
from vitsense.runfolder import RunFolder

ROOT = Path(__file__).parents[2]

_WRITE = """
import sys
from pathlib import Path
from vitsense.cli import run as call
from vitsense.report import write_report
from vitsense.runfolder import RunFolder
write_report(RunFolder.open(Path(sys.argv[1])))
print(sorted({"torch", "timm", "torchvision"} & set(sys.modules)))
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", 8, ["vit"])


def test_all_three_files_are_written_and_named(run: RunFolder) -> None:
    assert [path.name for path in write_report(run)] == ["report.json", "report.html", "report.pdf"]
    assert json.loads((run.path / "report.json").read_text()) == json.loads(
        json.dumps(compose(run).to_json())
    )
    assert (run.path / "report.html").read_text().startswith("<!doctype html>")
    assert (run.path / "report.pdf").read_bytes().startswith(b"%PDF-")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"pdf": False}, ["report.json", "report.html"]),
        ({"html": False}, ["report.json", "report.pdf"]),
    ],
)
def test_one_format_alone(run: RunFolder, options: dict[str, bool], names: list[str]) -> None:
    assert [path.name for path in write_report(run, **options)] == names
    assert sorted(p.name for p in run.path.glob("report.*")) == sorted(names)


def test_with_another_folder_the_run_is_only_read(run: RunFolder, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    out = tmp_path / "there"
    formats = ["--format", "md", "--tables", "parquet"]
    assert call(["report", str(run.path), "--out", str(out), *formats]) == 0
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
    assert {"report.json", "report.md", "sensitivity.parquet"} <= {p.name for p in out.iterdir()}


def test_writing_twice_gives_the_same_files_and_nothing_else(run: RunFolder) -> None:
    first = {path.name: path.read_bytes() for path in write_report(run)}
    names = sorted(path.name for path in run.path.iterdir())
    assert {path.name: path.read_bytes() for path in write_report(run)} == first
    assert sorted(path.name for path in run.path.iterdir()) == names


def test_a_failed_write_keeps_the_earlier_report(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(run, pdf=False)
    before = (run.path / "report.html").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserInputError, match="No space left"):
        write_report(run, pdf=False)
    assert (run.path / "report.html").read_bytes() == before
    assert not list(run.path.glob(".tmp-*"))


def test_a_report_needs_no_torch(run: RunFolder) -> None:
    """`-W error`: nor does anything warn on the way."""
    command = [sys.executable, "-W", "error", "-c", _WRITE, str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_both_formats_take_at_most_five_seconds_of_the_processor(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 60)
    started = time.process_time()
    write_report(run)
    assert time.process_time() - started <= 5.0


def test_the_templates_are_found() -> None:
    names = {path.name for path in template_root().iterdir()}
    assert {"report.html.jinja", "report.typ", "style.css", "report.js"} <= names
