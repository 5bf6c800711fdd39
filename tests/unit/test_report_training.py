"""The training chapter: shown where there is a training, with the numbers of its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_fixture import make_run
from training_record import accuracy, add_training

from vitsense.report import compose
from vitsense.report.chapters.training import training, training_lines, training_warnings
from vitsense.report.charts import chart_picture
from vitsense.report.figures import pictures
from vitsense.report.html import render_html
from vitsense.report.section import Caution, Chart, Facts, Finding, Section, Table, Words
from vitsense.report.source import Source
from vitsense.report.summary import render_markdown
from vitsense.runfolder import RunFolder


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("untrained") / "run", 6).path


@pytest.fixture
def run(untrained: Path, tmp_path: Path) -> RunFolder:
    return RunFolder.open(Path(shutil.copytree(untrained, tmp_path / "run")))


def _digest(run: RunFolder) -> str:
    return str(run.read_run()["models"][0]["weights_digest"])


def _chapter(run: RunFolder) -> Section:
    source = Source(run)
    found = training(source, source.keys[0])
    assert found is not None
    return found


def _charts(section: Section) -> dict[str, Chart]:
    return {
        block.name.rpartition("demo-")[2]: block
        for block in section.charts
        if "demo-" in block.name
    }


def test_a_model_that_was_not_trained_has_no_chapter(run: RunFolder) -> None:
    source = Source(run)
    assert training(source, source.keys[0]) is None
    add_training(run.path, "other weights")
    assert training(Source(run), source.keys[0]) is None


def test_trainings_without_a_result_are_named(run: RunFolder) -> None:
    add_training(run.path, _digest(run), "wild", status="failed")
    add_training(run.path, _digest(run), "stopped", status="interrupted")
    said = (
        "Training stopped was interrupted; the same command continues it.",
        "Training wild ended with an error, as a learning rate that is too high gives.",
    )
    (only,) = _chapter(run).blocks
    assert isinstance(only, Caution)
    assert only.texts == said
    add_training(run.path, _digest(run))
    assert [c.texts for c in _kind(_chapter(run), Caution)] == [said]


def test_predicted_quantized_and_trained_stand_in_one_figure(run: RunFolder) -> None:
    add_training(run.path, _digest(run))
    reached = next(c for c in _chapter(run).charts if c.name.endswith("reached"))
    assert [series.name for series in reached.series] == [
        "plan, predicted",
        "quantized, measured",
        "trained, measured",
    ]
    assert [series.y for series in reached.series] == [(20.0,), (23.0,), (5.0,)]
    assert [series.low for series in reached.series] == [(10.0,), (21.0,), (3.0,)]


def test_figures_hold_the_numbers_of_the_files(run: RunFolder) -> None:
    add_training(run.path, _digest(run))
    charts = _charts(_chapter(run))
    assert charts["loss"].series[0].y == pytest.approx((2.9, 2.0, 1.5, 1.0))
    assert all(chart.title.startswith("Training demo: ") for chart in charts.values())
    assert charts["accuracy"].series[0].y == (70.0, 80.0, 90.0)
    assert [s.name for s in charts["accuracy"].series[1:]] == ["full precision", "not trained"]
    shares = {s.name: s.y for s in charts["oscillation"].series}
    assert shares["a.<b>"] == pytest.approx((0.0, 1.0, 2.0))
    assert "c" not in shares  # nothing oscillates there
    assert charts["scales"].series[0].y == pytest.approx((1.0, 2.0, 3.0))
    before, after = charts["weights-0"].series
    assert (before.name, after.name) == ("before", "after")
    # all but the outermost bins, which hold what lies beyond the grid
    assert sum(after.y) == pytest.approx(100 * (1 - 135 / sum(range(136))))
    assert "weights-1" not in charts  # 8 bits: too fine for bins to be seen


def test_modules_alone_stand_before_beside_after(run: RunFolder) -> None:
    add_training(run.path, _digest(run))
    table = _chapter(run).blocks[-1]
    assert isinstance(table, Table)
    assert table.title == (
        "Training demo: modules rounded alone cost 0.51 nats together before training, 0.23 after; "
        "1 of 2 became less sensitive"
    )
    assert table.rows[0] == ("a.<b>", "4", "0.50", "0.40 to 0.70", "0.20", "0.10 to 0.30")
    (run.path / "qat" / "demo" / "sensitivities.csv").unlink()  # it is optional
    assert _chapter(run).blocks[-1].title.startswith("Training demo: a.<b> moved most")  # type: ignore[union-attr]


def _told(gain: float, reach: float = 2.0, **more: Any) -> dict[str, Any]:
    """What a training adds to its record since it is compared on the same images."""
    row = accuracy(72 + gain, 23 - gain) | {"step": 20}
    row |= {"gain": gain, "gain_low": gain - reach, "gain_high": gain + reach}
    kind = "gained" if gain > reach else "worse" if gain < -reach else "same"
    worth = {"kind": kind, "text": f"Training {kind}. More of it.", "advice": "Do this."}
    return {"last": row, "best": row, "worth": worth, "warnings": [], **more}


def _kind(section: Section, kind: type[Any]) -> list[Any]:
    return [block for block in section.blocks if isinstance(block, kind)]


def test_what_one_training_was_worth_is_said_with_its_name_and_plan(run: RunFolder) -> None:
    analysis = {"equal": True, "drop": 23.0, "drop_low": 21.0, "drop_high": 25.0, "said": ""}
    add_training(run.path, _digest(run), **_told(18.0, analysis=analysis))
    (found,) = _kind(_chapter(run), Finding)
    assert found.headline == "The plan of 6.00 bits: training demo gained"
    assert found.numbers == (
        "More of it. Not trained: top-1 72.0 % (70.0 to 74.0), 23.00 (21.00 to 25.00) points "
        "lost, as the analysis measured it. Trained, 6.00 bits: top-1 90.0 % (88.0 to 92.0), 5.00 "
        "(3.00 to 7.00) points lost. Do this."
    )
    table = _kind(_chapter(run), Table)[0]
    assert table.rows[0][table.head.index("Gain (points)")] == "+18.00 (16.00 to 20.00)"


def test_trainings_are_judged_by_plan_and_a_picked_one_is_named_as_picked(run: RunFolder) -> None:
    four = {"bits": {"a.<b>": 4, "c": 4}, "cost": None, "predicted": None, "budget": "avg-bits=4"}
    add_training(run.path, _digest(run), "lsq", **_told(18.0))
    add_training(run.path, _digest(run), "again", **_told(11.0))
    add_training(run.path, _digest(run), "wild", **_told(-30.0, warnings=["It got worse."]))
    add_training(run.path, _digest(run), "narrow", **_told(25.0, plan=four))
    section = _chapter(run)
    first, second = _kind(section, Finding)
    assert (
        first.headline == "The plan of 6.00 bits: of 3 trainings 2 gained, 1 made it worse (wild)"
    )
    assert "that of lsq: +18.00 (16.00 to 20.00) points" in first.numbers
    assert "picked among 3 on the evaluation images" in first.numbers
    assert second.headline == "The plan of 4.00 bits (avg-bits=4): training narrow gained"
    assert _kind(section, Caution)[0].texts == ("Training wild: It got worse.",)
    # by plan, then by name; never by what came out
    assert [row[:2] for row in _kind(section, Table)[0].rows] == [
        ("again", "6.00"),
        ("lsq", "6.00"),
        ("wild", "6.00"),
        ("narrow", "4.00"),
    ]


def test_only_settings_that_differ_are_columns(run: RunFolder) -> None:
    recipe = add_training(run.path, _digest(run), "a").read_record()["recipe"]
    other = recipe | {"lr": 0.1, "crops": 1}
    bank = {"bank": {"teacher": {"name": "big"}, "crops": 20}}
    add_training(run.path, _digest(run), "b", recipe=other, teacher=bank)
    section = _chapter(run)
    table = _kind(section, Table)[0]
    settings = {
        "Recipe",
        "Learning rate",
        "Training images",
        "Learned from",
        "Seed",
        "Steps x crops",
    }
    assert settings & set(table.head) == {"Learning rate", "Learned from"}
    assert table.rows[1][table.head.index("Learned from")] == "label bank of big, 20 crops"
    assert table.rows[1][table.head.index("Other settings")] == "crops 1"
    alike = _kind(section, Words)[0].text
    assert "Alike in all 2 trainings: recipe demo 1" in alike
    assert "seed 0" in alike
    assert "Learning rate" not in alike


def test_a_loss_far_from_the_others_hides_none(run: RunFolder) -> None:
    for name, gain in (("a", 22.5), ("b", 22.0), ("c", -70.0)):
        add_training(run.path, _digest(run), name, **_told(gain))
    chart = next(c for c in _chapter(run).charts if c.name.endswith("reached"))
    assert chart.log_x
    svg = chart_picture(chart, ["vit"]).svg
    assert all(f">{name}<" in svg for name in ("a", "b", "c", "30", "0.5"))


def test_trainings_without_a_paired_gain_are_judged_where_intervals_do_not_meet(
    run: RunFolder,
) -> None:
    add_training(run.path, _digest(run), "far")  # 23 points lost without training, 5 with
    add_training(run.path, _digest(run), "near", last=accuracy(73, 22))
    add_training(run.path, _digest(run), "bad", last=accuracy(3, 92))
    section = _chapter(run)
    (found,) = _kind(section, Finding)
    assert found.headline == (
        "The plan of 6.00 bits: of 3 trainings 1 gained, 1 made it worse (bad), 1 cannot be judged "
        "(no paired gain was recorded)"
    )
    assert "near: trained by an earlier version" in found.numbers
    (text,) = _kind(section, Caution)[0].texts
    assert text.startswith("Training bad: Training made the plan worse: top-1 72.0 %")
    assert "Gain (points)" not in _kind(section, Table)[0].head


def test_a_training_that_made_the_plan_of_the_run_worse_is_on_the_first_screen(
    run: RunFolder,
) -> None:
    folder = add_training(run.path, _digest(run), "wild", **_told(-30.0))
    assert training_warnings(Source(run)) == []  # of another plan
    (folder.path / "plan.json").write_bytes(run.plan_path().read_bytes())
    (warning,) = compose(run).warnings
    assert warning.startswith("Training wild made the plan of vit_made_up worse")
    (found,) = _kind(_chapter(run), Finding)
    assert found.headline.startswith("The run's plan (")


def test_the_summary_says_what_the_chapter_says(run: RunFolder) -> None:
    add_training(run.path, _digest(run), "wild", **_told(-30.0, warnings=["It got <worse>."]))
    document = compose(run)
    section = next(s for s in document.models[0].chapters if s.key.startswith("training"))
    said = render_markdown(document).replace("\\", "")
    assert f"#### {section.title}" in said
    for found in _kind(section, Finding):
        assert f"- **{found.headline}.** {found.numbers}" in said
    assert "- **Read this first:** Training wild: It got <worse>." in said
    assert all(cell in said for row in _kind(section, Table)[0].rows for cell in row)


def test_what_does_not_move_is_said_and_not_drawn(run: RunFolder) -> None:
    folder = add_training(run.path, _digest(run))
    path = folder.path / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for row in lines:
        if row["kind"] == "oscillation":
            row |= {"all": 0.0, "share": dict.fromkeys(row["share"], 0.0)}
    kept = [row for row in lines if row["kind"] != "train" or row["step"] in {1, 20}]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    section = _chapter(run)
    assert not {"oscillation", "loss"} & set(_charts(section))
    facts = dict(_kind(section, Facts)[0].rows)
    assert facts["Oscillation"].startswith("none: no weight flips more often than 0.005 per step")
    assert facts["Training loss (nats)"] == "2.90 at step 1, 1.00 at step 20"


def test_without_labels_agreement_takes_the_place(run: RunFolder) -> None:
    unlabelled: dict[str, Any] = dict.fromkeys(
        ("top1", "top1_low", "top1_high", "drop", "drop_low", "drop_high")
    )
    rows = {key: accuracy(80, 0) | unlabelled for key in ("fp", "ptq", "last", "best")}
    add_training(run.path, _digest(run), **rows)
    section = _chapter(run)
    assert "agreement 80.0 %" in _kind(section, Table)[0].title
    reached = next(c for c in section.charts if c.name.endswith("reached"))
    assert [series.y for series in reached.series[1:]] == [(20.0,), (20.0,)]


def test_the_page_shows_the_chapter(run: RunFolder) -> None:
    add_training(run.path, _digest(run))
    document = compose(run)
    drawn = pictures(document)
    html = render_html(document, drawn)
    assert "Trained at these bits" in html
    assert "demo: a.&lt;b&gt; moved most: 12.3 % of its norm" in html
    assert "a.<b>" not in html


def test_the_first_screen_names_the_training_that_loses_least(run: RunFolder) -> None:
    key = Source(run).keys[0]
    assert training_lines(Source(run), key) == []
    add_training(run.path, _digest(run))
    (line,) = training_lines(Source(run), key)
    assert line == (
        "Trained at 6.00 bits (demo): 90.0 % (88.0 to 92.0) top-1, 5.0 points lost (3.0 to 7.0); "
        "it still breaks. See Trained at these bits."
    )
    add_training(run.path, _digest(run), "better", last=accuracy(94, -1.5))
    add_training(run.path, _digest(run), "worse", last=accuracy(60, 35))
    (line,) = training_lines(Source(run), key)
    assert "(better)" in line
    assert "it holds." in line
    assert line.endswith("Picked among 3 trainings on the evaluation images.")
    assert line in compose(run).models[0].verdict
