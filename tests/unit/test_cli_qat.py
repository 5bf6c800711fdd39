"""``vitsense qat`` from the plan of a run, with other values, and under torchrun."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from qat_jobs import CPU, resnet_plan

from vitsense import cli, cli_qat
from vitsense.models import load_model
from vitsense.plan.plan import Plan
from vitsense.qat.uniform import uniform_plan
from vitsense.settings import AnalyzeSettings, ModelRequest
from vitsense.trainings import TrainingFolder

_SMALL = (
    "--images", "32", "--eval-images", "36", "--epochs", "0.5", "--batch-size", "8",
    "--set", "calibration=8", "--sensitivity-images", "0", "-q",
)  # fmt: skip


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan in the folder of a run, as vitsense analyze leaves it."""
    monkeypatch.chdir(tmp_path)
    made = resnet_plan()
    path = tmp_path / "run" / "plan.json"
    path.parent.mkdir()
    made.save(path)
    settings = AnalyzeSettings(model=ModelRequest(name="zoo/glyph_resnet"), images=36)
    models = [{"key": made.model["key"], "weights_digest": made.model["weights_digest"]}]
    record = {"schema": "vitsense.run/1", "settings": settings.to_json(), "models": models}
    (path.parent / "run.json").write_text(json.dumps(record))
    return path


def _qat(plan: Path, *more: str, small: Sequence[str] = _SMALL) -> int:
    return cli.run(["qat", "--plan", str(plan), *small, *more])


def test_a_plan_is_trained_in_its_run(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--tensorboard", "--sensitivity-images", "4")
    assert _qat(plan, "--lr", "1e-4", "--set", "strength=0.5", *more) == 0
    out = capsys.readouterr().out
    folder = TrainingFolder(plan.parent / "qat" / "demo")
    record = folder.read_record()
    assert (record["recipe"]["lr"], record["recipe"]["strength"]) == (1e-4, 0.5)
    assert f"{record['last']['top1']:6.2f} %" in out
    assert "Quantized, not trained" in out
    assert f"Training: {folder.path}" in out
    assert list((folder.path / "tensorboard").glob("events*"))
    alone = pd.read_csv(folder.path / "sensitivities.csv")
    assert list(alone["module"]) == [module.name for module in Plan.load(plan).modules]
    assert set(alone["n"]) == {4}
    assert record["sensitivity"]["kl_after"] == pytest.approx(alone["kl_after"].sum())
    assert _qat(plan) == 2  # complete, and with other settings
    said = capsys.readouterr().err
    assert "different are: lr (0.0001 then, 0.0002 now), strength (0.5 then, 0.001 now). " in said
    assert "another --name" in said
    assert _qat(plan, "--name", "new", "--data", "nowhere") == 3
    assert not (plan.parent / "qat" / "new").exists()
    capsys.readouterr()


def test_a_training_that_made_it_worse_says_so_and_may_fail(
    plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = ("--lr", "1", "--fail-if-worse", "--out", "mine")
    assert _qat(plan, *wild) == 1
    out, err = capsys.readouterr()
    printed = shlex.split(out.strip().splitlines()[-1])  # what shows it, as it is not in its run
    assert printed == ["vitsense", "report", str(plan.parent), "--training", "mine"]
    assert "Warning: Training made the plan worse, by " in out
    assert "or train with a lower --lr than 1" in out
    assert err.startswith("Error: Training made the plan worse")
    record = TrainingFolder(Path("mine")).read_record()
    assert (record["status"], record["worth"]["kind"]) == ("complete", "worse")
    assert record["warnings"][0].startswith(record["worth"]["text"])
    assert record["last"]["gain_high"] < 0
    assert not record["calibration"]["as_analyzed"]  # the run holds no digest of its images
    cli_qat._emit(record, TrainingFolder(Path("mine")), None, as_json=True)
    told = json.loads(capsys.readouterr().out)
    for key in ("status", "ptq", "last", "worth", "analysis", "warnings", "notes"):
        assert told[key] == record[key]
    assert _qat(plan, "--ablate", "--fail-if-worse") == 2
    assert "one training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--recipe", "best"), 2, "no recipe 'best'"),
        (("--set", "lr"), 2, "write KEY=VALUE"),
        (("--name", "../x"), 2, "--name is '../x'"),
        (("--name", ""), 2, "--name is ''"),
        (("--out", "run"), 2, "run is the folder of a run"),
        (("--ablate", "--out", "run"), 2, "run is the folder of a run"),
        (("--resume",), 3, "no training to resume"),
        (("--labels", "x", "--teacher", "y"), 2, "contradict"),
        (("--labels", "nowhere.bank"), 3, "no label bank"),
        (("--teacher-checkpoint", "x"), 2, "needs --teacher"),
    ],
)
def test_a_wrong_call_says_what_to_do(
    plan: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], code: int, message: str
) -> None:
    before = plan.read_bytes()
    assert _qat(plan, *more) == code
    assert message in capsys.readouterr().err
    assert plan.read_bytes() == before


