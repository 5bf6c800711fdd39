"""Traces of Hessians against torch's exact Hessian, and what follows from them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from small_models import BUILDERS, images
from torch import nn
from torch.nn import functional as F

from vitsense.deadline import Deadline
from vitsense.discover import find_sites
from vitsense.errors import MeasurementError
from vitsense.observe import observing
from vitsense.sensitivity.hessian import ProbeMemory, curvatures, estimate_hessian
from vitsense.sensitivity.interval import Interval
from vitsense.sensitivity.ledger import Span
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.settings import Part, QuantSettings
from vitsense.statistics.collect import collect_statistics


class Tiny(nn.Module):
    """A convolution and a linear layer with something smooth between; few enough weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 2, 8, 8, bias=False)
        self.head = nn.Linear(8, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.conv(x)).flatten(1))


def prepared(model: nn.Module, x: torch.Tensor):
    catalog = find_sites(model, x[:1])
    statistics = collect_statistics(model, catalog, [x])
    return catalog, Quantizers(catalog, statistics, QuantSettings(), "cpu")


def run(model, x, labels=None, *, size=8, **options):
    catalog, quantizers = prepared(model, x)
    labels = torch.full((len(x),), -1) if labels is None else labels
    read = lambda numbers: (x[list(numbers)], labels[list(numbers)])  # noqa: E731
    spans = Span(0, len(x)).steps(size)
    return estimate_hessian(model, catalog, quantizers, spans, read, **options)


def test_every_sign_pattern_together_gives_the_trace_of_a_quadratic() -> None:
    a = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double()
    a = a + a.T
    x = torch.randn(5, dtype=torch.double, requires_grad=True)
    found = [
        curvatures(0.5 * x @ a @ x, [x], [torch.tensor(signs).double()])[0]
        for signs in itertools.product((-1, 1), repeat=5)
    ]
    assert np.mean(found) == pytest.approx(float(a.trace()))
    one = torch.ones(5, dtype=torch.double)
    assert curvatures((3 * x * x).sum(), [x], [one]) == [pytest.approx(30)]
    y = torch.ones(2, requires_grad=True)
    assert curvatures((2 * x).sum(), [x, y], [one, y.detach()]) == [0.0, None]


def within(found: Interval, exact: float) -> bool:
    """Whether an interval that is narrow enough to mean something holds the exact value."""
    return found.low < exact < found.high and found.high - found.low < 0.7 * exact


def test_the_estimate_is_half_the_exact_trace_times_the_squared_rounding_error() -> None:
    model = Tiny().eval()
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 3, 1, 2])
    parts = (Part.WEIGHTS, Part.ACTIVATIONS, Part.BOTH)
    found = run(model, x, labels, size=4, bits=(3,), parts=parts, probes=800)
    table = {(f.cell.module, f.cell.part): f.estimate for f in found}
    _, quantizers = prepared(model, x)
    catalog = find_sites(model, x[:1])

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.tanh(model.conv(x)).flatten(1) @ weight.T, labels)

    weight = model.head.weight.detach()
    hessian = torch.autograd.functional.hessian(loss, weight).reshape(32, 32)
    trace = float(hessian.trace()) / 32
    site = catalog["head"].weight_site
    error = float((quantizers.visit(site, 3)(weight) - weight).square().sum())
    of_weight = table["head", Part.WEIGHTS]
    assert of_weight.trace == pytest.approx(2 * of_weight.kl_nats.value / error)
    assert within(of_weight.kl_nats, 0.5 * trace * error)

    inputs = torch.tanh(model.conv(x)).flatten(1).detach()
    traces = [
        float(
            torch.autograd.functional.hessian(
                lambda row, label=label: F.cross_entropy(model.head(row[None]), label[None]), row
            ).trace()
        )
        for row, label in zip(inputs, labels, strict=True)
    ]
    (site,) = catalog["head"].activation_sites
    error = float((quantizers.visit(site, 3)(inputs) - inputs).square().sum()) / 4
    of_inputs = table["head", Part.ACTIVATIONS]
    assert within(of_inputs.kl_nats, 0.5 * np.mean(traces) / 8 * error)
    both = table["head", Part.BOTH].kl_nats.value
    assert both == pytest.approx(of_weight.kl_nats.value + of_inputs.kl_nats.value)


