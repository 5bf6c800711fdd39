"""The training chapter: shown where there is a training, with the numbers of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_fixture import make_run
from training_record import accuracy, add_training

from vitsense.report import compose
from vitsense.report.chapters.training import training
from vitsense.report.figures import pictures
from vitsense.report.html import render_html
from vitsense.report.section import Chart, Section, Table
from vitsense.report.source import Source
from vitsense.runfolder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", 6)


def _digest(run: RunFolder) -> str:
    return str(run.read_run()["models"][0]["weights_digest"])


def _chapter(run: RunFolder) -> Section:
    source = Source(run)
    found = training(source, source.keys[0])
    assert found is not None
    return found


def _charts(section: Section) -> dict[str, Chart]:
    return {block.name.rpartition("demo-")[2]: block for block in section.charts}


def test_a_model_that_was_not_trained_has_no_chapter(run: RunFolder) -> None:
    source = Source(run)
    assert training(source, source.keys[0]) is None
    add_training(run.path, "other weights")
    add_training(run.path, _digest(run), "stopped", status="interrupted")
    assert training(source, source.keys[0]) is None


def test_predicted_quantized_and_trained_stand_in_one_figure(run: RunFolder) -> None:
    add_training(run.path, _digest(run))
    reached = next(c for c in _chapter(run).charts if c.name.endswith("reached"))
    (series,) = reached.series
    assert series.labels == ("plan, predicted", "quantized, measured", "trained, measured")
    assert series.y == (20.0, 23.0, 5.0)
    assert series.low == (10.0, 21.0, 3.0)


def test_figures_hold_the_numbers_of_the_files(run: RunFolder) -> None:
    add_training(run.path, _digest(run))
    charts = _charts(_chapter(run))
    assert charts["loss"].series[0].y == pytest.approx((2.9, 2.0, 1.0))
    assert charts["accuracy"].series[0].y == (70.0, 80.0, 90.0)
    assert [s.name for s in charts["accuracy"].series[1:]] == ["full precision", "quantized only"]
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
        "Modules rounded alone cost 0.51 nats together before training, 0.23 after; 1 of 2 became "
        "less sensitive"
    )
    assert table.rows[0] == ("a.<b>", "4", "0.50", "0.40 to 0.70", "0.20", "0.10 to 0.30")
    (run.path / "qat" / "demo" / "sensitivities.csv").unlink()  # it is optional
    assert _chapter(run).blocks[-1].title.startswith("a.<b> moved most")  # type: ignore[union-attr]


def test_several_trainings_stand_in_one_table(run: RunFolder) -> None:
    add_training(run.path, _digest(run), "lsq")
    add_training(run.path, _digest(run), "vvtq", last=accuracy(93, 2))
    section = _chapter(run)
    table = section.blocks[0]
    assert isinstance(table, Table)
    assert len(table.rows) == 2
    assert table.title.startswith("Training reaches 93.0 %")
    reached = next(c for c in section.charts if c.name.endswith("reached"))
    assert "vvtq: trained, measured" in reached.series[0].labels


def test_without_labels_agreement_takes_the_place(run: RunFolder) -> None:
    unlabelled: dict[str, Any] = dict.fromkeys(
        ("top1", "top1_low", "top1_high", "drop", "drop_low", "drop_high")
    )
    rows = {key: accuracy(80, 0) | unlabelled for key in ("fp", "ptq", "last", "best")}
    add_training(run.path, _digest(run), **rows)
    section = _chapter(run)
    assert "agreement" in section.blocks[0].title  # type: ignore[union-attr]
    reached = next(c for c in section.charts if c.name.endswith("reached"))
    assert reached.series[0].y[1:] == (20.0, 20.0)


def test_the_page_shows_the_chapter(run: RunFolder) -> None:
    add_training(run.path, _digest(run))
    document = compose(run)
    drawn = pictures(document)
    html = render_html(document, drawn)
    assert "Trained at these bits" in html
    assert "a.&lt;b&gt; moved most: 12.3 % of its norm" in html
    assert "a.<b>" not in html
