"""The commands on a real, small run: what they print, write, refuse and continue."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from vitsense import cli
from vitsense.cli_output import Session
from vitsense.errors import UserInputError
from vitsense.in_use import sole_writer
from vitsense.plan.plan import Plan
from vitsense.runfolder import RunFolder
from vitsense.schemas import SCHEMAS

_SMALL = ["--model", "zoo/glyph_resnet", "--images", "8", "--calibration", "4"]
_SMALL += ["--refine", "0"]
_TINY = ["--model", "zoo/glyph_resnet", "--images", "4", "--calibration", "4", "--bits", "8"]
_TINY += ["--refine", "0"]
_ANALYZE = ["analyze", *_SMALL, "--bits", "8,3,2", "--batch-size", "4"]


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert cli.run([*_ANALYZE, "--no-report", "--out", str(folder), "-q"]) == 0
    return folder


@pytest.fixture
def run(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run, in an otherwise empty working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(measured, Path("vitsense-runs") / "small"))


def _json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_analyze_prints_the_warnings_then_the_verdict_then_the_way_on(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*_ANALYZE, "--no-report", "--out", str(run)]) == 0
    out, err = capsys.readouterr()
    record = RunFolder(run).read_run()
    lines = out.splitlines()
    assert lines[0] == f"Warning: {record['warnings'][0]}"
    assert [line for line in lines if line in record["verdict"]] == record["verdict"]
    assert f"Run folder: {run}" in lines
    assert f"  vitsense report {run}" in lines
    assert "Generated images" in out
    assert "sensitivity" in err
    assert "sensitivity:" not in out


def test_json_is_one_object_on_standard_output(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*_ANALYZE, "--no-report", "--out", str(run), "--json"]) == 0
    found = _json(capsys)
    record = RunFolder(run).read_run()
    assert found["schema"] == "vitsense.result/1"
    assert found["status"] == "complete"
    assert found["out_dir"] == str(run)
    assert found["verdict"] == record["verdict"]
    assert found["warnings"] == record["warnings"]
    assert {"run.json", "plan.json", "sensitivity.csv"} <= set(found["artifacts"])


def test_what_a_training_begins_from_is_what_the_run_measured_of_the_plan(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit, although training itself calibrates on other images: one number."""
    words = ["qat", "--plan", str(run / "plan.json"), "--images", "8", "--epochs", "1"]
    words += ["--batch-size", "8", "--set", "calibration=4", "--sensitivity-images", "0", "-q"]
    assert cli.run(words) == 0
    out = capsys.readouterr().out
    record = json.loads((run / "qat" / "demo" / "qat.json").read_text())
    measured = Plan.load(run / "plan.json").measured
    assert measured is not None
    assert {key: record["ptq"][key] for key in measured} == measured
    assert record["analysis"]["equal"]
    assert record["analysis"]["same_images"]
    assert record["calibration"]["as_analyzed"]
    assert "Not trained: what the analysis measured of the plan." in out
    assert record["worth"]["text"] in out


