"""collect_statistics: every site of a model in one pass that leaves no trace."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from vitsense.discover import find_sites
from vitsense.errors import MeasurementError
from vitsense.progress import NoProgress
from vitsense.schemas import SCHEMAS
from vitsense.sites import SiteCatalog, SiteRole
from vitsense.statistics.collect import SiteStatistics, collect_statistics

HEADS, WIDTH = 2, 8


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images, tokens, _ = x.shape
        parts = self.qkv(x).reshape(images, tokens, 3, HEADS, WIDTH // HEADS)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(images, tokens, WIDTH))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.attn = Attention()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        return self.head(self.norm((x + self.attn(x)).mean(1)))


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def catalog(net: Net, images: torch.Tensor) -> SiteCatalog:
    return find_sites(net, images[:1])


@pytest.fixture(scope="module")
def found(net: Net, catalog: SiteCatalog, images: torch.Tensor) -> dict[str, SiteStatistics]:
    return collect_statistics(net, catalog, images.split(4))


def test_every_site_of_the_catalog_has_statistics(
    found: dict[str, SiteStatistics], catalog: SiteCatalog
):
    assert list(found) == [site.id for site in catalog.sites]
    assert all(found[site.id].site == site for site in catalog.sites)


def test_every_element_of_every_image_is_in_the_moments(found: dict[str, SiteStatistics]):
    assert found["embed:input"].row()["count"] == 6 * 3 * 16 * 16
    assert found["head:input"].row()["count"] == 6 * WIDTH


def test_weights_count_once_whatever_the_number_of_batches(found: dict[str, SiteStatistics]):
    row = found["embed:weight"].row()
    assert row["count"] == WIDTH * 3 * 4 * 4
    assert row["channels"] == WIDTH


def test_sites_that_share_a_tensor_share_its_statistics(
    found: dict[str, SiteStatistics], catalog: SiteCatalog
):
    q, v = found["attn.qkv.q:input"], found["attn.qkv.v:input"]
    assert q.site.tensor == v.site.tensor
    assert q.histogram is v.histogram
    q_row, v_row = q.row(), v.row()
    assert (q_row.pop("site"), v_row.pop("site")) == ("attn.qkv.q:input", "attn.qkv.v:input")
    assert (q_row.pop("module"), v_row.pop("module")) == ("attn.qkv.q", "attn.qkv.v")
    assert q_row == v_row


def test_heads_are_known_in_attention_and_nowhere_else(found: dict[str, SiteStatistics]):
    heads = {key: s.row()["heads"] for key, s in found.items()}
    in_attention = {
        key
        for key, s in found.items()
        if s.site.role not in (SiteRole.WEIGHT, SiteRole.INPUT)
        or (".qkv." in key and "weight" in key)
    }
    assert {key for key, count in heads.items() if count} == in_attention
    assert {heads[key] for key in in_attention} == {HEADS}


def test_head_statistics_of_a_weight_are_those_of_its_rows(
    found: dict[str, SiteStatistics], net: Net
):
    rows = net.attn.qkv.weight.detach().double().numpy()[WIDTH : 2 * WIDTH]  # k
    heads = found["attn.qkv.k:weight"].heads
    assert heads is not None
    np.testing.assert_allclose(heads.variance, rows.reshape(HEADS, -1).var(1), rtol=1e-9)


def test_probabilities_have_heads_but_no_channels(found: dict[str, SiteStatistics]):
    probs = found["attn.pv_product:attention_probs"]
    assert probs.channels is None
    row = probs.row()
    assert (row["channels"], row["sdam"], row["channel_max_to_median"]) == (0, None, None)
    assert row["mean"] == pytest.approx(1 / 16, rel=1e-6)  # each of 16 tokens gets its share
    assert sorted(probs.arrays()) == ["head_kurtosis", "head_variance"]


def test_rows_fit_the_table(found: dict[str, SiteStatistics]):
    columns = SCHEMAS["statistics"]
    frame = pd.DataFrame([{"model": "m", **s.row()} for s in found.values()])
    assert list(frame.columns) == list(columns)
    assert len(frame.astype(columns)) == len(found)


def test_arrays_hold_one_number_per_channel_and_per_head(found: dict[str, SiteStatistics]):
    arrays = found["attn.qk_product:query"].arrays()
    assert {name: len(array) for name, array in arrays.items()} == {
        "mean": WIDTH,
        "variance": WIDTH,
        "minimum": WIDTH,
        "maximum": WIDTH,
        "kurtosis": WIDTH,
        "head_variance": HEADS,
        "head_kurtosis": HEADS,
    }
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}


def test_channel_spread_is_taken_over_channels(found: dict[str, SiteStatistics], net: Net):
    w = np.abs(net.head.weight.detach().double().numpy())
    statistics = found["head:weight"]
    assert statistics.sdam == pytest.approx(w.mean(1).std(), rel=1e-9)
    peaks = w.max(1)
    assert statistics.channel_max_to_median == pytest.approx(peaks.max() / np.median(peaks))


def test_a_constant_tensor_has_no_kurtosis_and_no_outliers(net: Net, catalog: SiteCatalog):
    row = collect_statistics(net, catalog, [torch.full((2, 3, 16, 16), 0.1)])["embed:input"].row()
    assert row["variance"] == 0.0
    assert row["skewness"] is None
    assert row["kurtosis"] is None
    assert row["outliers_3"] == 0.0
    assert row["minimum"] == row["q50"] == row["maximum"] == pytest.approx(0.1)


def test_a_channel_ratio_over_nothing_does_not_exist(net: Net, catalog: SiteCatalog):
    row = collect_statistics(net, catalog, [torch.zeros(2, 3, 16, 16)])["embed:input"].row()
    assert row["channel_max_to_median"] is None


def test_the_model_is_given_back_as_it_was(catalog: SiteCatalog, images: torch.Tensor):
    torch.manual_seed(0)
    net = Net().train()
    net.norm.eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    collect_statistics(net, catalog, [images])
    assert (net.training, net.norm.training) == (True, False)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_no_images_are_an_error(net: Net, catalog: SiteCatalog):
    with pytest.raises(MeasurementError, match="no images"):
        collect_statistics(net, catalog, [])


def test_a_weight_that_is_not_finite_is_an_error_that_names_it(
    catalog: SiteCatalog, images: torch.Tensor
):
    net = Net().eval()
    with torch.no_grad():
        net.attn.proj.weight[1, 2] = float("nan")
    with pytest.raises(MeasurementError, match=r"attn\.proj:weight"):
        collect_statistics(net, catalog, [images])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_progress_hears_of_every_image(net: Net, catalog: SiteCatalog, images: torch.Tensor):
    class Counting(NoProgress):
        steps = 0

        def advance(self, steps: int, label: str = "") -> None:
            self.steps += steps

    progress = Counting()
    collect_statistics(net, catalog, images.split(4), progress=progress)
    assert progress.steps == 6
