"""The program from outside: help, exit codes, one sentence for every mistake."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import vitsense
from vitsense import cli
from vitsense.errors import (
    GateFailedError,
    InputMissingError,
    MeasurementError,
    SchemaVersionError,
    UserInputError,
)

COMMANDS = (
    "analyze", "report", "plan",
    "profile", "qat", "distill", "export", "import", "demo",
    "models", "env", "completion",
)  # fmt: skip
HEAVY = "{'torch', 'torchvision', 'timm', 'numpy', 'pandas', 'scipy', 'matplotlib', 'PIL'}"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are looked for in the working folder."""
    monkeypatch.chdir(tmp_path)


def _heavy_modules_after(*arguments: str) -> list[str]:
    code = (
        "import sys; from vitsense.cli import run; code = run(sys.argv[1:]);"
        f"print('loaded', sorted({HEAVY} & set(sys.modules)), code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1].split(" ", 1)[1].rsplit(" ", 1)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([c, "--help"] for c in COMMANDS), ["completion", "bash"]],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert _heavy_modules_after(*arguments) == ["[]", "0"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze", "--model", "x", "--bits", "1"],
        ["analyze"],
        ["report", "no-such-run"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_a_mistake_is_said_before_anything_heavy_is_imported(arguments: list[str]) -> None:
    assert _heavy_modules_after(*arguments)[0] == "[]"


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, vitsense; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_takes_less_than_four_tenths_of_a_second() -> None:
    """The best of several, of processor time: the machine may be busy with other things."""
    command = [sys.executable, "-m", "vitsense", "--help"]
    spent = []
    for _ in range(5):
        before = os.times()
        subprocess.run(command, capture_output=True, check=True)
        after = os.times()
        spent.append(
            after.children_user
            - before.children_user
            + after.children_system
            - before.children_system
        )
    assert min(spent) < 0.4


def test_every_exit_code_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    listed = text.partition("Exit codes:")[2].splitlines()
    codes = {words[0] for line in listed if (words := line.split()) and words[0].isdigit()}
    assert codes == {"0", "1", "2", "3", "4", "130"}


def test_every_command_and_every_option_has_a_help_text() -> None:
    assert set(cli.cli.commands) == set(COMMANDS)
    for command in (cli.cli, *cli.cli.commands.values()):
        assert command.help
        silent = [
            parameter.name
            for parameter in command.params
            if isinstance(parameter, click.Option) and not parameter.help
        ]
        assert silent == []


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"vitsense {vitsense.__version__}\n"


def test_no_command_shows_the_help_as_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Commands:" in err


@pytest.mark.parametrize(("typed", "meant"), [("analize", "analyze"), ("reprot", "report")])
def test_a_misspelt_command_is_recognized(
    capsys: pytest.CaptureFixture[str], typed: str, meant: str
) -> None:
    assert cli.run([typed]) == 2
    assert meant in capsys.readouterr().err


def test_a_misspelt_option_is_recognized(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["analyze", "--modle", "swin_t"]) == 2
    assert "--model" in capsys.readouterr().err


_ANALYZE = ["analyze", "--model", "zoo/glyph_resnet"]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--bits", "1"], "--bits has 1: use some of 2, 3, 4"),
        (["--bits", "99"], "--bits has 99: use some of 2, 3, 4"),
        (["--bits", "8,99,1"], "--bits has 99, 1"),
        (["--bits", "a"], "--bits is 'a'"),
        (["--bits", ""], "--bits is ''"),
        (["--bits", "8,,4"], "--bits is '8,,4'"),
        (["--bits", "4.5"], "--bits is '4.5'"),
        (["--bits", "8,8"], "twice"),
        (["--parts", "q"], "both, weights, activations"),
        (["--images", "0"], "--images is 0"),
        (["--images", "many"], "not a valid integer"),
        (["--calibration", "-1"], "--calibration is -1"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--budget", "4"], "avg-bits=NUMBER"),
        (["--budget", "avg-bits=nan"], "positive"),
        (["--weights", "zoo"], "hub"),
        (["--weights", "random", "--checkpoint", "x.pt"], "contradict"),
        (["--compare-checkpoint", "x.pt"], "1 times for 0 --compare models"),
        (["--compare-weights", "random"], "1 times for 0 --compare models"),
        (["--fail-if-drop", "-1"], "--fail-if-drop"),
        (["--progress", "fancy"], "auto"),
        (["--weight-range", "widest"], "minmax"),
        (["--device", "abacus"], "'abacus' cannot be used"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_value_is_exit_2_and_one_sentence(
    capsys: pytest.CaptureFixture[str], extra: list[str], said: str
) -> None:
    assert cli.run([*_ANALYZE, *extra]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert not Path("vitsense-runs").exists()


def test_a_model_that_does_not_exist_is_answered_with_near_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["analyze", "--model", "swin_tt"]) == 2
    assert "swin_t," in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there_is_exit_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*_ANALYZE, "--checkpoint", "absent.safetensors"]) == 3
    assert "absent.safetensors" in capsys.readouterr().err


def test_data_that_is_not_there_is_exit_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*_ANALYZE, "--data", "absent-folder"]) == 3
    assert "absent-folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "data", "code", "said"),
    [("no-such-model", ".", 2, "no-such-model"), ("deit_t", "absent", 3, "absent")],
)
def test_names_and_data_are_checked_before_weights_are_fetched(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    data: str,
    code: int,
    said: str,
) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr("vitsense.models.reachable_or_explained", fetch)
    assert cli.run(["analyze", "--model", model, "--data", data]) == code
    assert said in capsys.readouterr().err