def test_the_same_command_measures_nothing_again_and_changes_no_table(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("sensitivity.csv", "statistics.csv", "joint.csv", "pareto.csv", "state.jsonl")
    before = {name: (run / name).read_bytes() for name in names}
    (run / "sensitivity.csv").write_bytes(before["sensitivity.csv"][:1000])  # and mends what is cut
    assert cli.run([*_ANALYZE, "--no-report", "--out", str(run)]) == 0
    assert {name: (run / name).read_bytes() for name in names} == before
    assert f"{run} is complete: what it measured is used again." in capsys.readouterr().err


def test_a_table_that_was_cut_is_named_with_the_command_that_mends_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cut in the middle of a line, at the end of one, a table that is gone."""
    command = [*_ANALYZE, "--no-report", "--out", str(run), "-q"]
    record = RunFolder(run).read_run()
    RunFolder(run).write_run(record | {"commands": [["vitsense", *command]]})
    before = {name: (run / name).read_bytes() for name in ("sensitivity.csv", "groups.csv")}
    whole = before["sensitivity.csv"]
    for name, kept in (
        ("sensitivity.csv", whole[: whole.index(b"\n", 900) + 1]),
        ("sensitivity.csv", whole[:1000]),
        ("groups.csv", None),
    ):
        path = run / name
        path.unlink() if kept is None else path.write_bytes(kept)
        assert cli.run(["report", str(run), "--html", "--out", "elsewhere"]) == 2
        said = capsys.readouterr().err
        assert str(path) in said
        assert said.endswith(
            f"measures nothing twice: vitsense {shlex.join(command[:-3])} -q --out {run}\n"
        )
        path.write_bytes(before[name])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--images", "25"], "images"),
        (["--bits", "8,2"], "bits"),
        (["--seed", "1"], "seed"),
        (["--model", "zoo/glyph_swin"], "model"),
        (["--weight-range", "minmax"], "quant"),
        (["--weights", "random"], "weights of glyph_resnet"),
    ],
)
def test_other_settings_are_refused_by_name_and_nothing_is_touched(
    run: Path, capsys: pytest.CaptureFixture[str], changed: list[str], named: str
) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert cli.run([*_ANALYZE, *changed, "--out", str(run)]) == 2
    err = capsys.readouterr().err
    assert "holds results of another run" in err
    assert named in err.partition("different are: ")[2]
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_another_budget_is_not_another_measurement_and_quiet_leaves_only_the_result(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*_ANALYZE, "--budget", "avg-bits=6", "--no-report", "--out", str(run), "-q"]
    before = (run / "sensitivity.csv").read_bytes()
    assert cli.run([*arguments, "--fail-if-drop", "100"]) == 0  # a gate that holds
    assert Plan.load(run / "plan.json").budget == "avg-bits=6"
    assert (run / "sensitivity.csv").read_bytes() == before
    out, err = capsys.readouterr()
    assert err == ""
    assert "Run folder:" in out


def test_a_gate_that_fails_is_exit_1_after_everything_is_written(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With 2.5 bits on average, the small ResNet loses far more than nothing."""
    command = [*_ANALYZE, "--budget", "avg-bits=2.5", "--no-report", "--out", str(run), "-q"]
    assert cli.run([*command, "--fail-if-drop", "0"]) == 1
    out, err = capsys.readouterr()
    assert "--fail-if-drop" in err
    assert "Run folder:" in out
    assert RunFolder(run).read_run()["status"] == "complete"
    assert (run / "plan.json").is_file()


def test_plan_solves_again_and_writes_what_was_not_measured_as_unknown(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Plan.load(run / "plan.json").measured is not None
    assert cli.run(["plan", "--budget", "avg-bits=2.5"]) == 0
    out = capsys.readouterr().out
    made = Plan.load(run / "plan.json")
    assert made.budget == "avg-bits=2.5"
    assert made.measured is None
    assert "not measured" in out
    assert out.splitlines()[-1] == f"Plan: {run / 'plan.json'}"
    assert made.cost is not None
    assert made.cost["avg_bits"] <= 2.5 + 1e-9


def test_the_plan_that_was_measured_is_kept_when_another_takes_its_place(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = (run / "plan.json").read_bytes()
    for budget in ("avg-bits=2.5", "avg-bits=3"):
        assert cli.run(["plan", "--budget", budget]) == 0
        assert "the one before is kept in plan.previous.json" in capsys.readouterr().out
        assert Plan.load(run / "plan.json").budget == budget
        assert (run / "plan.previous.json").read_bytes() == measured


def test_a_budget_above_what_was_measured_is_said_not_to_be_used_up(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", "--out", str(tmp_path / "plan.json"), "--budget"]
    assert cli.run([*command, "avg-bits=2.5"]) == 0
    assert "not used up" not in capsys.readouterr().out
    assert cli.run([*command, "avg-bits=16"]) == 0
    assert "the budget is not used up: every module that is not pinned" in capsys.readouterr().out


def test_plan_pins_unpins_and_ties(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (run / "modules.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    weighted = [row["module"] for row in rows if int(row["params"])]
    other = weighted[3]
    base = ["plan", str(run), "--budget", "avg-bits=2.5", "--json"]

    assert cli.run([*base, "--pin", f"{other}=3"]) == 0
    pinned = {m["name"]: m for m in _json(capsys)["plan"]["modules"] if m["pinned"]}
    assert pinned.keys() == {weighted[0], weighted[-1], other}
    assert pinned[other]["bits"] == 3

    assert cli.run([*base, "--no-pin"]) == 0
    assert not any(m["pinned"] for m in _json(capsys)["plan"]["modules"])

    assert cli.run([*base, "--tie", "block"]) == 0
    bits = {m["name"]: m["bits"] for m in _json(capsys)["plan"]["modules"] if not m["pinned"]}
    blocks: dict[str, set[int]] = {}
    for row in rows:
        if row["block"] and row["module"] in bits:
            blocks.setdefault(row["block"], set()).add(bits[row["module"]])
    assert {len(widths) for widths in blocks.values()} == {1}


def test_a_run_that_another_command_writes_can_be_read_and_not_searched(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sole_writer(run):
        assert cli.run(["report", str(run), "--format", "md", "--json"]) == 0
        assert not any(name.startswith(".") for name in _json(capsys)["artifacts"])
        assert cli.run(["plan", str(run), "--budget", "avg-bits=5", "--out", "five.json"]) == 0
        assert cli.run(["plan", str(run), *_SEARCH]) == 2
        assert "in use by process" in capsys.readouterr().err


@pytest.mark.parametrize("apart", [1.5, 2.5])
def test_a_plan_that_was_not_measured_says_how_to_know(
    run: Path, capsys: pytest.CaptureFixture[str], apart: float
) -> None:
    """Between measured plans whose divergences differ by factors, the curve is a guess."""
    command = ["plan", str(run), "--budget", "avg-bits=2.6", "--out", "mine.json"]
    assert cli.run(command) == 0
    predicted = Plan.load(Path("mine.json")).predicted or {}
    record = RunFolder(run).read_run()
    log_kl = math.log(predicted["kl"])
    knots = [(log_kl - math.log(apart), -3.0), (log_kl + math.log(apart), 0.0)]
    record["models"][0]["drop_model"]["knots"] = knots
    RunFolder(run).write_run(record)
    capsys.readouterr()
    assert cli.run(command) == 0
    said = capsys.readouterr().out
    assert "--budget avg-bits=2.6 --refine 3 improves it as a whole and measures it" in said
    assert ("no measured plan is near it" in said) == (apart > 2)


def _stop_when_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings end where everything was checked and the first grids are made."""

    def enough(*_: Any, **__: Any) -> None:
        raise UserInputError("accepted")

    monkeypatch.setattr("vitsense.qat.train.prepare_qat", enough)


@pytest.mark.parametrize("command", [["demo"], [*_ANALYZE, "--no-report"]])
def test_the_training_that_is_proposed_next_is_accepted_as_printed(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    found = RunFolder(run)
    record = found.read_run()
    found.write_run(record | {"models": [*record["models"], {"key": "second"}]})
    found.plan_path("second").write_text("{}")
    monkeypatch.setattr("vitsense.demo.run_demo", lambda **_: (found, []))
    monkeypatch.setattr("vitsense.analyze.run_analysis", lambda *_, **__: found)
    assert cli.run(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"Plan of second: {run / 'plan-second.json'}" in lines
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("  vitsense ")]
    (training,) = [words for words in commands if words[0] == "qat"]
    plan = training[training.index("--plan") + 1]
    assert ["report", str(run)] in commands
    found.write_run(record)
    for words in commands:  # the plan that is trained is made by the command above it
        if words[0] == "plan" and plan in words:
            assert cli.run(words) == 0
    capsys.readouterr()
    _stop_when_accepted(monkeypatch)
    assert cli.run(training) == 2
    assert capsys.readouterr().err.endswith("Error: accepted\n")


def test_a_time_budget_counts_from_the_start_of_the_program_and_leaves_some_for_the_report(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def keep(*_: Any, **given: Any) -> None:
        seen.append(given["since"] if "since" in given else given["deadline"].at - 30)
        raise UserInputError("enough")

    monkeypatch.setattr("vitsense.analyze.run_analysis", keep)
    monkeypatch.setattr("vitsense.analyze_again.plan_improved", keep)
    monkeypatch.setattr(cli, "Session", partial(Session, started=1000.0))
    cli.run([*_ANALYZE, "--budget-time", "15s"])
    cli.run([*_ANALYZE, "--budget-time", "1h"])
    cli.run([*_ANALYZE, "--budget-time", "30s", "--no-report"])
    cli.run(["plan", str(run), *_SEARCH, "--budget-time", "30s"])
    assert seen == [995.0, 990.0, 1000.0, 1000.0]
    assert cli.run(["plan", str(run), *_SEARCH, "--budget-time", "abc"]) == 2
    assert len(seen) == 4  # before the model is opened
    capsys.readouterr()


def test_a_measured_plan_is_written_again_and_the_searched_one_stays(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = (run / "plan.json").read_bytes()
    joint = RunFolder.open(run).table("joint").set_index("plan")
    for name in ("uniform-8", "uniform-3"):
        assert cli.run(["plan", str(run), "--measured", name]) == 0
        assert "measured as a whole on" in capsys.readouterr().out
        made = Plan.load(run / "plan.json")
        assert set(made.bits.values()) == {int(name[-1])}
        assert made.measured is not None
        assert made.measured["kl"] == joint.loc[name, "kl"]
        assert made.cost is not None
        assert made.cost["bitops_g"] == pytest.approx(joint.loc[name, "bitops_g"])
        assert made.provenance["plan"] == name
        assert not any(module.pinned for module in made.modules)
    assert (run / "plan.previous.json").read_bytes() == measured
    assert cli.run(["plan", str(run), "--measured", "recommended"]) == 0
    assert (run / "plan.json").read_bytes() == measured
    capsys.readouterr()


def test_plan_writes_elsewhere_on_request(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "plan.json").read_bytes()
    command = ["plan", str(run), "--budget", "max-drop=10", "--out", "mine.json"]
    assert cli.run(command) == 0
    assert Plan.load(Path("mine.json")).budget == "max-drop=10"
    assert (run / "plan.json").read_bytes() == before
    capsys.readouterr()


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--budget", "avg-bits=1"], "least possible is avg-bits="),
        (["--budget", "bits=4"], "avg-bits=NUMBER"),
        (["--budget", "avg-bits=4", "--model", "resnet50"], "it has glyph_resnet"),
        (["--budget", "avg-bits=4", "--pin", "no.such.module=8"], "no module 'no.such.module'"),
        (["--budget", "avg-bits=4", "--pin", "layer1.0.conv=8"], "Near names: layer1.0.conv"),
        (["--budget", "avg-bits=4", "--pin", "fc=7"], "measured are 2, 3, 8"),
        (["--budget", "avg-bits=4", "--out", "absent/plan.json"], "cannot be written"),
        (["--budget", "avg-bits=4", "--tie", "heads"], "qkv"),
        (["--point", "0", "--refine", "1"], "or --refine"),
        (["--measured", "uniform-8", "--pin", "fc=8"], "--measured takes a plan as it is"),
        (["--measured", "uniform-8", "--point", "0"], "one of --budget"),
        (["--measured", "uniform-5"], "whose bits are kept are uniform-8"),
        (["--budget", "avg-bits=4", "--budget-time", "5s"], "give --refine 3 as well"),
        (["--budget", "avg-bits=4", "--refine-images", "8"], "--refine-images shape a search"),
        (["--budget", "avg-bits=4", "--refine", "1", "--budget-time", "abc"], "is 'abc': write a"),
        ([], "--budget"),
    ],
)
def test_a_plan_that_cannot_be_made_is_exit_2_and_keeps_the_old_one(
    run: Path, capsys: pytest.CaptureFixture[str], extra: list[str], said: str
) -> None:
    before = (run / "plan.json").read_bytes()
    assert cli.run(["plan", str(run), *extra]) == 2
    assert said in capsys.readouterr().err
    assert (run / "plan.json").read_bytes() == before


_SEARCH = ["--budget", "avg-bits=3.5", "--refine", "1", "--refine-images", "4"]


def test_a_plan_that_is_searched_for_later_is_the_one_that_analyze_finds(
    run: Path, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = shutil.copytree(measured, tmp_path / "whole")
    options = [*_ANALYZE, *_SEARCH, "--no-report", "--out", str(whole), "-q"]
    assert cli.run(options) == 0
    capsys.readouterr()
    assert cli.run(["plan", str(run), *_SEARCH, "-q"]) == 0
    out = capsys.readouterr().out
    assert "measured as a whole on 8 images" in out
    wanted, found = (Plan.load(folder / "plan.json") for folder in (whole, run))
    assert found.formats == wanted.formats
    assert found.measured == wanted.measured
    search = found.provenance["search"]
    taken = sum(step["taken"] for step in search["steps"] if step["start"] == search["start"])
    tried = len(search["steps"])
    helped = f"in {taken} step{'s' * (taken != 1)} that helped"
    none = f"{tried} change{'s' * (tried != 1)} tried, none clearly better than"
    assert (helped if taken else none) in out
    steps = RunFolder(whole).table("refinement")
    assert [step["after"] for step in found.provenance["search"]["steps"]] == list(steps["after"])
    state = (run / "state.jsonl").read_bytes()
    assert cli.run(["plan", str(run), *_SEARCH, "-q", "--out", "again.json"]) == 0
    assert Plan.load(Path("again.json")) == found
    assert (run / "state.jsonl").read_bytes() == state  # all of it was kept


def test_a_search_without_time_keeps_the_solved_plan_and_says_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", str(run), *_SEARCH, "--budget-time", "0.001s", "--out", "late.json", "-q"]
    assert cli.run(command) == 0
    assert "the time ended before the search did" in capsys.readouterr().out
    late = Plan.load(Path("late.json"))
    assert late.measured is not None
    assert "search" not in late.provenance


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (("models", 0, "weights_digest"), "The weights of glyph_resnet are not those"),
        (("models", 0, "sites_digest"), "The sites of glyph_resnet are not those"),
        (("data", "calibration_digest"), "are no longer those of the run"),
        (("data", "evaluation_digest"), "The evaluation images are no longer"),
        (("fingerprint", "vitsense version"), "was made by vitsense other"),
    ],
)
def test_a_search_on_something_else_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], where: tuple[Any, ...], said: str
) -> None:
    record = json.loads((run / "run.json").read_text())
    place = record
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = "other"
    (run / "run.json").write_text(json.dumps(record))
    before = (run / "plan.json").read_bytes()
    assert cli.run(["plan", str(run), *_SEARCH, "-q"]) != 0
    assert said in capsys.readouterr().err
    assert (run / "plan.json").read_bytes() == before


@pytest.mark.parametrize(("flag", "other"), [("html", "pdf"), ("pdf", "html")])
def test_one_kind_of_report_can_be_asked_for(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
    other: str,
) -> None:
    shown: list[str] = []

    def show(address: str) -> bool:
        shown.append(address)
        return False

    monkeypatch.setattr("webbrowser.open", show)
    assert cli.run(["report", "small", f"--{flag}", "--open", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["written"] == [str(run / "report.json"), str(run / f"report.{flag}")]
    assert not (run / f"report.{other}").exists()
    assert shown == [(run / f"report.{flag}").resolve().as_uri()]
    assert "open" in err


@pytest.mark.parametrize("text", ["{", '{"schema": "vitsense.plan/1", "modules": []}', "[]"])
def test_a_damaged_plan_in_a_run_is_said_by_the_report(
    run: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (run / "plan.json").write_text(text)
    assert cli.run(["report", "--html"]) == 2
    assert "plan.json" in capsys.readouterr().err


def test_report_and_plan_work_without_torch_and_a_report_prints_only_its_paths(run: Path) -> None:
    # a finder and not None in sys.modules: scipy takes a None there for a module
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'timm', 'torchvision'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from vitsense.cli import run\n"
        "code = run(['report'])\n"
        "print('plan:')\n"
        "sys.exit(code or run(['plan', '--budget', 'avg-bits=3']))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    paths = [str(run / f"report.{kind}") for kind in ("json", "html", "pdf")]
    assert done.stdout.partition("plan:")[0].split() == paths
    assert (run / "report.pdf").read_bytes().startswith(b"%PDF")
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_damaged_run_beside_does_not_stop_a_new_one(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "run.json").write_text("{")
    assert cli.run(["analyze", *_TINY, "--no-report", "-q", "--json"]) == 0
    assert _json(capsys)["out_dir"] != str(run)


def test_an_unexpected_error_is_kept_in_the_log_of_the_run(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("vitsense.analyze.analyze_model", fail)
    assert cli.run([*_ANALYZE, "--out", str(run)]) == 4
    err = capsys.readouterr().err
    assert f"Internal error: ZeroDivisionError: a bug. The traceback is in {run / 'log.txt'}" in err
    assert "Traceback" not in err
    assert "in fail" in (run / "log.txt").read_text()
    assert RunFolder(run).read_run()["status"] == "interrupted"


def _raise_after(monkeypatch: pytest.MonkeyPatch, records: int, number: signal.Signals) -> None:
    """Send this process a real signal once some results are kept."""
    append, count = RunFolder.append_state, 0

    def signalling(self: RunFolder, record: dict[str, Any]) -> None:
        nonlocal count
        append(self, record)
        count += 1
        if count == records:
            signal.raise_signal(number)

    monkeypatch.setattr(RunFolder, "append_state", signalling)


def test_an_interrupted_analysis_says_how_to_continue_and_does(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    measured: Path,
) -> None:
    """Ctrl-C first; what continues is ended with SIGTERM; what continues that, comes to the end."""
    monkeypatch.chdir(tmp_path)
    # a background shell job starts with Ctrl-C ignored, and pytest may be one
    before = signal.getsignal(signal.SIGINT)
    command = ["vitsense", *_ANALYZE, "--no-report"]
    kept: list[dict[str, Any]] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with monkeypatch.context() as patch:
                _raise_after(patch, 9, number)
                assert cli.run(command[1:]) == 130
        finally:
            signal.signal(signal.SIGINT, before)
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        assert err.splitlines()[-1].split() == command
        (run,) = RunFolder.all_in(Path("vitsense-runs"))
        assert run.read_run()["status"] == "interrupted"
        assert len(run.read_state()) == len(kept) + 9
        assert run.read_state()[: len(kept)] == kept
        kept = run.read_state()
    with sole_writer(run.path):  # another process has begun to continue it
        assert cli.run(command[1:]) == 2
    assert f"{run.path} is in use by process" in capsys.readouterr().err

    assert cli.run(command[1:]) == 0
    assert "Continuing" in capsys.readouterr().err
    assert RunFolder.all_in(Path("vitsense-runs")) == [run]
    assert run.read_run()["status"] == "complete"
    assert run.read_state()[:18] == kept
    _assert_equal_tables(run, RunFolder(measured))


def _assert_equal_tables(one: RunFolder, other: RunFolder) -> None:
    for name in SCHEMAS:
        tables = [run.table(name) for run in (one, other)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    plans = [Plan.load(run.plan_path()).to_json() for run in (one, other)]
    assert plans[0] == plans[1]


@pytest.mark.slow
def test_a_killed_analysis_continues_to_the_tables_of_an_undisturbed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], measured: Path
) -> None:
    """SIGKILL to a process of its own: nothing is cleaned up, nothing is lost."""
    arguments = [*_ANALYZE, "--no-report", "-q", "--out", str(tmp_path / "killed")]
    state = tmp_path / "killed" / "state.jsonl"
    # forked, so that what takes seconds to import is there; it has nothing else of this process
    process = multiprocessing.get_context("fork").Process(target=cli.run, args=(arguments,))
    process.start()
    deadline = time.monotonic() + 300
    while not state.is_file() or state.read_bytes().count(b"\n") < 25:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert RunFolder(tmp_path / "killed").read_run()["status"] == "running"
    kept = state.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert cli.run(arguments) == 0
    assert state.read_bytes().startswith(kept)
    capsys.readouterr()
    _assert_equal_tables(RunFolder(tmp_path / "killed"), RunFolder(measured))
