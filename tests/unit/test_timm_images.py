"""Data sets that timm opens: options, labels, streams, and what is not there."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_sets import class_folders, pixels
from PIL import Image

from vitsense.data import Draw, draw_images, open_source
from vitsense.errors import InputMissingError, UserInputError
from vitsense.timm_images import is_timm_spec, open_timm_images


def replace_create_dataset(monkeypatch: pytest.MonkeyPatch, result: Any) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def create_dataset(name: str, **options: Any) -> Any:
        seen.update(options, name=name)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr("timm.data.dataset_factory.create_dataset", create_dataset)
    return seen


class FakeReader:
    """Like timm's reader of a Hugging Face set: files and labels by number."""

    def __init__(self, files: list[bytes], class_to_idx: dict[str, int] | None = None) -> None:
        self.files = files
        self.class_to_idx = class_to_idx

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int | None]:
        return io.BytesIO(self.files[index]), index % 2

    def __len__(self) -> int:
        return len(self.files)


class FakeDataset:
    def __init__(self, reader: FakeReader) -> None:
        self.reader = reader


class FakeStream:
    """Endless, as a stream may be."""

    reader = None

    def __iter__(self) -> Any:
        number = 0
        while True:
            yield Image.fromarray(pixels(number)), number % 3
            number += 1


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("spec", ["hfds/a/b", "HFDS/a", "wds/x", "torch/cifar10", "tfds/x"])
def test_timm_names_are_told_from_folders(spec: str) -> None:
    assert is_timm_spec(spec)
    assert not is_timm_spec(f"./{spec}")


def test_a_torchvision_set_is_read_where_it_is(tmp_path: Path) -> None:
    """``image_folder`` is the one set that needs no download."""
    class_folders(tmp_path, {"test/cat": 3, "test/dog": 2})
    source = open_source(f"torch/image_folder,root={tmp_path},split=test")
    assert (source.kind, source.labels, source.classes) == ("timm", (0, 0, 0, 1, 1), ("cat", "dog"))
    assert np.array_equal(np.asarray(source.read(4)[1]), pixels(4))


def test_a_torchvision_set_needs_its_folder() -> None:
    with pytest.raises(UserInputError, match="needs the folder of its files: torch/cifar10,root="):
        open_source("torch/cifar10")


def test_a_torchvision_set_that_is_not_downloaded_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="cannot be opened"):
        open_source(f"torch/cifar10,root={tmp_path}")


def test_options_go_to_timm_under_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = replace_create_dataset(monkeypatch, FakeDataset(FakeReader([png(0)])))
    open_source("hfds/uoft-cs/cifar10,split=test,input_key=img,target_key=fine,download=true")
    assert seen == {
        "name": "hfds/uoft-cs/cifar10",
        "root": None,
        "split": "test",
        "is_training": False,
        "input_key": "img",
        "target_key": "fine",
        "download": True,
    }


def test_the_split_is_validation_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = replace_create_dataset(monkeypatch, FakeDataset(FakeReader([png(0)])))
    open_source("hfds/x")
    assert seen["split"] == "validation"


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(UserInputError, match="option 'splt'; possible are root, split"):
        open_source("hfds/x,splt=test")


def test_a_broken_file_is_skipped_not_replaced_by_its_neighbour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """timm itself would silently give the next image and its label."""
    files = [png(0), png(1)[:40], png(2), png(3)]
    replace_create_dataset(monkeypatch, FakeDataset(FakeReader(files, {"b": 1, "a": 0})))
    source = open_source("hfds/x")
    assert (source.labels, source.classes) == ((0, 1, 0, 1), ("a", "b"))
    calibration, evaluation = draw_images(source, Draw(evaluation=9, calibration=1))
    assert sorted(calibration.numbers + evaluation.numbers) == [0, 2, 3]
    assert calibration.skipped + evaluation.skipped == ["1"]


def test_the_first_images_of_a_stream_are_kept_without_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace_create_dataset(monkeypatch, FakeStream())
    found = open_timm_images("hfids/x", at_most=5)
    assert found.labels == (0, 1, 2, 0, 1)
    content = found.read(3)
    assert isinstance(content, bytes)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels(3))


def test_shards_of_a_web_dataset_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.tar", "a.tar"):
        (tmp_path / name).touch()
    seen = replace_create_dataset(monkeypatch, FakeStream())
    open_timm_images(f"wds/{tmp_path}", at_most=1)
    assert (seen["root"], seen["split"]) == (str(tmp_path), "a.tar::b.tar")
    open_timm_images(f"wds/{tmp_path}/b.tar", at_most=1)
    assert (seen["root"], seen["split"]) == (str(tmp_path), "b.tar")
    (tmp_path / "_info.json").touch()
    open_timm_images(f"wds/{tmp_path}", at_most=1)
    assert (seen["root"], seen["split"]) == (str(tmp_path), "validation")


# webdataset leaves closing its files to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_web_dataset_gives_its_images_and_labels(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(4):
            for suffix, data in (("png", png(number)), ("cls", str(number % 2).encode())):
                member = tarfile.TarInfo(f"{number:04}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    source = open_source(f"wds/{tmp_path}")
    assert source.labels == (0, 1, 0, 1)
    assert np.array_equal(np.asarray(source.read(2)[1]), pixels(2))


@pytest.mark.parametrize(
    "error",
    [
        ImportError("No module named 'datasets'"),
        ConnectionError("Couldn't reach the hub"),
        ValueError("Unknown split \"validation\". Should be one of ['train', 'test']."),
        AssertionError(),
    ],
)
def test_what_cannot_be_opened_is_missing_input_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    replace_create_dataset(monkeypatch, error)
    with pytest.raises(InputMissingError) as caught:
        open_source("hfds/x")
    assert (str(error) or "AssertionError") in str(caught.value)
    assert "split=test" in str(caught.value)


def test_an_empty_split_is_missing_input(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_create_dataset(monkeypatch, FakeDataset(FakeReader([])))
    with pytest.raises(InputMissingError, match="no images in this split"):
        open_source("hfds/x")


def test_advice_of_timm_does_not_reach_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def create_dataset(name: str, **options: Any) -> Any:
        print("Please install something.")  # noqa: T201
        raise ImportError(name)

    monkeypatch.setattr("timm.data.dataset_factory.create_dataset", create_dataset)
    with pytest.raises(InputMissingError):
        open_source("hfds/x")
    assert capsys.readouterr().out == ""
