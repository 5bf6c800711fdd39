"""The page's histograms: axes with numbers, grids with their widths and ends."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_fixture import make_run
from report_record import WIDTHS

from vitsense.report import compose
from vitsense.report.document import ModelReport
from vitsense.report.sheet import WIDTH, Picture
from vitsense.report.small_pictures import LEFT, frame, labelled, round_values


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelReport:
    run = make_run(tmp_path_factory.mktemp("pictures") / "run", 8, ["vit"])
    return compose(run).models[0]


@pytest.fixture
def picture(model: ModelReport) -> Picture:
    tensors = {t.role: t for t in model.rows[0].sheet.tensors}
    found = tensors["input"].picture
    assert found is not None
    return found


def texts(svg: str) -> list[tuple[float, str]]:
    """Words with their place across, read back literally."""
    found = re.findall(r'<text[^>]* x="([-\d.]+)" y="[-\d.]+">([^<]*)</text>', svg)
    return [(float(x), words) for x, words in found]


def test_every_grid_has_its_ends_beside_it(picture: Picture) -> None:
    """The made-up grid of activations is from -6 to 9 at every width."""
    ends = [words for _, words in texts(labelled(picture, 0, "w0", "4")) if " to 9.0" in words]
    assert ends == ["\u22126.0 to 9.0"] * len(WIDTHS)


def test_the_axes_have_numbers_where_they_belong(picture: Picture) -> None:
    """Values are from -9 to 14: a tick stands where its number is on that line."""
    assert (picture.left, picture.right) == (-9.0, 14.0)
    said = {words: x for x, words in texts(labelled(picture, 0, "w0", "4"))}
    first, last = said["\u22125"], said["10"]
    unit = (last - first) / 15
    assert LEFT + 9 * unit == pytest.approx(said["0"], abs=0.2)
    assert unit * 23 / WIDTH == pytest.approx(170 / WIDTH, rel=0.01)
    # the fullest bin of the made-up histogram holds a million values
    assert "1.0 M" in said


def test_the_shared_frame_names_axes_and_widths() -> None:
    said = [words for _, words in texts(frame(("8 bits", "4 bits")))]
    assert said == ["values per bin (log scale)", "0", "value", "8 bits", "4 bits"]


def test_only_the_grid_of_the_plan_is_coloured(picture: Picture) -> None:
    assert labelled(picture, 1, "w1", "4").count('class="k1"') == 1
    assert 'class="k1"' not in labelled(picture, 1, "w1", "fp8")


@given(st.floats(-1e4, 1e4), st.floats(1e-5, 1e5))
def test_ticks_are_few_round_and_inside(low: float, reach: float) -> None:
    high = low + reach
    ticks = round_values(low, high)
    assert 1 <= len(ticks) <= 4
    assert all(low - 1e-6 * reach <= tick <= high + 1e-6 * reach for tick in ticks)
    steps = {
        round((b - a) / (ticks[1] - ticks[0]), 6) for a, b in zip(ticks, ticks[1:], strict=False)
    }
    assert steps <= {1.0}
