"""``grids.csv`` holds the grids that measurements use: compared with numpy on the same tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import tiny_vit

from vitsense.analyze_grids import grids_frame
from vitsense.discover import find_sites
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.settings import QuantSettings, RangeChoice
from vitsense.statistics.collect import collect_statistics


@pytest.fixture(scope="module")
def made():
    model = tiny_vit()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    catalog = find_sites(model, images[:1])
    statistics = collect_statistics(model, catalog, [images])
    settings = QuantSettings(weight_range=RangeChoice.MINMAX, activation_range=RangeChoice.MINMAX)
    quantizers = Quantizers(catalog, statistics, settings, "cpu")
    frame = grids_frame("m", model, catalog, quantizers, statistics, images[:1], (8, 3))
    return model, catalog, statistics, frame.set_index(["site", "bits"])


def test_every_site_has_a_grid_at_every_width(made) -> None:
    _, catalog, _, frame = made
    assert set(frame.index) == {(s.id, b) for s in catalog.sites for b in (8, 3)}


def test_weights_have_a_scale_per_channel(made) -> None:
    """Signed, from the minimum and maximum of each row."""
    model, _, _, frame = made
    weight = model.blocks[1].mlp.fc1.weight.detach().double().numpy()
    for bits in (8, 3):
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        scales = np.maximum(weight.min(1) / low, weight.max(1) / high)
        row = frame.loc["blocks.1.mlp.fc1:weight", bits]
        assert row["scales"] == len(weight)
        assert row["scale_min"] == pytest.approx(scales.min(), rel=1e-5)
        assert row["scale_max"] == pytest.approx(scales.max(), rel=1e-5)
        middle = np.sort(scales)[(len(scales) - 1) // 2]
        assert row["scale"] == pytest.approx(middle, rel=1e-5)
        assert (row["low"], row["high"]) == pytest.approx((middle * low, middle * high), rel=1e-5)
        assert (row["zero_point"], row["format"]) == (0, f"int{bits}")
        assert row["clipped"] == 0


def test_activations_have_one_affine_grid(made) -> None:
    _, _, statistics, frame = made
    row = frame.loc["blocks.1.mlp.fc1:input", 3]
    histogram = statistics["blocks.1.mlp.fc1:input"].histogram
    assert row["scales"] == 1
    assert row["format"] == "uint3"
    assert row["scale"] == pytest.approx((histogram.maximum - histogram.minimum) / 7, rel=1e-3)
    assert row["low"] == pytest.approx(-row["scale"] * row["zero_point"])
    assert row["high"] - row["low"] == pytest.approx(7 * row["scale"])


def test_what_lies_beyond_the_grid_is_counted(made) -> None:
    model, catalog, statistics, _ = made
    settings = QuantSettings(weight_range=RangeChoice.MSE, activation_range=RangeChoice.MSE)
    quantizers = Quantizers(catalog, statistics, settings, "cpu")
    images = torch.zeros(1, 3, 32, 32)
    frame = grids_frame("m", model, catalog, quantizers, statistics, images, (2,))
    row = frame.set_index("site").loc["blocks.0.mlp.fc2:weight"]
    weight = model.blocks[0].mlp.fc2.weight.detach()
    grid = quantizers.grid(
        next(s for s in catalog.sites if s.id == "blocks.0.mlp.fc2:weight"), 2, weight
    )
    scale = grid.scale.double().numpy()
    codes = weight.double().numpy() / scale
    assert row["clipped"] == pytest.approx(np.mean((codes < -2.5) | (codes > 1.5)), abs=1e-9)
    assert row["clipped"] > 0


def test_the_model_is_given_back(made) -> None:
    model, *_ = made
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