@pytest.mark.parametrize("family", sorted(BUILDERS))
def test_every_module_of_real_architectures_is_reached_without_labels(family: str) -> None:
    model = BUILDERS[family]()
    kept: dict = {}
    memory = ProbeMemory(keep=lambda span, number, probe: kept.__setitem__((span, number), probe))
    options = {"bits": (8, 3), "probes": 4, "size": 2}
    found = run(model, images(4), memory=memory, **options)
    assert all(f.estimate is not None for f in found)
    assert all(f.estimate.kl_nats.low >= 0 for f in found)
    assert [f.reason != "" for f in found] == [f.estimate.negative for f in found]
    assert len(kept) == 4
    known = dict(list(kept.items())[:3])
    fresh: list = []
    memory = ProbeMemory(known, lambda span, number, _probe: fresh.append((span.start, number)))
    again = run(model, images(4), memory=memory, **options)
    assert again == found
    assert fresh == [(2, 1)]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_batch_that_does_not_fit_is_taken_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tiny().eval()
    x = torch.randn(4, 3, 16, 16)
    forward, sizes = Tiny.forward, []

    def hungry(self: Tiny, batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > limit:
            raise torch.OutOfMemoryError("no room")
        return forward(self, batch)

    catalog, quantizers = prepared(model, x)
    monkeypatch.setattr(Tiny, "forward", hungry)
    read = lambda numbers: (x[list(numbers)], torch.full((len(numbers),), -1))  # noqa: E731
    limit = 2
    found = estimate_hessian(model, catalog, quantizers, [Span(0, 4)], read, bits=(4,), probes=2)
    assert sizes == [4, 2, 2] * 2
    assert {f.estimate.n for f in found} == {4}
    limit = 0
    with pytest.raises(MeasurementError, match=r"single image.*--mode fast"):
        estimate_hessian(model, catalog, quantizers, [Span(0, 4)], read, bits=(4,), probes=2)


class Fused(Tiny):
    """Calls an operation of torch that has one derivative only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = super().forward(x)[:, None, None]
        mixed, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(rows, rows, rows)
        return mixed[:, 0, 0]


def test_a_model_that_cannot_be_differentiated_twice_says_so() -> None:
    with pytest.raises(MeasurementError, match=r"Hessian of this model.*--mode fast"):
        run(Fused().eval(), torch.randn(2, 3, 16, 16), bits=(4,), probes=2)


def test_after_the_deadline_the_images_probed_so_far_count() -> None:
    model = Tiny().eval()
    x = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    limit = Deadline(at=2.0, clock=itertools.count(start=1.0).__next__)
    found = run(model, x, size=2, bits=(3,), probes=3, deadline=limit)
    assert limit.came
    early = run(model, x[:4], size=2, bits=(3,), probes=2)
    assert {one.estimate.n for one in found if one.estimate} == {4}
    for one, other in zip(found, early, strict=True):
        assert one.estimate is not None
        assert other.estimate is not None
        assert one.estimate.trace == pytest.approx(other.estimate.trace)


def test_two_processes_that_share_the_batches_find_what_one_finds() -> None:
    model = Tiny().eval()
    x = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    kept = {}
    memory = ProbeMemory(kept, lambda span, number, probe: kept.update({(span, number): probe}))
    for mine in ([Span(0, 2)], [Span(2, 4), Span(4, 6)], []):
        shared = run(model, x, size=2, bits=(3,), probes=6, memory=memory, mine=mine)
    assert len(kept) == 6
    assert shared == run(model, x, size=2, bits=(3,), probes=6)


def test_the_visits_are_gone_afterwards() -> None:
    model = BUILDERS["vit"]()
    x = images(2)
    before = model(x)
    run(model, x, bits=(4,), probes=2)
    catalog = find_sites(model, x[:1])
    with observing(model, catalog, {}):
        torch.testing.assert_close(model(x), before, rtol=0, atol=0)
