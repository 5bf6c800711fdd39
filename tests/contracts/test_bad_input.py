"""DESIGN 6.7: bad input gets one clear sentence, its exit code, and touches nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import flat, labelled, save, truncated_jpeg
from safetensors.torch import load_file, save_file

from vitsense import cli
from vitsense.errors import SiteMismatchError
from vitsense.plan.plan import Plan
from vitsense.zoo import zoo_file

MODEL = ["--model", "zoo/glyph_resnet"]


def text_named_jpg(path: Path) -> Path:
    flat(path.parent, 3)
    path.write_text("no picture")
    return path.parent


def with_a_truncated_jpeg(folder: Path) -> Path:
    flat(folder, 3)
    truncated_jpeg(folder / "cut.jpg")
    return folder


def naming_missing_files(folder: Path) -> Path:
    labelled(folder, [0, 1, 2])
    (folder / "0001.png").unlink()
    return folder


def weights(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    state = load_file(zoo_file("glyph_resnet"))
    change(state)
    save_file(state, path)
    return path


def ten_classes(state: dict[str, torch.Tensor]) -> None:
    state["fc.weight"], state["fc.bias"] = state["fc.weight"][:10].clone(), torch.zeros(10)


def one_nan(state: dict[str, torch.Tensor]) -> None:
    state["conv1.weight"][0, 0, 0, 0] = float("nan")


def folder(path: Path) -> Path:
    path.mkdir()
    return path


CASES: dict[str, tuple[Callable[[Path], list[str]], int, str]] = {
    "unknown model": (lambda _: ["--model", "swin_tt"], 2, "Near names: swin_t,"),
    "missing data": (lambda t: [*MODEL, "--data", str(t / "absent")], 3, "no folder or archive"),
    "empty data": (lambda t: [*MODEL, "--data", str(folder(t / "e"))], 3, "holds no images"),
    "text named jpg": (
        lambda t: [
            *MODEL,
            "--images",
            "9",
            "--strict",
            "--data",
            str(text_named_jpg(folder(t / "t") / "a.jpg")),
        ],
        2,
        "a.jpg",
    ),
    "truncated jpeg": (
        lambda t: [
            *MODEL,
            "--images",
            "9",
            "--strict",
            "--data",
            str(with_a_truncated_jpeg(folder(t / "c"))),
        ],
        2,
        "cut.jpg",
    ),
    "labels.csv names missing files": (
        lambda t: [*MODEL, "--data", str(naming_missing_files(t / "m"))],
        2,
        "names 1 files that are not there",
    ),
    "label outside the classes": (
        lambda t: [*MODEL, "--data", str(labelled(t / "l", [0, 36]))],
        2,
        "has the label 36, but glyph_resnet has 36 classes",
    ),
    "wrong class count in a checkpoint": (
        lambda t: [*MODEL, "--checkpoint", str(weights(t / "w.safetensors", ten_classes))],
        2,
        "The file has 10 classes, the model 36",
    ),
    "nan in weights": (
        lambda t: [*MODEL, "--checkpoint", str(weights(t / "n.safetensors", one_nan))],
        4,
        "'conv1.weight' has values that are not finite",
    ),
    "1 bit": (lambda _: [*MODEL, "--bits", "1"], 2, "--bits has 1"),
    "99 bits": (lambda _: [*MODEL, "--bits", "99"], 2, "--bits has 99"),
}


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that is there already, in the working folder."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "vitsense-runs" / "20260101-000000-earlier"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"schema": "vitsense.run/1", "status": "complete"}')
    (run / "state.jsonl").write_text('{"model":"x"}\n')
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("out", [False, True], ids=["new run", "into a run"])
def test_one_sentence_its_exit_code_and_nothing_touched(
    earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str, out: bool
) -> None:
    make, code, said = CASES[case]
    arguments = ["analyze", *make(tmp_path), *(["--out", str(earlier)] if out else [])]
    before = contents(earlier.parent)
    assert cli.run([*arguments, "--calibration", "1", "-q"]) == code
    printed, told = capsys.readouterr()
    assert printed == ""
    assert said in told
    assert told.startswith("Error: ")
    assert told.count("\n") == 1  # one line, no traceback
    assert contents(earlier.parent) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", "expected 'vitsense.run/1'"),
        ('{"schema": "vitsense.run/2"}', "update vitsense"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [["report"], ["plan", "--budget", "avg-bits=4"], ["analyze", *MODEL, "--images", "2", "-q"]],
    ids=lambda words: words[0],
)
def test_a_run_that_cannot_be_read_is_left_alone(
    earlier: Path, capsys: pytest.CaptureFixture[str], command: list[str], text: str, said: str
) -> None:
    (earlier / "run.json").write_text(text)
    before = contents(earlier)
    named = ["--out", str(earlier)] if command[0] == "analyze" else [str(earlier)]
    assert cli.run([*command, *named]) == 2
    assert said in capsys.readouterr().err
    assert contents(earlier) == before


def test_unreadable_images_are_left_out_and_counted_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever purpose they were drawn for."""
    monkeypatch.chdir(tmp_path)
    data = with_a_truncated_jpeg(folder(tmp_path / "data"))
    (data / "text.jpg").write_text("no picture")
    command = ["analyze", *MODEL, "--data", str(data), "--images", "4", "--calibration", "1"]
    assert cli.run([*command, "--bits", "8", "--no-report", "-q", "--json"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert "2 images could not be read and were left out." in warnings


def test_the_same_picture_under_two_names_never_calibrates_and_evaluates(tmp_path: Path) -> None:
    from vitsense.data import Draw, draw_images, open_source

    for number in range(8):
        save(tmp_path / f"{number:02}.png", number % 4)  # each picture twice
    source = open_source(str(tmp_path))
    for seed in range(6):
        calibration, evaluation = draw_images(source, Draw(evaluation=4, calibration=4, seed=seed))
        pictures = [
            {np.asarray(source.read(n)[1]).tobytes() for n in images.numbers}
            for images in (calibration, evaluation)
        ]
        assert not pictures[0] & pictures[1]
        assert calibration.numbers
        assert evaluation.numbers


def test_a_plan_of_another_model_is_refused_before_anything_is_done() -> None:
    plan = Plan.from_json({"modules": [{"name": "blocks.0.mlp.fc1", "bits": 4}]})
    with pytest.raises(SiteMismatchError, match="belongs to another model") as caught:
        plan.check_against(["layer1.0.conv1", "fc"], model="glyph_resnet")
    assert caught.value.exit_code == 2
