"""Two commands in one folder: the second is refused, and only while the first one lives."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from qat_jobs import CPU, RESNET, request

from vitsense import cli
from vitsense.analyze import run_analysis
from vitsense.errors import InUseError
from vitsense.in_use import sole_writer, sole_writer_of
from vitsense.models import load_model
from vitsense.plan.plan import Plan
from vitsense.progress import NoProgress
from vitsense.qat.ablate import ablate
from vitsense.qat.distill import DistillSettings, distill
from vitsense.qat.train import train
from vitsense.qat.training_images import training_source
from vitsense.settings import AnalyzeSettings, ModelRequest
from vitsense.trainings import TrainingFolder

_HOLDING = """
import sys, time
from pathlib import Path
from vitsense import in_use
with getattr(in_use, sys.argv[1])(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def _other_process(place: Path, how: str = "sole_writer") -> Iterator[subprocess.Popen[str]]:
    """A second process that writes there."""
    words = [sys.executable, "-c", _HOLDING, how, str(place)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_second_process_is_told_which_one_is_there_until_that_one_is_killed(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    with _other_process(folder) as process:
        who = f"in use by process {process.pid} since 20"
        with pytest.raises(InUseError, match=who) as raised, sole_writer(folder):
            pytest.fail("two writers")
        assert raised.value.exit_code == 2
        assert "wait for it" in str(raised.value).lower()
        assert "--out" in str(raised.value)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert (folder / ".lock").is_file()  # what a killed process leaves stops nobody
    with sole_writer(folder):
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_a_file_is_locked_by_itself(tmp_path: Path) -> None:
    with _other_process(tmp_path / "bank.0-of-2", "sole_writer_of"):
        bank = tmp_path / "bank.0-of-2"
        with pytest.raises(InUseError, match="0-of-2 is in use"), sole_writer_of(bank):
            pytest.fail("two writers")
        with sole_writer_of(tmp_path / "bank.1-of-2"):  # another rank of the same job
            pass


@pytest.mark.parametrize(
    "arguments",
    [
        "analyze --model zoo/glyph_resnet --images 4 --calibration 4 --out there",
        "demo --out there",
        "qat --bits 4 --model zoo/glyph_resnet --images 64 --out there",
        "qat --bits 4 --model zoo/glyph_resnet --images 64 --out there --ablate",
    ],
)
def test_commands_refuse_a_folder_in_use_before_they_begin(
    arguments: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def load(*_: object, **__: object) -> None:
        pytest.fail("models were loaded before")

    monkeypatch.setattr("vitsense.models.load_model", load)
    with sole_writer(Path("there")):  # a lock is of an opened file, so one process has two as well
        assert cli.run(arguments.split()) == 2
        assert f"there is in use by process {os.getpid()} since" in capsys.readouterr().err
        left = {path.name for path in Path("there").iterdir()}
        assert left == {".lock", ".lock.json"}
    assert not Path("there").exists()


def test_analyses_and_trainings_lock_their_folder_whoever_starts_them(tmp_path: Path) -> None:
    with sole_writer(tmp_path):
        with pytest.raises(InUseError):
            run_analysis(AnalyzeSettings(model=ModelRequest(name="glyph_resnet")), out=tmp_path)
        with pytest.raises(InUseError):
            train(request(Plan(modules=())), TrainingFolder(tmp_path), CPU)
        with pytest.raises(InUseError):
            ablate(request(Plan(modules=())), tmp_path, CPU, [0])
    with sole_writer_of(tmp_path / "bank"), pytest.raises(InUseError):
        teacher, source = load_model(RESNET, CPU), training_source(None, 2)
        distill(teacher, source, tmp_path / "bank", DistillSettings(crops=1), CPU)


def test_a_start_that_is_refused_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    qat = ["qat", "--bits", "4", "--model", "zoo/glyph_resnet", "--eval-images", "36"]
    assert cli.run([*qat, "--out", "q/zero", "--images", "0"]) == 2
    assert cli.run([*qat, "--out", "q/bank", "--labels", "none.bank"]) == 3
    assert cli.run([*qat, "--out", "q/new", "--images", "8", "--batch-size", "8", "--resume"]) == 3

    def load(*_: object, **__: object) -> None:
        pytest.fail("a model was loaded before")

    monkeypatch.setattr("vitsense.analyze.load_model", load)
    monkeypatch.setattr("vitsense.models.load_model", load)
    for command in ("analyze --model", "distill --teacher", "qat --bits 4 --model"):
        words = [*command.split(), "zoo/glyph_swin", "--data", "none", "--out", "a"]
        assert cli.run(words) == 3
        assert "There is no folder or archive 'none'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    capsys.readouterr()


def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    class Heard(NoProgress):
        notes: list[str] = []  # noqa: RUF012  one test

        def note(self, text: str) -> None:
            self.notes.append(text)

    monkeypatch.setattr(FileLock, "acquire", refuse)
    heard = Heard()
    with sole_writer(tmp_path, heard):
        (tmp_path / "result").touch()
    assert "has no locks (No locks available)" in heard.notes[0]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
