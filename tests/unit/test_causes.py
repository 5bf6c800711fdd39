"""Causes are read off planted tensors, and each planted cause is cured by its remedy."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from vitsense.analyze import run_analysis
from vitsense.discover import find_sites
from vitsense.report import compose
from vitsense.report.section import Table
from vitsense.runfolder import RunFolder
from vitsense.sensitivity.causes import Cause, Remedy, causes_of, remedy_visits
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.variants import Variant, measure_variants
from vitsense.settings import (
    AnalyzeSettings,
    ModelRequest,
    Part,
    QuantSettings,
    RangeChoice,
    SweepMode,
)
from vitsense.statistics.collect import collect_statistics


class Planted(nn.Module):
    """A linear layer whose input is made from the image by ``shape``."""

    def __init__(self, shape: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(64, 10)
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shape(x.flatten(1)[:, :64]))


def one_channel(x: Tensor) -> Tensor:
    factors = torch.ones(64)
    factors[17] = 40.0
    return x * factors


def uneven(x: Tensor) -> Tensor:
    return x * torch.logspace(-1, 1, 64)


def heavy(x: Tensor) -> Tensor:
    return x**5


def channels_with_tails(x: Tensor) -> Tensor:
    return x**5 * torch.logspace(-1, 1, 64)


PLANTED = {
    "outlier channels": (one_channel, Remedy.PER_CHANNEL),
    "uneven channels": (uneven, Remedy.PER_CHANNEL),
    "heavy tail": (heavy, Remedy.LEAST_ERROR),
    "one-sided input": (nn.functional.gelu, Remedy.MORE_BITS),
}
RANGES = {
    "minmax": Remedy.LEAST_ERROR,
    "percentile": Remedy.LEAST_ERROR,
    "mse": Remedy.MORE_BITS,  # its length is the best already
}


def measured(
    model: nn.Module, form: str = "int3", chosen: str = "percentile"
) -> tuple[dict[str, Cause], dict[str, float]]:
    """Causes by name; divergence as it is and after each remedy."""
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    catalog = find_sites(model, x[:1])
    statistics = collect_statistics(model, catalog, [x])
    settings = QuantSettings(activation_range=RangeChoice(chosen))
    quantizers = Quantizers(catalog, statistics, settings, "cpu")
    (module,) = catalog
    causes = causes_of(module, statistics, chosen, form)
    variants = {"": Variant(module, quantizers.visits(module, form, Part.BOTH))} | {
        c.cause: Variant(module, remedy_visits(module, c, form, quantizers, statistics))
        for c in causes
    }
    labels = torch.full((64,), -1)
    found = measure_variants(model, catalog, [(x, labels)], variants)
    return {c.cause: c for c in causes}, {name: o.kl / o.n for name, o in found.items()}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_cause_is_found_and_its_remedy_helps(planted: str) -> None:
    shape, remedy = PLANTED[planted]
    causes, kl = measured(Planted(shape))
    assert causes[planted].remedy is remedy
    assert kl[planted] < kl[""]
    if planted == "outlier channels":
        assert causes[planted].detail.startswith("channel 17 (")


@pytest.mark.parametrize("chosen", RANGES)
def test_the_remedy_of_a_heavy_tail_is_one_that_the_range_in_use_leaves_open(chosen: str) -> None:
    causes, kl = measured(Planted(lambda x: x**3), "int3", chosen)
    assert causes["heavy tail"].remedy is RANGES[chosen]
    assert kl["heavy tail"] < kl[""]
    unused, _ = measured(Planted(heavy), "int3", chosen)
    assert ("unused range" in unused) == (chosen == "minmax")


def test_a_scale_per_channel_helps_channels_with_tails_too() -> None:
    """From end to end, a few values would make the steps of every channel coarse."""
    causes, kl = measured(Planted(channels_with_tails), "int4", "mse")
    assert causes["uneven channels"].remedy is Remedy.PER_CHANNEL
    assert kl["uneven channels"] < kl[""]


@pytest.mark.parametrize(
    ("form", "remedy"),
    [
        ("fp8_e4m3", Remedy.PER_CHANNEL),
        ("mxfp4", Remedy.WIDER),
        ("nvfp4", Remedy.WIDER),
        ("mxfp8_e4m3", Remedy.FLOAT),
    ],
)
def test_formats_other_than_integers_get_remedies_they_allow(form: str, remedy: Remedy) -> None:
    shape, _ = PLANTED["outlier channels"]
    causes, kl = measured(Planted(shape), form)
    assert causes["outlier channels"].remedy is remedy
    # a scale of its own moves the values of a channel of fp8 within its binade, no more
    assert kl["outlier channels"] < kl[""] * (1.3 if remedy is Remedy.PER_CHANNEL else 1)
    causes, kl = measured(Planted(nn.functional.gelu), form)
    one_sided = causes["one-sided input"]
    assert one_sided.remedy in (Remedy.WIDER, Remedy.FLOAT)
    assert "half of the codes" in one_sided.detail
    assert kl["one-sided input"] < kl[""]


def test_an_even_gaussian_input_has_no_cause() -> None:
    causes, _ = measured(Planted(lambda x: x))
    assert causes == {}


SETTINGS = AnalyzeSettings(
    model=ModelRequest(name="glyph_swin"),
    images=16,
    calibration=8,
    bits=(4,),
    batch=16,
    mode=SweepMode.EXACT,
    refine=0,
)


@pytest.fixture(scope="module")
def swin(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_analysis(SETTINGS, out=tmp_path_factory.mktemp("causes") / "run")


def test_a_run_tells_causes_and_predictors_and_the_report_shows_them(swin: RunFolder) -> None:
    causes = swin.table("causes")
    assert "power-law probabilities" in set(causes["cause"])
    tried = causes[causes["kl_after"].notna()]
    assert 1 <= tried["module"].nunique() <= 5
    cells = swin.table("sensitivity").set_index("module")
    for row in tried.to_dict("records"):
        assert row["kl_before"] == pytest.approx(cells.loc[row["module"], "kl"], rel=1e-9)
        assert row["kl_after_low"] <= row["kl_after"] <= row["kl_after_high"]
        assert row["kl_before_low"] <= row["kl_before"] <= row["kl_before_high"]
        assert row["n_before"] == 16
        assert row["drop_after_low"] <= row["drop_after"] <= row["drop_after_high"]
    best = swin.table("predictors").query("scope == 'all' and target == 'kl'")
    assert best.set_index("statistic").loc["fisher_kl", "spearman"] > 0.7
    assert any("is ranked best by" in line for line in swin.read_run()["verdict"])
    (model,) = compose(swin).models
    chapters = {section.title: section for section in model.chapters}
    assert {"Why these modules, and what helps", "What predicts the sensitivity"} <= set(chapters)
    blocks = chapters["What predicts the sensitivity"].blocks
    tables = {block.title: block for block in blocks if isinstance(block, Table)}
    roles = tables["Rank correlation within each role at 4 bits"].rows
    assert [row[0] for row in roles] == ["feed-forward (FFN)"]  # no other role has five modules


def test_remedies_are_kept_and_not_measured_again(swin: RunFolder) -> None:
    before = (swin.path / "state.jsonl").read_bytes()
    tables = {name: swin.table(name) for name in ("causes", "predictors", "estimates")}
    run_analysis(SETTINGS, out=swin.path)
    assert (swin.path / "state.jsonl").read_bytes() == before
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, swin.table(name), check_exact=True)
