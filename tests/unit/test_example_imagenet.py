"""The commands of ``examples/imagenet_qat.py`` run: two steps on real weights and images."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vitsense import cli
from vitsense.trainings import TrainingFolder

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_the_commands_train_deit_for_two_steps(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import imagenet_qat

    train = tmp_path / "train"
    train.mkdir()
    for file in sorted((real_data / "imagenet-sample-600").glob("*.jpg"))[:8]:
        (train / file.name).symlink_to(file)
    assert len(list(train.iterdir())) == 8
    checkpoint = str(real_data / "deit-tiny-imagenet" / "deit_tiny_patch16_224.safetensors")
    val = str(real_data / "imagenet-val-1000")
    distill, qat = imagenet_qat.commands("deit_t", 4, str(train), val, tmp_path)
    # the same commands with a teacher that is there, and little of everything
    distill[distill.index(imagenet_qat.TEACHER)] = "deit_t"
    distill[distill.index("500")] = "4"
    small = {"50000": "8", "150": "2", "512": "8"}  # 8 images, 2 epochs, 8 crops: 2 steps
    qat = [small.get(word, word) for word in qat]
    qat[qat.index("--workers") + 1] = "0"
    assert cli.run([*distill[1:], "--checkpoint", checkpoint, "-q"]) == 0
    more = ["--checkpoint", checkpoint, "--set", "calibration=4", "--set", "evaluate=0", "-q"]
    more += ["--sensitivity-images", "0"]  # a pass for each of 98 modules
    assert cli.run([*qat[1:], *more]) == 0
    record = TrainingFolder(tmp_path / "deit_t-w4a4").read_record()
    assert record["steps"] == 2
    assert record["recipe"]["name"] == "vvtq"
    assert record["teacher"]["bank"]["crops"] == 4
    assert sys.modules.pop("imagenet_qat") is imagenet_qat
