"""Whole runs: what they leave behind, how they continue, what they refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
from interruptions import interrupt_after

from vitsense.analyze import run_analysis
from vitsense.errors import StaleResultError, UserInputError
from vitsense.plan.plan import Plan
from vitsense.runfolder import RunFolder
from vitsense.settings import AnalyzeSettings, ModelRequest, SweepMode, WeightSource

SETTINGS = AnalyzeSettings(
    model=ModelRequest(name="glyph_resnet"),
    images=24,
    calibration=12,
    bits=(8, 4, 2),
    batch=12,
    mode=SweepMode.EXACT,
)
NET = ModelRequest(name="small_models:glyph_net")
SHORT = dataclasses.replace(
    SETTINGS, model=NET, images=8, calibration=6, bits=(4, 2), batch=4, refine=1
)
TINY = dataclasses.replace(SETTINGS, images=4, calibration=4, bits=(8,), batch=4, refine=0)
TABLES = (
    "modules", "statistics", "sensitivity", "grids", "groups", "joint", "additivity", "refinement",
    "pareto", "pareto_bits", "coverage",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_analysis(SETTINGS, out=tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_analysis(SHORT, out=tmp_path_factory.mktemp("runs") / "short")


def assert_equal_tables(a: RunFolder, b: RunFolder) -> None:
    for name in TABLES:
        pd.testing.assert_frame_equal(a.table(name), b.table(name), check_exact=True)
    assert Plan.load(a.plan_path()).to_json() == Plan.load(b.plan_path()).to_json()


def test_a_run_leaves_complete_tables(finished: RunFolder) -> None:
    record = finished.read_run()
    assert record["status"] == "complete"
    modules, cells = finished.table("modules"), finished.table("sensitivity")
    assert len(cells) == len(modules) * 3
    assert set(cells["status"]) == {"measured"}
    assert (cells["n"] == 24).all()
    assert cells[["drop", "drop_low", "drop_high", "kl", "sqnr_db"]].notna().all().all()
    assert (cells["drop_low"] <= cells["drop"]).all()
    assert (cells["drop"] <= cells["drop_high"]).all()
    joint = finished.table("joint").set_index("plan")
    assert {"uniform-8", "uniform-4", "uniform-2", "recommended"} <= set(joint.index)
    steps = finished.table("refinement")
    assert set(steps["start"]) <= {"solved", "uniform-4"}
    assert len(steps)
    assert "solved" not in joint.index or steps["taken"].any()
    assert record["models"][0]["fp"]["top1"] > 90
    assert joint.loc["uniform-2", "drop"] > 20  # 2 bits visibly hurt
    assert joint.loc["uniform-8", "drop"] < 5
    assert record["verdict"]


def test_the_drop_of_plans_is_predicted_from_plans(finished: RunFolder) -> None:
    """8 bits lose nothing, 2 bits everything: only the random plans between tell how it rises."""
    model = finished.read_run()["models"][0]["drop_model"]
    assert model["basis"] == "plans"
    joint = finished.table("joint").set_index("plan")
    for name in ("random-1", "random-2", "random-3"):
        row = joint.loc[name]
        assert row["predicted_low"] <= row["drop_high"]
        assert row["predicted_high"] >= row["drop_low"]


def test_the_plan_keeps_its_budget_and_names_every_module(finished: RunFolder) -> None:
    plan = Plan.load(finished.plan_path())
    assert plan.cost is not None
    assert plan.cost["avg_bits"] <= 4.0 + 1e-6
    assert list(plan.bits) == list(finished.table("modules")["module"])
    assert plan.measured is not None
    assert plan.measured["n"] == 24
    first, last = plan.modules[0], plan.modules[-1]
    assert (first.bits, last.bits) == (8, 8)
    assert first.pinned


def test_the_same_settings_give_the_same_tables(short: RunFolder, tmp_path: Path) -> None:
    assert_equal_tables(short, run_analysis(SHORT, out=tmp_path / "again"))


def test_a_finished_run_is_not_measured_again(short: RunFolder) -> None:
    before = (short.path / "state.jsonl").read_bytes()
    run_analysis(SHORT, out=short.path)
    assert (short.path / "state.jsonl").read_bytes() == before


@pytest.mark.parametrize("after", [1, 12, 30])
def test_an_interrupted_run_continues_to_the_same_tables(
    short: RunFolder, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, after)
    with pytest.raises(KeyboardInterrupt):
        run_analysis(SHORT, out=tmp_path / "cut")
    cut = RunFolder.open(tmp_path / "cut")
    assert cut.read_run()["status"] == "interrupted"
    assert len(cut.read_state()) == after
    monkeypatch.undo()
    assert_equal_tables(short, run_analysis(SHORT, out=tmp_path / "cut"))


def test_an_unfinished_run_is_found_without_its_name(tmp_path: Path, monkeypatch) -> None:
    append, calls = RunFolder.append_state, []

    def interrupting(self: RunFolder, record: dict) -> None:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(record)
        append(self, record)

    settings = dataclasses.replace(TINY, model=NET)
    monkeypatch.setattr(RunFolder, "append_state", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run_analysis(settings, root=tmp_path)
    monkeypatch.undo()
    (cut,) = RunFolder.all_in(tmp_path)
    assert run_analysis(settings, root=tmp_path).path == cut.path
    assert run_analysis(settings, root=tmp_path).path != cut.path  # a finished one is not reused


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": 50}, "images"),
        ({"bits": (8, 4)}, "bits"),
        ({"seed": 1}, "seed"),
        ({"model": ModelRequest(name="glyph_swin")}, "model"),
    ],
)
def test_a_run_of_other_settings_is_refused_by_name(
    finished: RunFolder, change: dict, named: str
) -> None:
    before = {p.name: p.read_bytes() for p in finished.path.iterdir()}
    with pytest.raises(StaleResultError, match=named):
        run_analysis(dataclasses.replace(SETTINGS, **change), out=finished.path)
    assert {p.name: p.read_bytes() for p in finished.path.iterdir()} == before


def test_a_run_of_other_weights_is_refused(finished: RunFolder, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(finished.path, tmp_path / "run")
    run = json.loads((tmp_path / "run/run.json").read_text())
    run["fingerprint"]["weights of glyph_resnet"] = "0" * 16
    (tmp_path / "run/run.json").write_text(json.dumps(run))
    with pytest.raises(StaleResultError, match="weights of glyph_resnet"):
        run_analysis(SETTINGS, out=tmp_path / "run")


def test_random_weights_say_so_first(tmp_path: Path) -> None:
    settings = dataclasses.replace(
        TINY, model=ModelRequest(name="mobilenetv3_small_050", weights=WeightSource.RANDOM)
    )
    run = run_analysis(settings, out=tmp_path / "random")
    warnings = run.read_run()["warnings"]
    assert warnings[0].startswith(
        "Random weights (mobilenetv3_small_050): the numbers show the mechanics only"
    )
    assert any("cannot be met" in w for w in warnings)  # 8 bits alone cannot average 4
    assert any("agreement" in w for w in warnings)  # glyph labels are not ImageNet's
    assert run.table("sensitivity")["drop"].isna().all()


def test_an_unwritable_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserInputError, match="cannot be written"):
        run_analysis(SETTINGS, out=tmp_path / "file" / "run")


def test_two_models_of_one_name_get_keys_of_their_own(tmp_path: Path) -> None:
    settings = dataclasses.replace(TINY, compares=(ModelRequest(name="zoo/glyph_resnet"),))
    run = run_analysis(settings, out=tmp_path / "twins")
    assert [m["key"] for m in run.read_run()["models"]] == ["glyph_resnet", "glyph_resnet#2"]
    assert run.plan_path("glyph_resnet#2").is_file()