def test_an_out_folder_that_cannot_be_written_is_exit_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("file").write_text("not a folder")
    assert cli.run([*_ANALYZE, "--images", "8", "--calibration", "4", "--out", "file/run"]) == 2
    assert "file/run cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["report"], ["plan", "--budget", "avg-bits=4"]])
def test_without_any_run_the_way_to_make_one_is_said(
    capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert cli.run(command) == 3
    assert "vitsense analyze" in capsys.readouterr().err
    assert cli.run([command[0], "no-such-run", *command[1:]]) == 3
    assert "no-such-run is not a run folder" in capsys.readouterr().err


def _make_run(name: str, text: str = '{"schema": "vitsense.run/1"}') -> Path:
    folder = Path("vitsense-runs") / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(text)
    return folder


def test_an_unknown_run_is_answered_with_the_runs_that_are_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("20260101-000000-vit", "20260102-000000-swin"):
        _make_run(name)
    assert cli.run(["report", "20260103-000000-cait"]) == 3
    err = capsys.readouterr().err
    assert "vitsense-runs/20260101-000000-vit" in err
    assert "vitsense-runs/20260102-000000-swin" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ('{"schema": "vitsense.plan/1"}', "expected 'vitsense.run/1'"),
        ('{"schema": "vitsense.run/9"}', "update vitsense"),
    ],
)
@pytest.mark.parametrize("command", [["report"], ["plan", "--budget", "avg-bits=4"]])
def test_a_damaged_or_newer_run_is_exit_2(
    capsys: pytest.CaptureFixture[str], command: list[str], text: str, said: str
) -> None:
    _make_run("20260101-000000-vit", text)
    assert cli.run(command) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["head", "=8", "head=", "head=eight", "head=-8"])
