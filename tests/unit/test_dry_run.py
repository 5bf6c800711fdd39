"""A dry run says what a run would take, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import pkgutil
from pathlib import Path

import pytest
import torch
from small_models import images, tiny_resnet
from torch.utils.flop_counter import FlopCounterMode

from vitsense import cli
from vitsense.analyze import run_analysis
from vitsense.discover import find_sites
from vitsense.dry_run import forecast
from vitsense.models import load_model
from vitsense.passes import passes_of
from vitsense.sensitivity.work import remaining_share
from vitsense.settings import (
    AnalyzeSettings,
    ModelRequest,
    QuantSettings,
    RangeChoice,
    SweepMode,
)

_COMMAND = ["analyze", "--model", "zoo/glyph_resnet", "--images", "1000", "--calibration", "8"]


def test_a_dry_run_counts_and_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*_COMMAND, "--bits", "8,4", "--mode", "exact", "--dry-run", "--probe", "--json"]
    assert cli.run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    (model,) = found["models"]
    assert model["cells"] == 44  # 22 modules at two widths
    assert 5 < model["stages"]["single modules"] < 44  # replay saves part of every pass
    assert model["passes"] == pytest.approx(sum(model["stages"].values()), abs=0.5)
    assert model["passes"] < model["most"]
    assert model["seconds"] > 0
    assert model["memory_bytes"] > 0
    assert model["alternatives"]["--mode adaptive"] < model["passes"] - 5
    assert all(passes < model["passes"] for passes in model["alternatives"].values())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("budget", "more", "least"),
    [
        ("avg-bits=1", (), "avg-bits=2. "),
        ("avg-bits=4", ("--formats", "mxfp4"), ""),  # the default is no wish
        ("avg-bits=4.2", ("--formats", "mxfp4"), "avg-bits=4.25"),
        ("size-mb=0.02", (), "size-mb=0.0"),
    ],
)
def test_a_budget_below_the_smallest_plan_is_refused_before_anything_is_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    budget: str,
    more: tuple[str, ...],
    least: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [*_COMMAND, "--budget", budget, "--images", "16", *more]
    assert cli.run([*command, "--dry-run"]) == (2 if least else 0)
    if least:
        said = capsys.readouterr().err
        assert f"glyph_resnet: The budget {budget} cannot be met" in said
        assert f"least possible is {least}" in said
        assert "pin" not in said  # nothing is pinned yet
        assert cli.run([*command, "--out", "run"]) == 2
        assert capsys.readouterr().err.endswith(said)
    assert list(tmp_path.iterdir()) == []


def test_the_forecast_is_what_the_run_takes(tmp_path: Path, monkeypatch) -> None:
    """Counted by torch: multiplications of every stage, over those of a plain pass."""
    settings = AnalyzeSettings(
        model=ModelRequest(name="glyph_resnet"),
        images=12,
        calibration=6,
        bits=(4, 2),
        batch=6,
        mode=SweepMode.EXACT,
        refine=0,
        quant=QuantSettings(weight_range=RangeChoice.MINMAX, activation_range=RangeChoice.MINMAX),
    )
    (told,) = forecast(settings)
    counted: dict[str, int] = {}

    def counting(name: str, work):
        def counted_work(*args, **kwargs):
            with FlopCounterMode(display=False) as counter:
                found = work(*args, **kwargs)
            counted[name] = counted.get(name, 0) + counter.get_total_flops()
            return found

        return counted_work

    for place, name in (
        ("vitsense.analyze_in_time.measure_cells", "single modules"),
        ("vitsense.analyze_model.groups_frame", "groups"),
        ("vitsense.analyze_model._measured_plans", "whole plans"),
        ("vitsense.analyze_explain.measure_variants", "remedies"),
    ):
        monkeypatch.setattr(place, counting(name, pkgutil.resolve_name(place)))
    run_analysis(settings, out=tmp_path / "run")
    model = load_model(settings.model, torch.device("cpu"))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.module(torch.zeros(12, *model.preprocessing.input_size))
    plain = counter.get_total_flops()
    took = {name: flops / plain for name, flops in counted.items()}
    for name in ("single modules", "groups", "whole plans"):
        assert told.stages[name] == pytest.approx(took[name], rel=0.15), name
    assert sum(told.stages[name] for name in took) == pytest.approx(sum(took.values()), rel=0.15)
    assert told.stages["estimates"] > 5  # of time, not of multiplications
    assert told.passes == pytest.approx(sum(told.stages.values()), abs=0.5)


def test_the_search_for_a_better_plan_is_in_the_forecast() -> None:
    catalog = find_sites(tiny_resnet(), images(1))
    settings = AnalyzeSettings(model=ModelRequest(name="x"), images=1000, refine_images=64)
    with_it = passes_of(settings, catalog, 1000, 32)
    without = passes_of(dataclasses.replace(settings, refine=0), catalog, 1000, 32)
    search = with_it["search for a better plan"]
    assert 0 < search.about < search.most
    assert without.keys() == with_it.keys() - {"search for a better plan"}


def test_the_share_that_replay_computes_is_the_mean_rest_of_the_model() -> None:
    catalog = find_sites(tiny_resnet(), images(1))
    macs = [m.macs for m in catalog]
    expected = [sum(macs[i:]) / sum(macs) for i in range(len(macs))]
    assert remaining_share(catalog) == pytest.approx(sum(expected) / len(expected))
