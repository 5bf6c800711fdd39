"""A time budget ends in time with what is known, says what is missing, and can be continued."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pandas as pd
import pytest
import torch
from small_models import images, tiny_resnet

from vitsense.analyze import run_analysis
from vitsense.deadline import Deadline
from vitsense.discover import find_sites
from vitsense.errors import TooLittleTimeError, UserInputError
from vitsense.quantities import bytes_of, seconds_of, size_text
from vitsense.runfolder import RunFolder
from vitsense.sensitivity.adaptive import measure_adaptive
from vitsense.sensitivity.doubt import doubts
from vitsense.sensitivity.group_sweep import measure_groups
from vitsense.sensitivity.groups import groups_of
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.sweep import OUT_OF_TIME, measure_exact, measure_joint
from vitsense.sensitivity.variants import Variant, measure_variants
from vitsense.settings import AnalyzeSettings, By, ModelRequest, Part, QuantSettings
from vitsense.statistics.collect import collect_statistics

SETTINGS = AnalyzeSettings(
    model=ModelRequest(name="glyph_resnet"),
    images=24,
    calibration=8,
    bits=(4,),
    batch=12,
    refine=0,
)


def ticking(limit: int) -> Deadline:
    """A deadline that comes after so many looks at the clock."""
    ticks = itertools.count()
    return Deadline(limit, clock=lambda: float(next(ticks)))


@pytest.fixture(scope="module")
def prepared():
    model = tiny_resnet()
    catalog = find_sites(model, images(1))
    statistics = collect_statistics(model, catalog, [images(8)])
    return model, catalog, Quantizers(catalog, statistics, QuantSettings(), "cpu")


def test_cells_that_time_left_out_say_so_and_the_others_are_measured(prepared) -> None:
    x = images(48)
    labels = x.mean((1, 2, 3)).gt(0).long()

    def read(numbers):
        return x[list(numbers)], labels[list(numbers)]

    doubt = doubts(prepared[0], read, 48)
    found = measure_adaptive(*prepared, read, doubt, bits=(4, 2), deadline=ticking(20))
    table = pd.DataFrame([m.row("adaptive") for m in found])
    # 20 looks at the clock: all 14 modules at 2 bits, 6 at 4 bits
    assert (table[table["bits"] == 2]["status"] == "measured").all()
    late = table[table["reason"] == OUT_OF_TIME]
    assert len(late) == 8
    assert set(late["status"]) == {"unmeasured"}
    assert late[["n", "drop", "kl"]].isna().all().all()


def test_an_exact_sweep_cut_short_reports_the_images_it_saw(prepared) -> None:
    batches = [(images(4), images(4).mean((1, 2, 3)).gt(0).long())] * 3
    found = measure_exact(*prepared, batches, bits=(4,), deadline=ticking(20))
    seen = [0 if m.outcome is None else m.outcome.n for m in found]
    assert seen == [8] * 6 + [4] * 8


def test_groups_that_time_left_out_say_so_and_the_others_are_measured(prepared) -> None:
    groups = groups_of(prepared[1], By.MODULE)
    labels = torch.arange(4)
    cut = measure_groups(
        *prepared, [(images(4), labels)] * 3, groups, formats=(4,), deadline=ticking(40)
    )
    seen = [0 if m.found is None else m.found.outcome.n for m in cut]
    # 40 looks at the clock: all of the first batch (29 cells), 11 of the second
    assert seen == [8] * 11 + [4] * 18
    none = measure_groups(
        *prepared, [(images(4), labels)], groups, formats=(4,), deadline=ticking(0)
    )
    assert {m.reason for m in none} == {OUT_OF_TIME}


def test_whole_plans_see_the_first_batch_whatever_the_deadline(prepared) -> None:
    names = [m.name for m in prepared[1]]
    plans = {f"{bits}": dict.fromkeys(names, bits) for bits in (8, 4)}
    batches = [(images(4), torch.arange(4))] * 3
    late = ticking(0)
    found = measure_joint(*prepared, batches, plans, deadline=late)
    assert [outcome.n for outcome in found.values()] == [4, 4]
    assert late.came
    found = measure_joint(*prepared, batches, plans, deadline=ticking(3))
    assert [outcome.n for outcome in found.values()] == [12, 8]


def test_remedies_that_time_left_out_are_left_out(prepared) -> None:
    module = next(iter(prepared[1]))
    variants = {
        name: Variant(module, prepared[2].visits(module, name, Part.BOTH))
        for name in ("int8", "int4")
    }
    batches = [(images(4), torch.arange(4))]
    found = measure_variants(*prepared[:2], batches, variants, deadline=ticking(1))
    assert list(found) == ["int8"]


def test_a_cut_run_is_not_complete_and_continues_to_the_same_tables(tmp_path: Path) -> None:
    whole = run_analysis(SETTINGS, out=tmp_path / "whole")
    cut = dataclasses.replace(SETTINGS, budget_time=1e-6)
    with pytest.raises(TooLittleTimeError, match="time budget ended before") as raised:
        run_analysis(cut, out=tmp_path / "cut")
    assert raised.value.exit_code == 2  # the budget is wrong, not the model
    run = RunFolder.open(tmp_path / "cut")
    assert run.read_run()["status"] == "interrupted"
    assert set(run.table("sensitivity")["reason"]) == {OUT_OF_TIME}
    run_analysis(SETTINGS, out=tmp_path / "cut")
    for name in ("sensitivity", "joint", "pareto"):
        pd.testing.assert_frame_equal(whole.table(name), run.table(name), check_exact=True)
    assert run.read_run()["status"] == "complete"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("0.5h", 1800)]
)
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert seconds_of(text, "--budget-time") == seconds


@pytest.mark.parametrize("text", ["", "0", "soon", "10 parsecs", "-5m", "5d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserInputError, match="--budget-time"):
        seconds_of(text, "--budget-time")


def test_sizes_are_read_and_written() -> None:
    assert bytes_of("4G", "--memory") == 4 * 2**30
    assert bytes_of("500 MiB", "--memory") == 500 * 2**20
    assert size_text(bytes_of("1.5G", "--memory")) == "1.5 GiB"
    for text in ("", "many", "-1G", "0"):
        with pytest.raises(UserInputError, match="--memory"):
            bytes_of(text, "--memory")