def test_a_pin_that_is_not_name_and_bits_is_exit_2(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    _make_run("20260101-000000-vit")
    assert cli.run(["plan", "--budget", "avg-bits=4", "--pin", text]) == 2
    assert "NAME=BITS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GateFailedError("gate"), 1),
        (UserInputError("input"), 2),
        (SchemaVersionError("schema"), 2),
        (InputMissingError("missing"), 3),
        (MeasurementError("measurement"), 4),
        (RuntimeError("surprise"), 4),
        (MemoryError(), 4),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("debug", [False, True])
def test_every_error_has_its_exit_code_and_a_traceback_only_on_request(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    debug: bool,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("vitsense.provenance.versions", fail)
    assert cli.run(["env", *(["--debug"] if debug else [])]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert str(error) in err
    interrupted = code == 130
    assert ("Traceback" in err) == (debug and not interrupted)


def test_debug_may_stand_before_or_after_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--debug", "report", "absent"], ["report", "absent", "--debug"]):
        assert cli.run(arguments) == 3
        assert "Traceback" in capsys.readouterr().err


def test_an_unexpected_error_says_how_to_see_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr("vitsense.provenance.versions", fail)
    assert cli.run(["env"]) == 4
    assert capsys.readouterr().err == (
        "Internal error: ZeroDivisionError: first line. For the traceback, run with --debug.\n"
    )


def test_models_are_listed_by_part_of_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "glyph"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "zoo/glyph_resnet",
        "zoo/glyph_swin",
    ]
    assert cli.run(["models", "swin_t", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["models"]
    assert {"name": "swin_t", "what": "alias of swin_tiny_patch4_window7_224"} in found
    assert cli.run(["models", "no-such-model"]) == 3


def test_env_says_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "vitsense.result/1"
    assert found["versions"]["torch"] not in {"", "not installed"}
    assert {"versions", "machine", "torch", "report"} <= found.keys()
    assert cli.run(["env"]) == 0
    assert found["versions"]["torch"] in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_the_shell(
    capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    assert cli.run(["completion", shell]) == 0
    assert "_VITSENSE_COMPLETE" in capsys.readouterr().out


def test_completion_knows_options() -> None:
    environment = {"_VITSENSE_COMPLETE": "bash_complete", "COMP_WORDS": "vitsense analyze --ch"}
    done = subprocess.run(
        [sys.executable, "-m", "vitsense"],
        env={**os.environ, **environment, "COMP_CWORD": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--checkpoint" in done.stdout


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "vitsense", "completion", "bash"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), err) == (0, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_results_can_be_printed_in_any_encoding(encoding: str) -> None:
    code = "from vitsense.cli_output import emit, say; emit('−4.7 é\\u2713'); say('−1')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )
    sign = "−" if encoding == "utf-8" else "-"
    assert done.stdout.decode(encoding).startswith(f"{sign}4.7")
    assert done.stderr.decode(encoding).strip() == f"{sign}1"


def test_help_has_no_colour_codes_when_colour_is_forced_off() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vitsense", "--help"],
        env={**os.environ, "NO_COLOR": "1", "FORCE_COLOR": "1"},
        capture_output=True,
        check=True,
    )
    assert b"\x1b[" not in done.stdout


def test_the_program_is_started_by_the_interpreter_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vitsense", "report", "absent"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3


@pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_decided(
    monkeypatch: pytest.MonkeyPatch, given: str | None, kept: str
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("OMP_WAIT_POLICY", None)
    if given is not None:
        os.environ["OMP_WAIT_POLICY"] = given
    monkeypatch.setattr(sys, "argv", ["vitsense", "--version"])
    asked: list[bool] = []  # the memory of the tests' own process is left as it is
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: asked.append(True))
    with pytest.raises(SystemExit):
        cli.main()
    assert os.environ["OMP_WAIT_POLICY"] == kept
    assert asked == [True]


@pytest.mark.parametrize("arguments", [["--help"], ["analyze", "--help"], ["--version"]])
def test_a_reader_of_help_that_went_away_is_no_error(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w", buffering=1)
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.run(arguments) == 0
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_everything_that_is_wrong_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    command = "analyze --model zoo/glyph_swin --bits 8,x --images 0 --budget bits=3 --tolerance 0"
    assert cli.run(command.split()) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "Error: 4 things are wrong:"
    for line, begin in zip(rest, ("--bits", "'bits=3'", "--images", "--tolerance"), strict=True):
        assert line.startswith(f"  {begin} is ")
    assert cli.run(["analyze", "--model", "zoo/glyph_swin", "--images", "0"]) == 2
    assert capsys.readouterr().err == "Error: --images is 0: it must be at least 1.\n"
