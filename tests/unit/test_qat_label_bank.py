"""The label bank says what the live teacher says, continues, and refuses what does not belong."""

from __future__ import annotations

import errno
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitsense import cli
from vitsense.errors import InputMissingError, SchemaVersionError, UserInputError
from vitsense.models import LoadedModel, load_model
from vitsense.progress import NoProgress
from vitsense.qat import bank_file
from vitsense.qat.bank_file import record_type
from vitsense.qat.crops import CropPolicy
from vitsense.qat.distill import DistillSettings, distill, drawn_crops
from vitsense.qat.label_bank import LabelBank, dense_targets
from vitsense.qat.training_images import CropReader, collection_digest, training_source
from vitsense.qat.uniform import uniform_plan
from vitsense.settings import ModelRequest

_CPU = torch.device("cpu")
_POLICY = CropPolicy(scale=(0.5, 1.0), flip=0.5)
_SETTINGS = DistillSettings(crops=3, top=5, policy=_POLICY, batch=2)
_IMAGES = 6


@pytest.fixture(scope="module")
def teacher() -> LoadedModel:
    return load_model(ModelRequest(name="zoo/glyph_resnet"), _CPU)


@pytest.fixture(scope="module")
def made(teacher: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bank") / "labels.bank"
    return distill(teacher, training_source(None, _IMAGES), out, _SETTINGS, _CPU)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    path = tmp_path / "labels.bank"
    path.write_bytes(made.read_bytes())
    return path


def test_reading_equals_asking_the_teacher_about_the_same_crop(
    teacher: LoadedModel, made: Path
) -> None:
    reader = CropReader(training_source(None, _IMAGES), teacher.preprocessing)
    bank = LabelBank.open(made)
    for number in range(_IMAGES):
        crops, classes, probabilities = bank.read(number, [2, 0], reader.image(number)[0])
        assert crops == [drawn_crops(reader, number, bank.header)[place] for place in (2, 0)]
        with torch.no_grad():
            live = teacher.module(reader.cut(number, crops)).softmax(1)
        best, where = live.topk(5, dim=1)
        # one unit in the last place of a half float; classes as probable as another may swap
        torch.testing.assert_close(torch.from_numpy(probabilities), best, rtol=2**-10, atol=2**-24)
        clear = best[:, :-1] - best[:, 1:] > 1e-6
        assert (torch.from_numpy(classes)[:, :-1] == where[:, :-1])[clear].all()


def test_a_crop_takes_29_bytes_at_five_classes(made: Path) -> None:
    assert record_type(5).itemsize == 29
    assert made.stat().st_size < 1024 + _IMAGES * (8 + 3 * 29)


def test_an_unfinished_bank_is_continued_and_ends_the_same(
    teacher: LoadedModel, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = training_source(None, _IMAGES), tmp_path / "labels.bank"
    put, calls = bank_file.BankFile.put, []

    def killed(self: Any, number: int, *rest: Any) -> None:
        if number == 4 and not calls:
            calls.append(number)
            raise KeyboardInterrupt
        put(self, number, *rest)

    monkeypatch.setattr(bank_file.BankFile, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, source, out, _SETTINGS, _CPU)
    with pytest.raises(UserInputError, match="2 of 6 images have no labels yet.*continues"):
        LabelBank.open(out)
    asked: list[int] = []
    live = teacher.module.forward
    monkeypatch.setattr(teacher.module, "forward", lambda x: asked.append(len(x)) or live(x))
    distill(teacher, source, out, _SETTINGS, _CPU)
    assert sum(asked) == 2 * _SETTINGS.crops
    assert out.read_bytes() == made.read_bytes()


def test_shards_read_as_one_bank(teacher: LoadedModel, made: Path, tmp_path: Path) -> None:
    source, out = training_source(None, _IMAGES), tmp_path / "labels.bank"
    whole = LabelBank.open(made)
    for shard in range(2):
        if shard:
            with pytest.raises(InputMissingError, match="shards 1 of 2"):
                LabelBank.open(out)
        settings = DistillSettings(crops=3, policy=_POLICY, batch=2, shard=(shard, 2))
        distill(teacher, source, out, settings, _CPU)
    parts = LabelBank.open(out)
    reader = CropReader(source, teacher.preprocessing)
    for number in range(_IMAGES):
        image = reader.image(number)[0]
        one, other = parts.read(number, [0, 1, 2], image), whole.read(number, [0, 1, 2], image)
        assert one[0] == other[0]
        np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_array_equal(one[2], other[2])


def test_a_bank_of_other_images_or_classes_is_refused(made: Path) -> None:
    bank, source = LabelBank.open(made), training_source(None, _IMAGES)
    digest = collection_digest(source)
    bank.check(data_digest=digest, images=_IMAGES, classes=36, where="generated")
    with pytest.raises(UserInputError, match="another data set"):
        bank.check(data_digest="0" * 16, images=_IMAGES, classes=36, where="photos")
    with pytest.raises(UserInputError, match="36 classes, the model 10"):
        bank.check(data_digest=digest, images=_IMAGES, classes=10, where="generated")
    with pytest.raises(UserInputError, match="another policy"):
        bank.check_policy(CropPolicy())
    with pytest.raises(UserInputError, match="not the picture"):
        bank.read(0, [0], 12345)


def test_a_bank_is_not_overwritten_by_one_of_other_settings(
    teacher: LoadedModel, copy: Path
) -> None:
    before = copy.read_bytes()
    other = DistillSettings(crops=3, policy=CropPolicy(), seed=1)
    with pytest.raises(UserInputError, match="crop policy, seed"):
        distill(teacher, training_source(None, _IMAGES), copy, other, _CPU)
    assert copy.read_bytes() == before


@pytest.mark.parametrize("left", [0, 6, 40, 300, -1])
def test_a_truncated_bank_is_refused_at_any_length(copy: Path, left: int) -> None:
    data = copy.read_bytes()
    copy.write_bytes(data[:left])
    with pytest.raises(UserInputError, match="cut short|not a label bank"):
        LabelBank.open(copy)


def test_a_damaged_record_is_found_when_it_is_read(teacher: LoadedModel, copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    data[-10] ^= 0xFF  # in the records of the last image
    copy.write_bytes(data)
    bank = LabelBank.open(copy)
    image = CropReader(training_source(None, _IMAGES), teacher.preprocessing).image(_IMAGES - 1)[0]
    with pytest.raises(UserInputError, match="damaged at image 5"):
        bank.read(_IMAGES - 1, [0], image)


def test_a_newer_bank_is_refused(copy: Path) -> None:
    data = copy.read_bytes().replace(b"vitsense.labelbank/1", b"vitsense.labelbank/2")
    copy.write_bytes(data)
    with pytest.raises(SchemaVersionError, match="update vitsense"):
        LabelBank.open(copy)


def test_a_full_disk_is_found_before_the_teacher_is_asked(
    teacher: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bank_file.os, "posix_fallocate", full, raising=False)
    out = tmp_path / "labels.bank"
    with pytest.raises(UserInputError, match="No space left"):
        distill(teacher, training_source(None, _IMAGES), out, _SETTINGS, _CPU)
    assert not out.exists()


def test_dense_targets_spread_what_was_not_kept() -> None:
    classes = torch.tensor([[3, 0], [1, 2]])
    kept = torch.tensor([[0.5, 0.25], [0.7, 0.3]])
    found = dense_targets(classes, kept, 5)
    rest = 0.25 / 3
    expected = torch.tensor([[0.25, rest, rest, 0.5, rest], [0.0, 0.7, 0.3, 0.0, 0.0]])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), torch.ones(2))


def test_the_command_writes_a_bank_and_says_what_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b"
    command = ["distill", "--teacher", "zoo/glyph_resnet", "--images", "4", "--crops", "2", "-q"]
    assert cli.run([*command, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"Labels: {out}" in text
    assert "4 images, 2 crops of each, 29 bytes a crop, " in text
    assert LabelBank.open(out).header.crops == 2
    assert cli.run([*command, "--out", str(out), "--shard", "3/2"]) == 2
    assert "--shard is 3/2" in capsys.readouterr().err


def _stopped_when_accepted(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> int:
    """Start a training that ends where everything was checked and the first grids are made."""

    def enough(*_: Any, **__: Any) -> None:
        raise UserInputError("accepted")

    monkeypatch.setattr("vitsense.qat.train.prepare_qat", enough)
    return cli.run([*words[1:], "--sensitivity-images", "0", "--eval-images", "36"])


def test_the_command_that_follows_a_bank_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    uniform_plan(load_model(ModelRequest(name="glyph_resnet"), _CPU), 4).save(Path("plan.json"))
    command = ["distill", "--teacher", "zoo/glyph_resnet", "--images", "8", "--crops", "1"]
    assert cli.run([*command, "--top", "99", "--out", "a bank"]) == 0
    out, err = capsys.readouterr()
    assert "glyph_resnet has 36 classes; all of them are kept, not 99" in err
    words = shlex.split(out.splitlines()[-1].replace("PLAN", "plan.json"))
    assert words[:2] == ["vitsense", "qat"]
    more = ["--model", "zoo/glyph_resnet", "--out", "new", "--batch-size", "8"]
    assert _stopped_when_accepted(monkeypatch, [*words, *more]) == 2
    assert capsys.readouterr().err.endswith("Error: accepted\n")
    without = words[: words.index("--images")]
    assert _stopped_when_accepted(monkeypatch, [*without, *more]) == 2
    assert "vitsense distill --images 3600, or give --images 8." in capsys.readouterr().err


def test_a_bank_that_goes_on_says_so(teacher: LoadedModel, made: Path, tmp_path: Path) -> None:
    class Heard(NoProgress):
        notes: list[str] = []  # noqa: RUF012  one test

        def note(self, text: str) -> None:
            self.notes.append(text)

    heard, out = Heard(), tmp_path / "labels.bank"
    source = training_source(None, _IMAGES)
    distill(teacher, source, out, _SETTINGS, _CPU, heard)
    assert heard.notes == []
    file = bank_file.open_file(out, writable=True)
    file.index["image"][4:] = 0
    distill(teacher, source, out, _SETTINGS, _CPU, heard)
    assert heard.notes == [f"Continuing {out}: 4 of 6 images have labels."]
    assert out.read_bytes() == made.read_bytes()
