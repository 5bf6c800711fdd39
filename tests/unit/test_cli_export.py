"""``vitsense export`` and ``import`` on a real, small run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from export_fixture import small_run

from vitsense import cli
from vitsense.cli_export import _emit_onnx
from vitsense.plan.plan import Plan


@pytest.fixture(scope="session")
def _measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture
def run(_measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(_measured, Path("vitsense-runs") / "small"))


def _exported(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["schema"] == "vitsense.result/1"
    return dict(found["export"])


def test_packed_weights_are_written_read_back_and_recorded(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["export", str(run), "--format", "safetensors", "--json"]) == 0
    entry = _exported(capsys)
    assert (run / entry["file"]).is_file()
    assert entry["restored"]["largest_difference"] == 0
    assert entry["size"]["weights_to_predicted"] == pytest.approx(1, abs=0.02)
    record = json.loads((run / "export.json").read_text())
    assert record["schema"] == "vitsense.export/1"
    assert record["exports"] == [entry]
    # the same export again takes the old one's place
    assert cli.run(["export", str(run), "--format", "safetensors"]) == 0
    assert len(json.loads((run / "export.json").read_text())["exports"]) == 1
    assert "the plan predicts" in capsys.readouterr().out


def test_a_packed_file_is_exported_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["export", str(run), "--format", "safetensors", "--out", "a.safetensors"]) == 0
    first = Path("a.safetensors").read_bytes()
    again = ["export", "a.safetensors", "--format", "safetensors", "--out", "b.safetensors"]
    assert cli.run(again) == 0
    assert Path("b.safetensors").read_bytes() == first
    capsys.readouterr()


@pytest.mark.parametrize(
    ("change", "code", "match"),
    [
        (["--model", "nobody"], 2, "has no model 'nobody'"),
        (["--plan", "none.json"], 3, "none.json"),
        (["--out", "/proc/none/m.safetensors"], 2, "cannot be made"),
        (["--out", "."], 2, "is a folder"),
    ],
)
def test_wrong_arguments_are_said(
    run: Path, capsys: pytest.CaptureFixture[str], change: list[str], code: int, match: str
) -> None:
    assert cli.run(["export", str(run), "--format", "safetensors", *change]) == code
    assert match in capsys.readouterr().err


def test_a_plan_of_other_weights_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan.load(run / "plan.json")
    other = Plan(modules=plan.modules, model={**plan.model, "weights_digest": "f" * 16})
    other.save(Path("other.json"))
    command = ["export", str(run), "--format", "safetensors", "--plan", "other.json"]
    assert cli.run(command) == 2
    assert "was made for weights with the digest" in capsys.readouterr().err


def test_a_plan_of_another_model_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.json").write_text(
        json.dumps({"schema": "vitsense.plan/1", "modules": [{"name": "blocks.0", "bits": 4}]})
    )
    command = ["export", str(run), "--format", "safetensors", "--plan", "other.json"]
    assert cli.run(command) == 2
    assert "belongs to another model" in capsys.readouterr().err


def test_onnx_is_written_compared_timed_and_recorded(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    command = ["export", str(run), "--format", "onnx", "--images", "8", "--runs", "3", "--json"]
    assert cli.run(command) == 0
    entry = _exported(capsys)
    assert (run / entry["file"]).stat().st_size == entry["bytes"]
    assert entry["parity"]["images"] == 8
    assert entry["parity"]["same_top1"] >= 7
    assert entry["latency"]["float_ms"]["runs"] == 3
    plan = Plan.load(run / "plan.json")
    weights = {s["site"]: s for s in entry["sites"] if s["site"].endswith(":weight")}
    assert {key: f"{row['format']}" for key, row in weights.items()} == {
        f"{m.name}:weight": m.weight for m in plan.modules if m.weight
    }
    assert sum(entry["types"].values()) == len(entry["sites"])
    assert len(entry["site_differences"]) == entry["compared_sites"]["sites"] > 5
    assert entry["compared_sites"]["suspicious"] == []
    assert (entry["arithmetic"] is None) == entry["parity"]["identical"]
    assert json.loads((run / "export.json").read_text())["exports"] == [entry]


def test_what_is_printed_tells_ties_from_errors(capsys: pytest.CaptureFixture[str]) -> None:
    parity = {"images": 60, "asked": 64, "same_top1": 58, "largest": 0.5, "step": 0.1}
    parity |= {"within_step": 40, "identical": False}
    compared = {"images": 4, "sites": 9, "suspicious": [], "conclusion": "3 of 900 codes differ"}
    entry = {"model": "m", "file": "m.onnx", "bytes": 1000, "types": {"int8": 9}, "opset": 21}
    entry |= {"by_itself": 0.0, "first_difference": None, "latency": None, "parity": parity}
    entry |= {"compared_sites": compared, "arithmetic": {"within": True, "conclusion": "within"}}
    _emit_onnx(entry)
    out, err = capsys.readouterr()
    assert "each site with the inputs of torch (4 images, 9 sites): 3 of 900 codes differ" in out
    assert "\n  within\n" in out
    assert "compared on 60 images, not on 64" in err
    assert "some images get another class, which rounding explains" in err
    _emit_onnx(entry | {"compared_sites": compared | {"suspicious": ["a"]}})
    assert "another class, and rounding alone does not explain it" in capsys.readouterr().err
    _emit_onnx(entry | {"arithmetic": {"within": False, "conclusion": "above"}})
    assert "another class, and rounding alone does not explain it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "match"), [(["--opset", "11"], "too old"), (["--opset", "20"], "--fallback")]
)
def test_an_operator_set_that_cannot_hold_the_plan_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], match: str
) -> None:
    pytest.importorskip("onnxscript")
    assert cli.run(["export", str(run), "--format", "onnx", *options]) == 2
    said = capsys.readouterr().err
    assert match in said
    assert "calibrating" not in said
    assert not (run / "export.json").exists()


def test_a_plan_of_another_model_and_a_training_that_is_not_there_are_refused_at_once(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan.load(run / "plan.json").to_json()
    plan["modules"][3]["name"] = "fd"
    Path("other.json").write_text(json.dumps(plan))
    command = ["export", str(run), "--format", "safetensors", "--plan", "other.json"]
    assert cli.run(command) == 2
    said = capsys.readouterr().err
    assert "names 1 modules that glyph_resnet does not have, first 'fd'" in said
    assert "calibrating" not in said
    (run / "qat" / "mine").mkdir(parents=True)
    (run / "qat" / "mine" / "qat.json").write_text("{}")
    assert cli.run(["export", str(run / "qat" / "nope"), "--format", "onnx"]) == 3
    assert "nope holds no training; those of the run are: mine." in capsys.readouterr().err


def test_without_the_extra_the_hint_comes_before_any_work(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitsense.export import onnx_graph

    monkeypatch.setattr(onnx_graph, "find_spec", lambda _name: None)
    assert cli.run(["export", str(run), "--format", "onnx"]) == 3
    err = capsys.readouterr().err
    assert "pip install" in err
    assert "calibrating" not in err


def test_a_configuration_is_written_and_losses_must_be_wanted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["export", str(run), "--format", "modelopt", "--json"]) == 0
    entry = _exported(capsys)
    made = json.loads((run / entry["file"]).read_text())
    assert len(made["quant_cfg"]) == 1 + 2 * len(entry["layers"])
    assert entry["changes"] == []
    assert cli.run(["export", str(run), "--format", "torchao"]) == 2
    said = capsys.readouterr().err
    assert "torchao cannot express" in said
    assert "calibrating" not in said
    assert cli.run(["export", str(run), "--format", "torchao", "--fallback"]) == 0
    assert "does not quantize convolutions" in capsys.readouterr().out
