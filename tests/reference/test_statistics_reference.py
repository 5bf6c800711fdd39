"""Streamed statistics equal numpy and scipy on the concatenated tensor.

Tolerances: 1e-6 relative in variance and 1e-4 in kurtosis (of the larger of 1 and its size), per
tensor; float32 inputs, float64 reference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch

from vitsense.discover import find_sites
from vitsense.observe import observing
from vitsense.sites import Site, SiteRole
from vitsense.statistics.accumulate import Accumulator
from vitsense.statistics.collect import OUTLIER_SIGMAS, collect_statistics
from vitsense.statistics.moments import Moments

VARIANCE, KURTOSIS = 1e-6, 1e-4


def assert_equals_scipy(moments: Moments, groups: np.ndarray, slack: float = 1.0) -> None:
    """Compare with `(elements, G)` float64 values."""
    variance = groups.var(0)
    np.testing.assert_allclose(moments.mean, groups.mean(0), atol=1e-6 * groups.std())
    np.testing.assert_allclose(moments.variance, variance, rtol=slack * VARIANCE)
    varies = variance > 0
    for name, reference in (
        ("skewness", scipy.stats.skew(groups[:, varies])),
        ("kurtosis", scipy.stats.kurtosis(groups[:, varies])),
    ):
        got = getattr(moments, name)[varies]
        error = np.abs(got - reference) / np.maximum(np.abs(reference), 1.0)
        assert error.max() <= slack * KURTOSIS


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(0, 1, shape)


def far_from_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(1000, 0.5, shape)


def heavy_tailed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_t(5, shape)


def outlier_channel(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.normal(0, 1, shape)
    x[..., 3] = 80 + 5 * x[..., 3]
    return x


def rectified(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.maximum(rng.normal(-1, 1, shape), 0)


def drifting(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(0, 1, shape) + np.arange(shape[0]).reshape(-1, 1, 1) * 3


@pytest.mark.parametrize(
    "law", [normal, far_from_zero, heavy_tailed, outlier_channel, rectified, drifting]
)
def test_streamed_moments_equal_scipy_on_the_concatenation(
    law: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray],
):
    x = np.float32(law(np.random.default_rng(0), (24, 197, 48)))
    site = Site(module="m", role=SiteRole.INPUT, tensor="t", channel_axis=-1)
    accumulator = Accumulator(site)
    for batch in torch.from_numpy(x).split(7):
        accumulator.visit(batch)
    channels, histogram = accumulator.finish()
    exact = x.astype(np.float64)
    assert_equals_scipy(channels.collapse(), exact.reshape(-1, 1))
    assert_equals_scipy(channels, exact.reshape(-1, 48))
    mean, std = exact.mean(), exact.std()
    for sigmas in OUTLIER_SIGMAS:
        share = (np.abs(exact - mean) > sigmas * std).mean()
        # a bin is 2^-6 of its value wide; at 6 sigma of a normal law its density falls by a tenth
        close = 0.05 * share + 2e-5
        assert abs(histogram.tail_share(mean, sigmas * std) - share) <= close


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_half_precision_tensors_equal_scipy_on_their_own_values(mean: float):
    x = torch.from_numpy(np.random.default_rng(1).normal(mean, 0.5, (9, 64, 16))).half()
    site = Site(module="m", role=SiteRole.INPUT, tensor="t", channel_axis=-1)
    accumulator = Accumulator(site)
    for batch in x.split(2):
        accumulator.visit(batch)
    moments, _ = accumulator.finish()
    assert_equals_scipy(moments.collapse(), x.double().numpy().reshape(-1, 1))


@pytest.fixture(scope="module")
def vit() -> torch.nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10
    ).eval()


def test_every_site_of_a_vision_transformer_equals_scipy(vit: torch.nn.Module):
    images = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 3 + 1
    catalog = find_sites(vit, images[:1])
    found = collect_statistics(vit, catalog, images.split(4))

    kept: dict[str, list[torch.Tensor]] = defaultdict(list)

    def keeping(key: str) -> Callable[[torch.Tensor], None]:
        return lambda x: kept[key].append(x.detach().clone())

    visits = {site.id: keeping(site.id) for site in catalog.sites}
    with observing(vit, catalog, visits), torch.no_grad():
        for batch in images.split(4):
            vit(batch)
    assert set(kept) == set(found)
    for key, statistics in found.items():
        tensors = kept[key][:1] if statistics.site.is_weight else kept[key]
        whole = torch.cat(tensors).double()
        assert_equals_scipy(statistics.tensor, whole.reshape(-1, 1).numpy())
        assert statistics.histogram.total == whole.numel()
        row = statistics.row()
        assert (row["minimum"], row["maximum"]) == (float(whole.min()), float(whole.max()))
        if statistics.site.head_axis is not None:
            assert statistics.heads is not None
            by_head = whole.movedim(statistics.site.head_axis, -1).reshape(-1, 3)
            assert_equals_scipy(statistics.heads, by_head.numpy())
