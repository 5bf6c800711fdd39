"""One module's part: its numbers, its grids in the right places, its channels and heads."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from report_fixture import make_run
from report_record import WIDTHS

from vitsense.report import compose
from vitsense.report.document import ModelReport
from vitsense.report.sheet import HEIGHT, TALLEST, WIDTH, Ladder, Tensor
from vitsense.report.svg import bars_path, histogram_path, ladder_line, small_svg
from vitsense.runfolder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("sheets") / "run", 15)


@pytest.fixture(scope="module")
def model(run: RunFolder) -> ModelReport:
    return compose(run).models[0]


def tensor_of(model: ModelReport, name: str, role: str) -> Tensor:
    row = next(row for row in model.rows if row.name == name)
    return next(t for t in row.sheet.tensors if t.role == role)


def test_every_site_of_a_module_is_in_its_sheet(run: RunFolder, model: ModelReport) -> None:
    statistics = run.table("statistics").query("model == @model.key")
    for row in model.rows:
        sites = statistics.loc[statistics["module"] == row.name, "site"]
        roles = [site.rpartition(":")[2] for site in sites]
        assert [t.role for t in row.sheet.tensors] == roles


def test_a_histogram_keeps_the_shape_of_its_counts(run: RunFolder, model: ModelReport) -> None:
    name = model.rows[0].name
    picture = tensor_of(model, name, "weight").picture
    assert picture is not None
    counts = run.arrays("histograms")[f"{model.key}|{name}:weight|counts"]
    logs = np.log10(1 + counts)
    assert picture.heights == tuple(np.rint(TALLEST * logs / logs.max()))


def test_grids_stand_where_their_numbers_are(run: RunFolder, model: ModelReport) -> None:
    """Values are -9 to 14 and the widest grid -6 to 9: pixels are linear between -9 and 14."""
    picture = tensor_of(model, model.rows[0].name, "input").picture
    assert picture is not None
    scale = WIDTH / 23
    assert [ladder.bits for ladder in picture.ladders] == list(WIDTHS)
    for ladder in picture.ladders:
        assert ladder.start == pytest.approx(3 * scale, abs=0.06)
        assert ladder.steps == 2**ladder.bits - 1
        end = ladder.start + ladder.steps * ladder.step
        assert end == pytest.approx(18 * scale, abs=0.06 + 0.005 * ladder.steps)
    assert picture.start == 0
    assert picture.bin * 64 == pytest.approx(WIDTH, abs=0.1)


def test_ticks_stand_at_the_mean_and_six_deviations(run: RunFolder, model: ModelReport) -> None:
    name = model.rows[0].name
    row = run.table("statistics").query("model == @model.key and site == @name + ':input'").iloc[0]
    picture = tensor_of(model, name, "input").picture
    assert picture is not None
    expected = [(row["mean"] + k * row["variance"] ** 0.5 + 9) * WIDTH / 23 for k in (-6, 0, 6)]
    expected = [x for x in expected if 0 <= x <= WIDTH]
    assert [x for x, _ in picture.ticks] == pytest.approx(expected, abs=0.06)


def test_the_step_and_what_is_clipped_are_those_of_the_plans_width(
    run: RunFolder, model: ModelReport
) -> None:
    row = model.rows[3]
    tensor = row.sheet.tensors[0]
    step = 15 / (2**row.bits - 1)
    assert tensor.grid.startswith(f"at {row.bits} bits a step is ")
    assert float(tensor.grid.split()[6].rstrip(",")) == pytest.approx(step, rel=0.05)
    assert "0.04 % are clipped" in tensor.grid


def test_channels_that_stand_out_are_named(model: ModelReport) -> None:
    words = tensor_of(model, model.rows[0].name, "input").channels
    assert re.fullmatch(
        r"channel 4 of 192 reaches \d+\.\d times the median; 1 reaches 3 times or more", words
    )


def test_heads_are_compared_where_there_are_heads(model: ModelReport) -> None:
    product = next(row for row in model.rows if row.role == "qk product")
    words = product.sheet.tensors[0].heads
    assert words == "variance by head from 1.0 (head 0) to 4.0 (head 2), 4.0 times"
    assert tensor_of(model, model.rows[0].name, "weight").heads == ""


def test_a_run_without_grids_or_channels_has_sheets_all_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 8, ["vit"])
    (run.path / "grids.csv").unlink()
    (run.path / "channels.npz").unlink()
    tensor = compose(run).models[0].rows[0].sheet.tensors[0]
    assert tensor.picture is not None
    assert (tensor.picture.ladders, tensor.picture.channels) == ((), ())
    assert (tensor.grid, tensor.channels, tensor.heads) == ("", "", "")


def drawn_tops(path: str, floor: int) -> list[int]:
    """Height of every bar of an outline, read back literally."""
    tops, level = [], 0
    for kind, text in re.findall(r"([vh])(-?\d+)", path):
        if kind == "v":
            level -= int(text)
        else:
            tops += [level] * int(text)
    assert path.startswith(f"M0 {floor}")
    assert path.endswith(f"V{floor}Z")
    return tops


@pytest.mark.parametrize("heights", [(0, 0, 0), (1, 2, 3), (5, 5, 0, 0, 7), (7,), (0, 9, 9, 9)])
def test_an_outline_has_the_bars_it_was_given(heights: tuple[int, ...]) -> None:
    assert drawn_tops(bars_path(heights, 40), 40) == list(heights)


def test_a_grid_has_a_mark_at_every_number_it_holds() -> None:
    path, dashes = ladder_line(
        Ladder(bits=2, start=10.0, step=20.0, steps=3, low=-1.0, high=2.0), 1
    )
    start, end = map(float, re.fullmatch(r"M([\d.]+) \d+H([\d.]+)", path).groups())
    mark, gap = map(float, dashes.split())
    assert mark + gap == pytest.approx(20.0)
    middles = [start + k * (mark + gap) + mark / 2 for k in range(4)]
    assert middles == pytest.approx([10, 30, 50, 70])
    assert end == pytest.approx(middles[-1] + mark / 2, abs=0.06)
    assert ladder_line(Ladder(bits=8, start=0, step=0.8, steps=255, low=0.0, high=1.0), 0)[1] == ""


def test_the_picture_in_print_marks_the_plans_width(model: ModelReport) -> None:
    row = model.rows[0]
    picture = row.sheet.tensors[0].picture
    assert picture is not None
    svg = small_svg(picture, "#0072B2", row.bits)
    assert svg.count('stroke="#0072B2"') == 1
    assert svg.count("<path") == 1 + len(WIDTHS)
    assert f'd="{histogram_path(picture)[0]}"' in svg
    assert f'viewBox="0 0 {WIDTH + 14:.1f} {HEIGHT + 8 * len(WIDTHS) + 16}"' in svg
    said = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert said[: len(WIDTHS)] == [str(width) for width in WIDTHS]
    assert "mean" in said[len(WIDTHS) :]
    broad = small_svg(picture, "#0072B2", row.bits, 1.5)
    assert "scale(1.5 1)" in broad
    assert f'viewBox="0 0 {1.5 * WIDTH + 14:.1f} ' in broad
