"""Runs in mode hessian, and traces of Hessians beside what is measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
from interruptions import interrupt_after

from vitsense.analyze import run_analysis
from vitsense.errors import UserInputError
from vitsense.plan.plan import Plan
from vitsense.report import compose
from vitsense.runfolder import RunFolder
from vitsense.settings import AnalyzeSettings, ModelRequest, SweepMode

SETTINGS = AnalyzeSettings(
    model=ModelRequest(name="small_models:glyph_net"),
    images=16,
    calibration=8,
    bits=(8, 3),
    batch=8,
    mode=SweepMode.HESSIAN,
    hessian_probes=4,
    refine=0,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_analysis(SETTINGS, out=tmp_path_factory.mktemp("hessian") / "run")


def test_every_cell_is_estimated_and_the_report_names_the_mode(run: RunFolder) -> None:
    cells = run.table("sensitivity")
    assert set(cells["status"]) == {"estimated"}
    assert set(cells["mode"]) == {"hessian"}
    assert (cells["n"] == 16).all()
    assert (cells["kl"] >= 0).all()
    assert cells["drop"].isna().all()
    assert (cells["reason"].fillna("") != "").equals(cells["kl"] == 0)
    assert run.table("estimates")["hessian_kl"].tolist() == cells["kl"].tolist()
    assert run.table("estimates")["fisher_kl"].isna().all()
    plan = Plan.load(run.plan_path())
    assert plan.measured is not None
    document = compose(run)
    assert "mode hessian" in document.warnings[0]
    assert dict(document.method)["Measurement"].startswith("hessian:")


def test_an_interrupted_run_continues_to_the_same_table(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        run_analysis(SETTINGS, out=tmp_path / "cut")
    monkeypatch.undo()
    again = run_analysis(SETTINGS, out=tmp_path / "cut")
    pd.testing.assert_frame_equal(
        run.table("sensitivity"), again.table("sensitivity"), check_exact=True
    )


def test_beside_a_measurement_traces_are_among_the_predictors(tmp_path: Path) -> None:
    settings = dataclasses.replace(
        SETTINGS, mode=SweepMode.EXACT, bits=(3,), by=(), estimates=False
    )
    run = run_analysis(settings, out=tmp_path / "run")
    assert set(run.table("sensitivity")["status"]) == {"measured"}
    statistics = set(run.table("predictors")["statistic"])
    assert {"hessian_kl", "hessian_trace"} <= statistics
    assert "fisher_kl" not in statistics  # --no-estimates
    estimates = run.table("estimates")
    assert estimates["hessian_trace"].notna().sum() == len(estimates)
    assert estimates["fisher_kl"].isna().all()


def test_a_single_probe_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"--hessian-probes is 1: it must be at least 2"):
        dataclasses.replace(SETTINGS, hessian_probes=1)
