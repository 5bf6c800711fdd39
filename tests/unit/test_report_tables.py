"""Tables as Parquet: the same as the CSV, or a sentence that says what is missing."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_fixture import make_run

from vitsense import cli
from vitsense.report import write_comparison


@pytest.fixture
def pyarrow() -> None:
    if find_spec("pyarrow") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("pyarrow is not installed")


@pytest.mark.usefixtures("pyarrow")
def test_every_table_is_the_same_as_parquet(tmp_path: Path, capsys: Any) -> None:
    run = make_run(tmp_path / "run", 6, hostile=True, unmeasured=True)
    assert cli.run(["report", str(run.path), "--format", "md", "--tables", "parquet"]) == 0
    written = sorted(run.path.glob("*.parquet"))
    assert {path.stem for path in written} == {path.stem for path in run.path.glob("*.csv")}
    assert all(str(path) in capsys.readouterr().out for path in written[:1])
    for path in written:
        pd.testing.assert_frame_equal(pd.read_parquet(path), run.table(path.stem))


@pytest.mark.usefixtures("pyarrow")
def test_changes_of_two_runs_are_the_same_as_parquet(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / name, 6, ["vit"]) for name in ("a", "b"))
    out = tmp_path / "out"
    write_comparison(first, second, out, html=False, pdf=False, parquet=True)
    table = pd.read_csv(out / "changes.csv")
    pd.testing.assert_frame_equal(pd.read_parquet(out / "changes.parquet"), table)


def test_without_pyarrow_one_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = make_run(tmp_path / "run", 6, ["vit"])
    monkeypatch.setattr("vitsense.report.tables.find_spec", lambda _: None)
    assert cli.run(["report", str(run.path), "--format", "md", "--tables", "parquet"]) == 3
    assert "pip install 'vitsense[parquet]'" in capsys.readouterr().err
