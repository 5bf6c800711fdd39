"""A time budget ends in time with what is known, says what is missing, and can be continued."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import images, tiny_resnet

from vitsense.analyze import run_analysis
from vitsense.deadline import Deadline
from vitsense.discover import find_sites
from vitsense.errors import (
    MeasurementError,
    StaleResultError,
    TooLittleTimeError,
    UserInputError,
)
from vitsense.plan.plan import Plan
from vitsense.quantities import bytes_of, seconds_of, size_text
from vitsense.runfolder import RunFolder
from vitsense.sensitivity.adaptive import measure_adaptive
from vitsense.sensitivity.doubt import doubts
from vitsense.sensitivity.group_sweep import measure_groups
from vitsense.sensitivity.groups import groups_of
from vitsense.sensitivity.ledger import SpanSums
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Outcome
from vitsense.sensitivity.sweep import OUT_OF_TIME, measure_exact, measure_joint
from vitsense.sensitivity.variants import Variant, measure_variants
from vitsense.settings import AnalyzeSettings, By, ModelRequest, Part, QuantSettings
from vitsense.statistics.collect import Collection, collect_statistics

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
    found = measure_adaptive(*prepared, read, doubt, bits=(4, 2), deadline=ticking(22))
    table = pd.DataFrame([m.row("adaptive") for m in found])
    # 22 looks at the clock, one before each look at images: 14 modules at 2 bits, 6 at 4 bits
    assert (table[table["bits"] == 2]["status"] == "measured").all()
    late = table[table["reason"] == OUT_OF_TIME]
    assert len(late) == 8
    assert set(late["status"]) == {"unmeasured"}
    assert late[["n", "drop", "kl"]].isna().all().all()


def test_an_exact_sweep_cut_short_reports_the_images_it_saw(prepared) -> None:
    batches = [(images(4), images(4).mean((1, 2, 3)).gt(0).long())] * 3
    found = measure_exact(*prepared, batches, bits=(4,), deadline=ticking(22))
    seen = [0 if m.outcome is None else m.outcome.n for m in found]
    assert seen == [8] * 6 + [4] * 8


def test_groups_that_time_left_out_say_so_and_the_others_are_measured(prepared) -> None:
    groups = groups_of(prepared[1], By.MODULE)
    labels = torch.arange(4)
    cut = measure_groups(
        *prepared, [(images(4), labels)] * 3, groups, formats=(4,), deadline=ticking(40)
    )
    seen = [0 if m.found is None else m.found.outcome.n for m in cut]
    # 40 looks at the clock, one before each batch: the first batch (29 cells), 9 of the second
    assert seen == [8] * 9 + [4] * 20
    none = measure_groups(
        *prepared, [(images(4), labels)], groups, formats=(4,), deadline=ticking(0)
    )
    assert {m.reason for m in none} == {OUT_OF_TIME}


def test_whole_plans_see_a_few_images_whatever_the_deadline(prepared) -> None:
    names = [m.name for m in prepared[1]]
    plans = {f"{bits}": dict.fromkeys(names, bits) for bits in (8, 4)}
    batches = [(images(12), torch.arange(12))] * 3
    late, kept = ticking(0), SpanSums[str, Outcome]()
    found = measure_joint(*prepared, batches, plans, ledger=kept, deadline=late)
    assert [outcome.n for outcome in found.values()] == [8, 8]
    assert late.came
    assert kept.total("8") is None  # a finished run takes its images in batches of twelve
    found = measure_joint(*prepared, batches, plans, deadline=ticking(5))
    assert [outcome.n for outcome in found.values()] == [24, 12]
    first = measure_joint(*prepared, [(images(12)[:8], torch.arange(8))], plans)
    late = ticking(0)
    assert measure_joint(*prepared, batches, plans, deadline=late) == first


def test_remedies_that_time_left_out_are_left_out(prepared) -> None:
    module = next(iter(prepared[1]))
    variants = {
        name: Variant(module, prepared[2].visits(module, name, Part.BOTH))
        for name in ("int8", "int4")
    }
    batches = [(images(4), torch.arange(4))]
    found = measure_variants(*prepared[:2], batches, variants, deadline=ticking(2))
    assert list(found) == ["int8"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_analysis(SETTINGS, out=tmp_path_factory.mktemp("whole"))


def assert_completes(run: RunFolder, whole: RunFolder) -> None:
    assert run.read_run()["status"] == "interrupted"
    run_analysis(SETTINGS, out=run.path)
    for name in ("statistics", "sensitivity", "groups", "joint", "pareto", "causes"):
        pd.testing.assert_frame_equal(whole.table(name), run.table(name), check_exact=True)
    assert run.read_run()["status"] == "complete"
    assert not run.read_run()["models"][0]["left_out"]


def test_a_run_without_time_has_a_whole_table_and_continues_to_the_same(
    whole: RunFolder, tmp_path: Path
) -> None:
    cut = dataclasses.replace(SETTINGS, budget_time=1e-6)
    command = ["vitsense", "analyze", "--budget-time", "1s", "--images", "24"]
    run = run_analysis(cut, out=tmp_path, command=command)
    table = run.table("sensitivity")
    assert set(table["status"]) == {"estimated"}
    assert set(table["reason"]) == {OUT_OF_TIME}
    assert set(table["mode"]) == {"fast"}
    assert list(run.table("joint")["plan"]) == ["uniform-4", "recommended"]
    assert set(run.table("joint")["n"]) == {8}
    assert Plan.load(run.plan_path()).modules
    record = run.read_run()
    assert set(record["models"][0]["left_out"]) == {"cells", "groups", "explanations", "plans"}
    said = " ".join(record["warnings"])
    assert "Not measured: all cells" in said
    assert said.endswith("vitsense analyze --images 24")  # the command that completes it
    assert_completes(run, whole)


def test_what_rests_on_some_calibration_images_is_not_kept(
    whole: RunFolder, tmp_path: Path
) -> None:
    cut = dataclasses.replace(SETTINGS, budget_time=1e-6, memory=1, batch=None)
    run = run_analysis(cut, out=tmp_path)
    assert "rest on 1 of 8 calibration images" in " ".join(run.read_run()["warnings"])
    assert not run.read_state()
    again = run_analysis(cut, out=tmp_path)
    assert "rest on 2 of 8" in " ".join(again.read_run()["warnings"])


def test_a_model_without_gradients_needs_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MeasurementError("no gradients")

    monkeypatch.setattr("vitsense.analyze_in_time.estimate_fisher", refuse)
    cut = dataclasses.replace(SETTINGS, budget_time=3600.0)
    an_hour_ago = time.monotonic() - 3600  # the program was slow to start
    with pytest.raises(TooLittleTimeError, match="time budget ended before") as raised:
        run_analysis(cut, out=tmp_path, since=an_hour_ago)
    assert raised.value.exit_code == 2  # the budget is wrong, not the model
    assert set(RunFolder.open(tmp_path).table("sensitivity")["reason"]) == {OUT_OF_TIME}


def test_kept_statistics_go_on_bit_for_bit(prepared) -> None:
    model, catalog, _ = prepared
    x = images(12)
    through, first, second = Collection(catalog), Collection(catalog), Collection(catalog)
    with through.adding(model) as add:
        for batch in x.split(4):
            add(batch)
    with first.adding(model) as add:
        add(x[:4])
    second.restore(first.arrays(), torch.device("cpu"))
    assert second.images == 4
    with second.adding(model) as add:
        for batch in x[4:].split(4):
            add(batch)
    for one, other in zip(through.finish().values(), second.finish().values(), strict=True):
        assert one.row() == other.row()
        assert (one.histogram.counts == other.histogram.counts).all()
        for name, values in one.arrays().items():
            np.testing.assert_array_equal(values, other.arrays()[name])


def test_statistics_are_computed_once_and_refused_when_stale(
    whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.at(tmp_path / "run")
    for path in whole.path.iterdir():
        (run.path / path.name).write_bytes(path.read_bytes())
    known, adding = [], Collection.adding

    def watched(self: Collection, model: torch.nn.Module) -> object:
        known.append(self.images)
        return adding(self, model)

    monkeypatch.setattr(Collection, "adding", watched)
    run_analysis(SETTINGS, out=run.path)
    assert known == [8]
    name = run.statistics_name("glyph_resnet")
    arrays = dict(run.arrays(name))
    about = json.loads(str(arrays["about"]))
    run.write_arrays(name, arrays | {"about": np.array(json.dumps(about | {"sites": "others"}))})
    with pytest.raises(StaleResultError, match="different are: sites"):
        run_analysis(SETTINGS, out=run.path)
    (run.path / f"{name}.npz").write_bytes(b"PK torn")
    with pytest.raises(UserInputError, match=f"{name}.npz cannot be read"):
        run_analysis(SETTINGS, out=run.path)


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
