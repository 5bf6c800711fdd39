"""The chapter about the search for a better plan: its words follow the numbers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from report_fixture import make_run

from vitsense.report.chapters.refinement import refinement_chapter
from vitsense.report.section import Finding, Table
from vitsense.report.source import Source
from vitsense.runfolder import RunFolder
from vitsense.schemas import SCHEMAS

STEPS = [
    ("solved", 1, 16, 5, -0.846, 1.389, 0.874, True),
    ("uniform-3", 1, 32, 10, -1.51, 1.868, 1.9, False),
]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = make_run(tmp_path / "run", modules=8, models=("m",))
    columns = [name for name in SCHEMAS["refinement"] if name != "model"]
    frame = pd.DataFrame(STEPS, columns=columns).assign(model="m")
    made.write_table("refinement", frame[list(SCHEMAS["refinement"])].astype(SCHEMAS["refinement"]))
    return made


def add_solved(run: RunFolder, **changes: float) -> None:
    joint = run.table("joint")
    row = joint[joint["plan"] == "recommended"].assign(plan="solved", **changes)
    run.write_table("joint", pd.concat([joint, row], ignore_index=True))


def headline(run: RunFolder) -> str:
    chapter = refinement_chapter(Source(run), "m")
    assert chapter is not None
    found = chapter.blocks[0]
    assert isinstance(found, Finding)
    return found.headline


def test_a_gain_is_stated_with_both_divergences(run: RunFolder) -> None:
    add_solved(run, kl=9.0, kl_low=8.0, kl_high=10.0)
    assert "lowers its divergence from 9.0 to" in headline(run)


def test_a_gain_within_the_intervals_is_not_claimed(run: RunFolder) -> None:
    add_solved(run)
    assert "cannot be told" in headline(run)


def test_without_a_better_plan_it_says_so(run: RunFolder) -> None:
    assert headline(run).startswith("No plan that was searched for")


def test_every_step_is_in_the_table(run: RunFolder) -> None:
    chapter = refinement_chapter(Source(run), "m")
    assert chapter is not None
    table = next(block for block in chapter.blocks if isinstance(block, Table))
    assert [row[1:] for row in table.rows] == [
        ("16", "5", "1.4", "0.87", "yes"),
        ("32", "10", "1.9", "1.9", "no"),
    ]
    assert table.rows[1][0] == "3 bits but for pinned modules, step 1"


def test_a_step_that_only_brings_a_plan_into_the_budget_says_so(run: RunFolder) -> None:
    steps = run.table("refinement")
    run.write_table("refinement", steps.assign(taken=True))
    chapter = refinement_chapter(Source(run), "m")
    assert chapter is not None
    found, _, table = chapter.blocks
    assert isinstance(found, Finding)
    assert isinstance(table, Table)
    assert [row[-1] for row in table.rows] == ["yes", "yes, to keep the budget"]
    assert (
        "from 3 bits but for pinned modules ended at 1.9 nats, where the solved plan has 1.4"
        in found.numbers
    )


def test_a_run_without_a_search_has_no_chapter(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", modules=4, models=("m",))
    assert refinement_chapter(Source(made), "m") is None
