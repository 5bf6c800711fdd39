"""The first-order estimate against finite differences, a loop over images, and measured KL."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_models import BUILDERS, images
from torch import nn
from torch.nn import functional as F

from vitsense.discover import find_sites
from vitsense.observe import Call, flowing, observing, preserved
from vitsense.sensitivity.draws import Draws
from vitsense.sensitivity.estimate import EstimateMemory
from vitsense.sensitivity.fisher import Responses, estimate_fisher, fisher_direction
from vitsense.sensitivity.per_image import weight_products
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.sweep import measure_exact
from vitsense.settings import Part, QuantSettings
from vitsense.sites import Kind
from vitsense.statistics.collect import collect_statistics

FORMATS = ("int6", "int3")


class TorchAttention(nn.Module):
    """torch's own multi-head attention, whose projections keep images along the second axis."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 8, 8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head((tokens + mixed).mean(1))


class InPlace(nn.Module):
    """Changes the output of convolutions in place, uses one layer twice, and groups channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.twice = nn.Conv2d(8, 8, 3, padding="same", groups=4)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x), inplace=True)
        x = F.relu(self.twice(x), inplace=True)
        x = F.relu(self.twice(x), inplace=True)
        return self.head(x.mean((2, 3)))


MODELS = BUILDERS | {"torch_attention": TorchAttention, "in_place": InPlace}


def prepared(build: Callable[[], nn.Module]):
    model = build().double().eval()
    x = images(3).double()
    catalog = find_sites(model, x[:1])
    statistics = collect_statistics(model, catalog, [x])
    return model, x, catalog, Quantizers(catalog, statistics, QuantSettings(), "cpu")


def reading(x: torch.Tensor):
    """Opens images by number."""
    return lambda numbers: (x[list(numbers)], torch.full((len(numbers),), -1))


def moved(visit, step: float):
    """A visit that goes a small part of the way to the rounded tensor."""
    return lambda tensor: tensor + step * (visit(tensor) - tensor)


@pytest.mark.parametrize("family", MODELS)
def test_responses_equal_finite_differences(family: str) -> None:
    """A step of 1e-6 towards the rounded weight or activation, image by image, in float64."""
    model, x, catalog, quantizers = prepared(MODELS[family])
    responses = Responses(quantizers, FORMATS)
    with preserved(model), flowing(model, catalog, responses.visit) as session:
        responses.begin(len(x))
        logits = session.run(x, lambda z: fisher_direction(z, seed=0, first=0))
    direction = fisher_direction(logits, seed=0, first=0)
    step = 1e-6
    for module in list(catalog)[:: 1 if len(catalog) < 12 else 2]:
        changes = responses.changes(module.name)
        assert changes.shape == (2, len(FORMATS), len(x))
        for number, name in enumerate(FORMATS):
            for side, part in enumerate((Part.WEIGHTS, Part.ACTIVATIONS)):
                visits = quantizers.visits(module, name, part)
                ends = []
                for signed in (step, -step):
                    steps = {site: moved(visit, signed) for site, visit in visits.items()}
                    with torch.no_grad(), observing(model, catalog, steps):
                        ends.append((model(x) * direction).sum(1))
                expected = (ends[0] - ends[1]) / (2 * step)
                torch.testing.assert_close(
                    changes[side, number].double(), expected, rtol=2e-3, atol=1e-6
                )
        if module.kind is Kind.PRODUCT:
            assert not changes[0].any()


def test_the_direction_has_the_fisher_information_as_its_second_moment() -> None:
    logits = torch.randn(1, 6, generator=torch.Generator().manual_seed(2)).double() * 2
    rows = fisher_direction(logits.expand(40_000, 6), seed=3, first=0).numpy()
    p = logits.softmax(1)[0].numpy()
    np.testing.assert_allclose(rows.T @ rows / len(rows), np.diag(p) - np.outer(p, p), atol=0.01)


CONVOLUTIONS = {
    "pointwise": ((6, 4, 1, 1), {}, 9),
    "few positions": ((6, 4, 3, 3), {"padding": 1, "stride": 2}, 9),
    "many positions": ((6, 4, 3, 3), {"padding": (1, 0), "dilation": 2}, 17),
    "few, in groups": ((6, 2, 3, 3), {"groups": 2}, 9),
    "many, in groups": ((6, 2, 3, 3), {"groups": 2}, 28),
    "same": ((6, 4, 5, 3), {"padding": "same"}, 9),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_products_with_weight_errors_equal_running_the_layer_with_each_error(case: str) -> None:
    shape, options, size = CONVOLUTIONS[case]
    rng = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(s, generator=rng) for s in ((4, 4, size, size), shape))
    errors = [torch.randn(shape, generator=rng) for _ in range(3)]
    given = (options.get("stride", 1), options.get("padding", 0), options.get("dilation", 1))
    call = Call(torch.conv2d, (x, weight, None, *given, options.get("groups", 1)), {})
    g = torch.randn(call.run().shape, generator=rng)
    found = weight_products(
        call, g, torch.stack(errors), images=2, axis=0
    )  # two rows of each image
    slow = [[(F.conv2d(x[i : i + 2], e, None, **options) * g[i : i + 2]).sum() for i in (0, 2)]
            for e in errors]  # fmt: skip
    torch.testing.assert_close(found, torch.tensor(slow), rtol=1e-4, atol=1e-4)


def test_a_one_dimensional_convolution_and_images_along_the_second_axis() -> None:
    rng = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 3, 9, generator=rng), torch.randn(5, 3, 3, generator=rng)
    call = Call(torch.conv1d, (x, w, None), {"padding": 1})
    g, e = torch.randn(2, 5, 9, generator=rng), torch.randn(5, 3, 3, generator=rng)
    expected = (F.conv1d(x, e, padding=1) * g).sum((1, 2))
    found = weight_products(call, g, e[None], images=2, axis=0)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    rows, v = torch.randn(7, 2, 3, generator=rng), torch.randn(4, 3, generator=rng)
    back, change = torch.randn(7, 2, 4, generator=rng), torch.randn(4, 3, generator=rng)
    call = Call(F.linear, (rows, v, None), {})
    found = weight_products(call, back, change[None], images=2, axis=1)
    torch.testing.assert_close(found[0], (rows @ change.T * back).sum((0, 2)), rtol=1e-4, atol=1e-4)


def test_an_estimate_is_close_to_the_measured_divergence_at_many_bits() -> None:
    model, _, catalog, quantizers = prepared(BUILDERS["swin"])
    model.float()
    x = torch.randn(96, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(32)]
    exact = measure_exact(model, catalog, quantizers, batches, bits=(6,))
    fast = estimate_fisher(model, catalog, quantizers, reading(x), Draws.every(96), bits=(6,))
    pairs = [(e.outcome.kl / 96, f.estimate.kl_nats) for e, f in zip(exact, fast, strict=True)]
    ratios = [f.value / kl for kl, f in pairs]
    assert 0.7 < np.median(ratios) < 1.3
    within = [f.low <= kl <= f.high for kl, f in pairs]
    assert np.mean(within) > 0.7  # the interval is of sampling; the second order adds an error
    row = fast[0].row("fast")
    assert (row["status"], row["drop"], row["agreement"], row["n"]) == ("estimated", None, None, 96)


def test_batches_and_interruptions_do_not_change_an_estimate() -> None:
    model, _, catalog, quantizers = prepared(BUILDERS["vit"])
    model.float()
    x = images(6)

    def run(size: int, memory: EstimateMemory | None = None, seed: int = 0):
        found = estimate_fisher(
            model,
            catalog,
            quantizers,
            reading(x),
            Draws.every(6),
            bits=(4,),
            parts=tuple(Part),
            largest=size,
            memory=memory,
            seed=seed,
        )
        return [None if f.estimate is None else f.estimate.kl_nats.value for f in found]

    whole, kept = run(6), {}
    parts = run(2, EstimateMemory(keep=kept.__setitem__))
    assert [kl is None for kl in whole] == [kl is None for kl in parts]
    known = [(a, b) for a, b in zip(whole, parts, strict=True) if a is not None]
    assert known
    np.testing.assert_allclose(*zip(*known, strict=True), rtol=1e-3)
    half = dict(list(kept.items())[:2])
    again: list = []
    resumed = EstimateMemory(known=half, keep=lambda span, _found: again.append(span))
    assert run(2, resumed) == parts
    assert [span.start for span in again] == [4]
    assert run(6, seed=1) != whole  # the seed decides the signs


def test_drawn_images_estimate_what_all_images_give() -> None:
    """The mean over seeds of estimates from drawn images, against every image with many signs."""
    model, _, catalog, quantizers = prepared(BUILDERS["resnet"])
    model.float()
    x = images(16)
    doubt = np.linspace(0.1, 0.6, 16)

    def run(draws: Draws, seed: int) -> np.ndarray:
        found = estimate_fisher(model, catalog, quantizers, reading(x), draws, bits=(4,), seed=seed)
        return np.array([f.estimate.kl_nats.value for f in found])

    every = [run(Draws.every(16), seed) for seed in range(60)]
    drawn = [run(Draws.by_doubt(doubt, seed, least=8), 100 + seed) for seed in range(60)]
    error = np.hypot(np.std(drawn, axis=0), np.std(every, axis=0)) / np.sqrt(60)
    difference = np.mean(drawn, axis=0) - np.mean(every, axis=0)
    assert (np.abs(difference) < 4 * error).all()
    assert (error < 0.25 * np.mean(every, axis=0)).all()
