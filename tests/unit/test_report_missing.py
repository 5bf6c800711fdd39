"""What a run does not have: the report says why, and how to get it, and shows no empty columns."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_fixture import make_run

from vitsense.report.chapters.causes import causes
from vitsense.report.chapters.groups import groups_chapter
from vitsense.report.chapters.predictors import predictors
from vitsense.report.chapters.refinement import refinement_chapter
from vitsense.report.chapters.unfinished import completing_command
from vitsense.report.compose import compose
from vitsense.report.section import Finding, Section, Table, Words, without_dashes
from vitsense.report.source import Source
from vitsense.runfolder import RunFolder
from vitsense.schemas import SCHEMAS

MODEL = "vit"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", 9, [MODEL])


def changed(run: RunFolder, status: str = "interrupted", **settings: Any) -> Source:
    record = run.read_run()
    record["status"] = status
    record["settings"] |= {"refine": 3, "budget": "avg-bits=4", "budget_time": 90.0} | settings
    run.write_run({key: value for key, value in record.items() if key != "schema"})
    return Source(run)


def words(section: Section | None) -> str:
    assert section is not None
    return " ".join(block.text for block in section.blocks if isinstance(block, Words))


def tables(section: Section | None) -> list[Table]:
    assert section is not None
    return [block for block in section.blocks if isinstance(block, Table)]


@pytest.mark.parametrize("chapter", [causes, predictors, refinement_chapter])
def test_a_chapter_that_time_left_out_says_so(run: RunFolder, chapter: Any) -> None:
    text = words(chapter(changed(run), MODEL))
    assert "the time budget of 90 s ended before" in text
    assert "Method and reproduction, To complete this run" in text


def test_the_command_that_completes_has_no_budget_and_names_the_folder(run: RunFolder) -> None:
    record = run.read_run()
    given = ["vitsense", "analyze", "--model", "a b", "--budget-time", "90s", "--images", "9"]
    record["commands"] = [given]
    run.write_run({key: value for key, value in record.items() if key != "schema"})
    source = changed(run)
    wanted = ["vitsense", "analyze", "--model", "a b", "--images", "9", "--out", "run"]
    assert shlex.split(completing_command(source)) == wanted
    assert compose(run).method[-1] == ("To complete this run", completing_command(source))
    record["commands"] = [[*given[:2], "--out=there", "--budget-time=1m"]]
    run.write_run({key: value for key, value in record.items() if key != "schema"})
    assert completing_command(Source(run)) == "vitsense analyze --out=there"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"refine": 0}, "switched off (--refine 0)"),
        ({}, "no other plan to try"),
    ],
)
def test_a_search_that_was_not_made_has_its_reason(
    run: RunFolder, settings: dict[str, Any], said: str
) -> None:
    assert said in words(refinement_chapter(changed(run, "complete", **settings), MODEL))


def test_groups_that_time_left_out_are_named_in_a_sentence(run: RunFolder) -> None:
    table = run.table("groups")
    late = (table["group"] == "q") & (table["direction"] == "leave-one-out")
    table.loc[late, "status"] = "unmeasured"
    table.loc[late, "reason"] = "the time budget ended before it was looked at"
    run.write_table("groups", table)
    section = groups_chapter(changed(run), MODEL)
    assert "2 measurements of groups are missing (Q at 4 bits (spared), Q at 3" in words(section)
    cells = [cell for table in tables(section) for row in table.rows for cell in row]
    assert not any("time budget" in cell for cell in cells)
    rows = [row for table in tables(section) for row in table.rows if row[0] == "Q"]
    assert [row[5:] for row in rows] == [("\u2013",) * 3] * 2


def cause(module: str, site: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SCHEMAS["causes"])
    return row | {
        "model": MODEL,
        "module": module,
        "site": f"{module}:{site}",
        "bits": 4,
        "format": "int4",
        "cause": "heavy tail",
        "value": 9.0,
        "detail": "from -0.17 to 2e-05",
        "remedy": "two more bits",
    }


def test_a_sensitive_module_without_a_reason_is_compared_with_the_others(run: RunFolder) -> None:
    kl = run.table("sensitivity").query("format == 'int4'").set_index("module")["kl"]
    worst = list(kl.sort_values(ascending=False).index)
    rows = pd.DataFrame([cause(name, "input") for name in worst[1:]]).astype(SCHEMAS["causes"])
    run.write_table("causes", rows)
    statistics = run.table("statistics")
    mine = statistics["module"] == worst[0]
    statistics["kurtosis"] = 2.0
    statistics.loc[mine, "kurtosis"] = 5.0
    run.write_table("statistics", statistics)
    section = causes(Source(run), MODEL)
    assert section is not None
    assert isinstance(section.blocks[0], Finding)  # how sure the order is
    reasons, known = tables(section)
    assert "heavy tail (from \u22120.17 to 2e\u22125)" in reasons.rows[0][1]
    assert [row[0] for row in known.rows] == [worst[0]]
    _, stands_out, advice = known.rows[0]
    assert "excess kurtosis of its" in stands_out
    assert "5.0, 2.5 times the median of 8 other modules" in stands_out
    assert advice.startswith("keep the 6 bits of the plan: ")
    run.plan_path().unlink()
    *_, unplanned = tables(causes(Source(run), MODEL))
    assert unplanned.rows[0][2].startswith("give it 6 bits: ")


def test_columns_of_dashes_are_left_out() -> None:
    table = Table(title="t", head=("a", "b", "c"), rows=(("", "\u2013", "1"), ("", "", "\u2013")))
    assert without_dashes(table).head == ("a", "c")
    assert without_dashes(table).rows == (("", "1"), ("", "\u2013"))


def test_a_group_of_one_module_says_that_its_row_shows_it(run: RunFolder) -> None:
    table = run.table("groups")
    assert (table["members"] == 1).any()
    table["n"] = 96
    run.write_table("groups", table)
    section = groups_chapter(changed(run, "complete", mode="adaptive"), MODEL)
    assert "are that module, measured on 96 images" in words(section)
    assert "more certain than the one of mode adaptive" in words(section)
    exact = groups_chapter(changed(run, "complete", mode="exact"), MODEL)
    assert "are that module" not in words(exact)  # there both are of the same images


def test_more_bits_are_no_remedy_that_helped_and_one_trial_is_one_row(run: RunFolder) -> None:
    name = str(run.table("modules").query("model == @MODEL")["module"].iloc[0])
    after = {"kl_before": 0.1, "kl_after": 0.01, "kl_after_low": 0.005, "kl_after_high": 0.02}
    worse = after | {"kl_after": 0.3, "kl_after_low": 0.2, "kl_after_high": 0.4}
    rows = [
        cause(name, "input") | after,
        cause(name, "input") | after | {"cause": "one-sided input"},
        cause(name, "weight") | worse | {"remedy": "one scale per channel"},
    ]
    run.write_table("causes", pd.DataFrame(rows).astype(SCHEMAS["causes"]))
    section = causes(Source(run), MODEL)
    assert section is not None
    (found,) = [b for b in section.blocks if isinstance(b, Finding) and "remed" in b.headline]
    assert found.headline == "No remedy that tests a cause helped distinguishably"
    assert "Of 1 trial of a remedy against a cause 0 helped and 1 made it worse" in found.numbers
    assert "In 1 other trial a tensor got more bits" in found.numbers
    (tried, *_) = tables(section)
    assert len(tried.rows) == 2
    assert "heavy tail" in tried.rows[0][1]
    assert "one-sided input" in tried.rows[0][1]
    assert tried.rows[0][3] == "tests no cause"