def test_a_folder_is_no_plan(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _qat(plan.parent) == 2
    assert "is a folder; name the file in it" in capsys.readouterr().err


def test_a_plan_of_another_model_is_said_before_weights_are_looked_for(
    plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = json.loads(plan.read_text())
    made["model"]["name"] = "glyph_resnet"
    plan.write_text(json.dumps(made))
    assert _qat(plan, "--model", "deit_t") == 2
    assert "of glyph_resnet, and --model is deit_tiny_patch16_224" in capsys.readouterr().err


def test_an_ablation_trains_its_variants_and_writes_the_table(
    plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--ablate", "--seeds", "0,1", "--variants", "full,lsq", "--epochs", "0.25")
    assert _qat(plan, *more, "--set", "evaluate=0") == 0
    where = plan.parent / "qat" / "ablation"
    out = capsys.readouterr().out
    assert f"{where / 'ablation.md'}" in out
    assert f"vitsense report {plan.parent}" in out  # the run's report holds it
    table = pd.read_csv(where / "ablation.csv").set_index("variant")
    for name in ("full", "lsq"):
        records = [TrainingFolder(where / f"{name}-seed{seed}").read_record() for seed in (0, 1)]
        assert {record["steps"] for record in records} == {1}
        mean = sum(record["last"]["top1"] for record in records) / 2
        assert table.loc[name, "last"] == pytest.approx(mean)
    assert "| lsq | 2 |" in (where / "ablation.md").read_text()
    assert _qat(plan, "--variants", "full") == 2
    assert "--variants needs --ablate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("run/plan.json", "demo"),
        ("run/plan-2.5.json", "demo-2.5"),
        ("plan-my model.json", "demo-my-model"),
        ("narrow.json", "demo-narrow"),
        (None, "demo"),
    ],
)
def test_trainings_of_two_plan_files_do_not_meet_in_one_folder(file: str | None, name: str) -> None:
    assert cli_qat._usual_name(None if file is None else Path(file), "demo") == name


def test_a_prediction_that_was_wrong_is_said() -> None:
    told = {"drop": 7.7, "low": 3.7, "high": 15.8}
    rows = [{"drop": 22.9, "drop_low": low, "drop_high": 25.9} for low in (19.8, 15.0)]
    said = [[*cli_qat._missed({"plan": {"predicted": told}, "ptq": row})] for row in rows]
    assert "predicted a drop of 7.7 (3.7 to 15.8)" in said[0][0]
    assert said[1] == []
    assert [*cli_qat._missed({"plan": {}, "ptq": rows[0]})] == []


def test_the_command_that_is_printed_at_the_end_shows_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ("--model", "zoo/glyph_resnet", "--bits", "4", "--out", "own folder")
    assert cli.run(["qat", *more, *_SMALL]) == 0
    printed = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert cli.run(printed[1:]) == 0
    said = json.loads((tmp_path / "own folder" / "training.json").read_text())
    record = TrainingFolder(tmp_path / "own folder").read_record()
    assert said["models"][0]["headline"] == record["worth"]["text"]
    assert f"{record['last']['top1']:.1f} %" in (tmp_path / "own folder/training.html").read_text()


def test_a_plan_outside_of_a_run_needs_a_model(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone.json"
    alone.write_bytes(plan.read_bytes())
    assert _qat(alone) == 2
    assert "give --run, or --model" in capsys.readouterr().err
    assert _qat(alone, "--model", "zoo/glyph_resnet") == 2
    assert "--out" in capsys.readouterr().err
    data = json.loads(plan.read_text())
    data["model"]["weights_digest"] = "f" * 16
    plan.write_text(json.dumps(data))
    assert _qat(plan) == 2
    assert "name the plan's own run with --run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "either --plan FILE, or --bits N"),
        (("--bits", "4"), "--bits needs --model"),
        (("--bits", "33", "--model", "zoo/glyph_resnet"), "--bits is 33; allowed are"),
        (("--bits", "4", "--model", "zoo/glyph_resnet"), "--out"),
    ],
)
def test_bits_need_a_model_and_a_folder(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert cli.run(["qat", *words]) == 2
    assert message in capsys.readouterr().err


def test_equal_bits_spare_the_first_and_the_last_weight() -> None:
    bits = uniform_plan(load_model(ModelRequest(name="zoo/glyph_swin"), CPU), 3).bits
    assert {name for name, width in bits.items() if width == 8} == {"patch_embed.proj", "head.fc"}
    assert set(bits.values()) == {3, 8}
