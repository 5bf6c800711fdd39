"""The files of a run: whole or not at all, typed, and refused when damaged or newer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vitsense import runfolder
from vitsense.analyze_folder import find_folder
from vitsense.errors import (
    InputMissingError,
    SchemaVersionError,
    StaleResultError,
    UserInputError,
)
from vitsense.runfolder import RunFolder, atomic_write, json_text, read_json
from vitsense.schemas import SCHEMAS
from vitsense.settings import AnalyzeSettings, ModelRequest


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path, "vit")
    made.write_run({"status": "running"})
    return made


def test_a_new_folder_is_named_by_time_and_subject(tmp_path: Path) -> None:
    made = RunFolder.create(tmp_path, "timm/swin_t vs <b>resnet50</b>")
    assert re.fullmatch(r"\d{8}-\d{6}-timm-swin_t-vs-b-resnet50-b", made.path.name)


def test_two_runs_in_one_second_get_two_folders(tmp_path: Path) -> None:
    made = {RunFolder.create(tmp_path, "vit").path for _ in range(3)}
    assert len(made) == 3


def test_a_name_of_parent_folders_stays_inside_the_root(tmp_path: Path) -> None:
    made = RunFolder.create(tmp_path / "runs", "../../outside")
    assert made.path.resolve().parent == (tmp_path / "runs").resolve()


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserInputError, match=r"file.*cannot be written.*--out"):
        RunFolder.at(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(UserInputError, match="cannot be written"):
            RunFolder.at(tmp_path)
    finally:
        tmp_path.chmod(0o755)


def test_a_folder_without_run_json_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="not a run folder"):
        RunFolder.open(tmp_path)
    with pytest.raises(InputMissingError, match="not a run folder"):
        RunFolder.open(tmp_path / "absent")


def test_the_newest_run_is_the_one_written_last(tmp_path: Path) -> None:
    first, second = (RunFolder.create(tmp_path, name) for name in ("b", "a"))
    for number, made in enumerate((first, second)):
        made.write_run({"status": "complete"})
        os.utime(made.path / "run.json", (number, number))
    assert RunFolder.newest(tmp_path) == second
    assert RunFolder.all_in(tmp_path) == [first, second]


def test_no_runs_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="no run in"):
        RunFolder.newest(tmp_path)
    assert RunFolder.all_in(tmp_path / "absent") == []


def test_run_json_comes_back_as_written_with_its_schema(run: RunFolder) -> None:
    run.write_run({"status": "complete", "verdict": ["Ä <b> 1 %"]})
    assert run.read_run() == {
        "schema": "vitsense.run/1",
        "status": "complete",
        "verdict": ["Ä <b> 1 %"],
    }


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe{}", b'"text"', b'{"a": 1}'])
def test_a_corrupt_run_json_is_the_users_to_mend(run: RunFolder, content: bytes) -> None:
    (run.path / "run.json").write_bytes(content)
    with pytest.raises(UserInputError, match=r"run\.json"):
        run.read_run()


@pytest.mark.parametrize("version", ["2", "17", "x", ""])
def test_a_newer_schema_is_refused(run: RunFolder, version: str) -> None:
    (run.path / "run.json").write_text(json.dumps({"schema": f"vitsense.run/{version}"}))
    with pytest.raises(SchemaVersionError, match="update vitsense"):
        run.read_run()


def test_another_kind_of_file_is_refused(run: RunFolder) -> None:
    (run.path / "run.json").write_text(json.dumps({"schema": "vitsense.plan/1"}))
    with pytest.raises(UserInputError, match="expected 'vitsense.run/1'"):
        run.read_run()


def test_a_json_file_that_is_absent_is_missing_input(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="no file"):
        read_json(tmp_path / "absent.json", "vitsense.run/1")


def test_not_a_number_is_never_written_as_json() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        json_text({"value": float("nan")})


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_table_not_yet_written_is_empty_with_its_columns(run: RunFolder, name: str) -> None:
    frame = run.table(name)
    assert frame.empty
    assert dict(frame.dtypes.astype(str)) == dict(SCHEMAS[name])


def _frame(name: str) -> pd.DataFrame:
    """Two rows: ordinary values, and what may be missing missing."""
    values = {
        "str": ['blocks.0,"x"\nNA <b>', ""],
        "int64": [1, 2**53 + 1],
        "Int64": [3, None],
        "float64": [0.1, None],
        "boolean": [True, None],
    }
    columns = {key: pd.Series(values[kind]).astype(kind) for key, kind in SCHEMAS[name].items()}
    return pd.DataFrame(columns)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_table_comes_back_exactly(run: RunFolder, name: str) -> None:
    """Markup, separators, the text NA, missing values and every bit of a float survive."""
    frame = _frame(name)
    run.write_table(name, frame)
    pd.testing.assert_frame_equal(run.table(name), frame, check_exact=True)


@pytest.mark.parametrize("text", ["NA", "nan", "None", "null", "1", "0.5", "true", "-inf"])
def test_module_names_that_look_like_values_stay_text(run: RunFolder, text: str) -> None:
    frame = _frame("pareto_bits").assign(module=text)
    run.write_table("pareto_bits", frame)
    assert list(run.table("pareto_bits")["module"]) == [text, text]


@pytest.mark.parametrize("content", ["", "model,point,module,bits\nvit,one,x,4\n", "\0"])
def test_a_damaged_table_is_refused_by_name(run: RunFolder, content: str) -> None:
    (run.path / "pareto_bits.csv").write_text(content)
    with pytest.raises(UserInputError, match=r"pareto_bits\.csv (cannot be|lacks)"):
        run.table("pareto_bits")


def test_a_table_of_another_version_is_refused_with_what_it_lacks(run: RunFolder) -> None:
    (run.path / "groups.csv").write_text("model,by,group\nvit,role,ffn\n")
    with pytest.raises(UserInputError, match=r"groups\.csv lacks the columns .*members.*version"):
        run.table("groups")


def test_arrays_come_back_exactly(run: RunFolder) -> None:
    wanted = {"vit|blocks.0:input|mean": np.array([0.1, np.inf], dtype=np.float32)}
    run.write_arrays("channels", wanted)
    found = run.arrays("channels")
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        assert found[key].dtype == values.dtype
        np.testing.assert_array_equal(found[key], values)
    assert run.arrays("histograms") == {}


def test_arrays_are_never_unpickled(run: RunFolder) -> None:
    np.savez(run.path / "channels.npz", evil=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserInputError, match=r"channels\.npz"):
        run.arrays("channels")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"text"])
def test_damaged_arrays_are_refused_by_name(run: RunFolder, content: bytes) -> None:
    (run.path / "channels.npz").write_bytes(content)
    with pytest.raises(UserInputError, match=r"channels\.npz"):
        run.arrays("channels")


def test_plans_of_other_models_have_their_own_file(run: RunFolder) -> None:
    assert run.plan_path() == run.path / "plan.json"
    assert run.plan_path("resnet50#2") == run.path / "plan-resnet50-2.json"
    assert run.plan_path("../../x").parent == run.path


def test_state_is_kept_in_order(run: RunFolder) -> None:
    records = [{"batch": i, "values": [0.1, 1e-300]} for i in range(5)]
    for record in records:
        run.append_state(record)
    assert run.read_state() == records


def test_a_run_without_state_has_none(run: RunFolder) -> None:
    assert run.read_state() == []


@pytest.mark.parametrize("kept", range(1, 12))
def test_a_torn_last_line_is_dropped_and_written_over(run: RunFolder, kept: int) -> None:
    """A process killed in the middle of a line loses that line and nothing else."""
    run.append_state({"batch": 0})
    path = run.path / "state.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"batch":1}\n'[:kept])
    assert run.read_state() == [{"batch": 0}]
    assert path.read_bytes() == whole
    run.append_state({"batch": 2})
    assert run.read_state() == [{"batch": 0}, {"batch": 2}]


def test_damage_in_the_middle_of_the_state_is_said_with_its_line(run: RunFolder) -> None:
    (run.path / "state.jsonl").write_text('{"batch":0}\n{"bat\n{"batch":2}\n')
    with pytest.raises(UserInputError, match=r"state\.jsonl is damaged at line 2"):
        run.read_state()


def test_state_that_cannot_be_written_is_refused(run: RunFolder) -> None:
    (run.path / "state.jsonl").mkdir()
    with pytest.raises(UserInputError, match="cannot be written"):
        run.append_state({})


def test_a_failed_write_keeps_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    atomic_write(path, "old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runfolder.os, "fsync", full)
    with pytest.raises(UserInputError, match="No space left on device"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_an_absent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="cannot be written"):
        atomic_write(tmp_path / "absent" / "plan.json", b"{}")


def test_an_interrupted_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runfolder.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "plan.json", "new")
    assert list(tmp_path.iterdir()) == []


_WRITER = """
import sys
from pathlib import Path
from vitsense.runfolder import RunFolder
run = RunFolder(Path(sys.argv[1]))
for i in range(10**9):
    run.append_state({"number": i, "filler": "x" * 5000})
    run.write_run({"status": "running", "number": i, "filler": "x" * 50000})
"""


@pytest.mark.parametrize("delay", [0.05, 0.11])
def test_a_killed_process_leaves_whole_files(run: RunFolder, delay: float) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(run.path)])
    deadline = time.monotonic() + 30
    while run.read_run().get("number", 0) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(delay)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    number = run.read_run()["number"]
    assert number >= 3
    state = run.read_state()
    assert [record["number"] for record in state] == list(range(len(state)))
    assert len(state) > number


def test_a_run_does_not_go_into_the_folder_of_a_training(tmp_path: Path) -> None:
    (tmp_path / "qat.json").write_text("{}")
    settings = AnalyzeSettings(model=ModelRequest(name="zoo/glyph_resnet"))
    with pytest.raises(StaleResultError, match="the folder of a training"):
        find_folder(settings, {}, tmp_path, tmp_path)
