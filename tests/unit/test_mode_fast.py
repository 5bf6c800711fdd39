"""Runs in mode fast: estimates in the table, plans from them, and no drop that nobody measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
from interruptions import interrupt_after

from vitsense.analyze import run_analysis
from vitsense.plan.again import plan_again
from vitsense.plan.plan import Plan
from vitsense.report import compose
from vitsense.runfolder import RunFolder
from vitsense.settings import AnalyzeSettings, ModelRequest, SweepMode
from vitsense.verdict import verdict

SETTINGS = AnalyzeSettings(
    model=ModelRequest(name="glyph_resnet"),
    images=32,
    calibration=16,
    bits=(8, 4, 2),
    batch=16,
    mode=SweepMode.FAST,
    refine=0,
)


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_analysis(SETTINGS, out=tmp_path_factory.mktemp("fast") / "run")


def test_every_cell_is_estimated_and_has_no_drop(fast: RunFolder) -> None:
    cells = fast.table("sensitivity")
    assert set(cells["status"]) == {"estimated"}
    assert set(cells["mode"]) == {"fast"}
    assert (cells["n"] == 32).all()
    assert (cells["kl_low"] <= cells["kl"]).all()
    assert (cells["kl"] < cells["kl_high"]).all()
    assert cells[["drop", "agreement", "sqnr_db", "lost"]].isna().all().all()
    kept = [record for record in fast.read_state() if "checked" in record]
    assert {record["cells"][0][1] for record in kept} == {"int2"}
    first = fast.table("estimates").set_index(["module", "bits"])["fisher_kl"]
    rated = cells.set_index(["module", "bits"])["kl"]
    changed = ((rated - first[rated.index]).abs() > 1e-12).groupby("bits").mean()
    assert changed.to_dict() == {2: 1.0, 4: 0.0, 8: 0.0}
    mean = cells.groupby("bits")["kl"].mean()
    assert mean[2] > mean[4] > mean[8] > 0


def test_plans_are_made_from_estimates_and_measured_as_a_whole(fast: RunFolder) -> None:
    plan = Plan.load(fast.plan_path())
    assert plan.cost is not None
    assert plan.cost["avg_bits"] <= 4.0 + 1e-6
    assert plan.measured is not None
    assert plan.measured["n"] == 32
    assert fast.table("joint")["drop"].notna().all()
    wider, _ = plan_again(fast, "avg-bits=6", out=fast.path / "wider.json")
    assert wider.cost is not None
    assert wider.cost["avg_bits"] > plan.cost["avg_bits"]


def test_the_report_says_first_that_these_are_estimates(fast: RunFolder) -> None:
    document = compose(fast)
    assert document.warnings[0].startswith("Divergences of single modules are estimates")
    (checked,) = [w for w in document.warnings if "was also measured" in w]
    assert "on 32 drawn images: at 2 bits it is " in checked
    assert "4 bits" not in checked
    (model,) = document.models
    assert model.loss == "drop of top-1"  # of whole plans
    cells = [cell for row in model.rows for cell in row.cells]
    # the worst modules were measured on all images, beside their remedies
    measured = [cell for cell in cells if "~" not in cell.text]
    assert 1 <= len(measured) <= 5
    assert all(cell.detail.endswith(" images") and cell.nats for cell in measured)
    cells = [cell for cell in cells if cell not in measured]
    assert all("the drop was not measured" in cell.detail for cell in cells)
    assert dict(document.method)["Measurement"].startswith("fast:")
    sentences = verdict("m", None, fast.table("sensitivity"), fast.table("joint"))
    assert any("of the estimated divergence" in line for line in sentences)


def test_an_interrupted_estimate_continues_to_the_same_table(
    fast: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run_analysis(SETTINGS, out=tmp_path / "cut")
    monkeypatch.undo()
    again = run_analysis(SETTINGS, out=tmp_path / "cut")
    for name in ("sensitivity", "joint", "pareto"):
        pd.testing.assert_frame_equal(fast.table(name), again.table(name), check_exact=True)


def test_a_run_of_another_mode_is_refused(fast: RunFolder) -> None:
    from vitsense.errors import StaleResultError

    other = dataclasses.replace(SETTINGS, mode=SweepMode.EXACT)
    with pytest.raises(StaleResultError, match="mode"):
        run_analysis(other, out=fast.path)
