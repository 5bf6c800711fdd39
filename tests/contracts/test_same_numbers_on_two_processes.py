"""DESIGN 6.3 and 6.6: the tables of one process on two, also after one of them was killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from image_sets import labelled
from team_jobs import (
    DATA,
    FORKED,
    LAUNCHED,
    MODEL,
    MODES,
    command,
    in_two_processes,
    training,
)

from vitsense import cli
from vitsense.runfolder import RunFolder
from vitsense.trainings import TrainingFolder

TABLES = (
    "sensitivity", "groups", "joint", "estimates", "causes", "predictors", "pareto", "statistics",
)  # fmt: skip
OTHERS = ("killed", "silent", "failing", "mistaken", "training")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with labelled images."""
    folder = tmp_path_factory.mktemp("runs")
    labelled(folder / DATA, [7 * number % 36 for number in range(42)])
    return folder


@pytest.fixture(scope="module")
def one(place: Path) -> Path:
    """A run of one process in every mode."""
    folder = place / "one"
    for mode in MODES:
        assert cli.run(command(mode, folder / mode)) == 0
    return folder


@pytest.fixture(scope="module")
def two(one: Path, place: Path):
    """The same with two processes; the exact one continues what one process has begun."""
    folder = place / "two"
    folder.mkdir()
    begun = RunFolder.at(folder / "exact")
    state = (one / "exact" / "state.jsonl").read_text().splitlines(keepends=True)
    (begun.path / "state.jsonl").write_text("".join(state[: len(state) // 3]))
    record = RunFolder.open(one / "exact").read_run()
    begun.write_run({**record, "status": "interrupted"})
    return folder, in_two_processes(folder, *FORKED, LAUNCHED, *OTHERS)


def assert_same(one: Path, two: Path) -> None:
    for name in TABLES:
        assert (one / f"{name}.csv").read_bytes() == (two / f"{name}.csv").read_bytes(), name
    assert (one / "plan.json").read_bytes() == (two / "plan.json").read_bytes()


@pytest.mark.parametrize("mode", FORKED)
def test_two_processes_write_the_tables_of_one_byte_for_byte(one: Path, two, mode: str) -> None:
    folder, found = two
    codes, text = found[mode]
    assert codes == [0, 0], text
    assert_same(one / mode, folder / mode)
    run = RunFolder.open(folder / mode)
    assert run.read_run()["provenance"]["processes"] == 2
    assert run.read_run()["status"] == "complete"
    assert text.count("Run folder:") == 1  # only one of them speaks


def test_torchrun_itself_writes_the_tables_of_one_process(one: Path, two) -> None:
    """Estimates from gradients, and what checks them, shared by both."""
    codes, text = two[1][LAUNCHED]
    assert codes == [0], text
    folder = two[0] / LAUNCHED
    assert_same(one / LAUNCHED, folder)
    assert RunFolder.open(folder).read_run()["provenance"]["processes"] == 2
    assert text.count("Run folder:") == 1
    kept = [
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("state.jsonl", "state-1.jsonl")
    ]
    for kind in ("drawn", "checked", "full_precision", "plan"):
        counts = [sum(kind in record for record in records) for records in kept]
        assert min(counts) > 0, (kind, counts)


def test_both_measure_about_half_and_nothing_twice(one: Path, two) -> None:
    folder, _ = two
    kept = [
        [json.loads(line) for line in (folder / "adaptive" / name).read_text().splitlines()]
        for name in ("state.jsonl", "state-1.jsonl")
    ]
    whole = (one / "adaptive" / "state.jsonl").read_text().splitlines()
    assert sorted(map(json.dumps, kept[0] + kept[1])) == sorted(
        json.dumps(json.loads(line)) for line in whole
    )
    assert 0.3 < len(kept[0]) / len(whole) < 0.7


def test_both_probe_hessians(two) -> None:
    folder, _ = two
    probed = [
        {
            tuple(json.loads(line)["probe"])
            for line in path.read_text().splitlines()
            if '"probe"' in line
        }
        for path in (folder / "exact" / name for name in ("state.jsonl", "state-1.jsonl"))
    ]
    assert probed[0]
    assert probed[1]
    assert not probed[0] & probed[1]
    assert probed[0] | probed[1] == {(0, 8, 0), (8, 16, 0), (16, 18, 0)}


def test_one_that_is_killed_is_named_and_one_process_continues_to_the_same_tables(
    one: Path, two
) -> None:
    folder, found = two
    codes, text = found["killed"]
    assert codes == [130, -9]
    assert "Rank 1 of 2 ended without a word" in text
    assert "Nothing that was measured is lost" in text
    assert f"torchrun --nproc-per-node=2 -m vitsense analyze --model {MODEL}" in text
    assert text.count("Error:") == 1
    run = RunFolder.open(folder / "killed")
    assert run.read_run()["status"] == "interrupted"
    before = run.read_state()
    assert (folder / "killed" / "state-1.jsonl").read_text().count("\n") == 5
    assert cli.run(command("exact", folder / "killed")) == 0
    assert_same(one / "exact", folder / "killed")
    again = [json.dumps(record) for record in run.read_state()]
    assert len(again) == len(set(again)) > len(before)


def test_one_that_gives_no_sign_of_life_is_not_waited_for(two) -> None:
    codes, text = two[1]["silent"]
    assert codes[0] == 130
    assert "Rank 1 of 2 gave no sign of life for 6 s." in text


def test_an_error_of_one_is_said_by_that_one_alone(two) -> None:
    codes, text = two[1]["failing"]
    assert codes == [130, 4]
    assert text.count("planted") == 1
    assert text.count("Error:") == 1


def test_a_mistake_that_all_make_is_said_once(two) -> None:
    codes, text = two[1]["mistaken"]
    assert codes == [2, 2]
    assert text.count("--bits has 1") == 1


def test_a_training_on_two_processes_has_the_losses_of_one(two, tmp_path: Path) -> None:
    folder, found = two
    codes, text = found["training"]
    assert codes == [0, 0], text
    assert cli.run(training(tmp_path / "one")) == 0
    first, second = TrainingFolder(tmp_path / "one"), TrainingFolder(folder / "training")
    assert (first.read_record()["processes"], second.read_record()["processes"]) == (1, 2)
    losses = [[row["loss"] for row in f.metrics("train")] for f in (first, second)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    tops = [f.read_record()["last"]["top1"] for f in (first, second)]
    assert tops[0] == pytest.approx(tops[1], abs=3)
    for record in (first.read_record(), second.read_record()):
        untrained, last = record["ptq"], record["last"]
        assert untrained["n"] == 36
        assert untrained["drop"] == first.read_record()["ptq"]["drop"]
        assert last["gain"] == pytest.approx(untrained["drop"] - last["drop"])
