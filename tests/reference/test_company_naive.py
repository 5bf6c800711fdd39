"""Exchanges in a whole plan against full passes of the plain observer, and what is remembered."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch
from small_models import BUILDERS, images

from vitsense.deadline import Deadline, TimeIsUpError
from vitsense.discover import find_sites
from vitsense.observe import observing
from vitsense.sensitivity.company import Companions, CompanyMemory
from vitsense.sensitivity.ledger import Span
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.settings import Part, QuantSettings
from vitsense.statistics.collect import collect_statistics


def setting(family: str, **more) -> Companions:
    model = BUILDERS[family]()
    catalog = find_sites(model, images(1))
    statistics = collect_statistics(model, catalog, [images(8)])
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    spans = (Span(0, 2), Span(2, 4), Span(4, 5))
    batches = [(s, (x[s.start : s.stop], torch.full((len(s),), -1))) for s in spans]
    quantizers = Quantizers(catalog, statistics, QuantSettings(), "cpu")
    return Companions(model, catalog, quantizers, lambda: batches, **more)


def mixed(companions: Companions) -> dict[str, str]:
    names = [module.name for module in companions.catalog]
    return {name: ("int8", "int4", "int3")[i % 3] for i, name in enumerate(names)}


def naive(companions: Companions, plan, part: Part = Part.BOTH) -> float:
    """Mean over the images of sum p (log p - log q), in float64, each pass computed in full."""
    visits = {
        site.id: companions.quantizers.visit(site, plan[module.name])
        for module in companions.catalog
        for site in module.sites
        if part is Part.BOTH or site.is_weight == (part is Part.WEIGHTS)
    }
    total, n = 0.0, 0
    for _, (x, _) in companions.batches():
        with torch.no_grad():
            whole = torch.log_softmax(companions.model(x).double(), 1)
            with observing(companions.model, companions.catalog, visits):
                other = torch.log_softmax(companions.model(x).double(), 1)
        total += float((whole.exp() * (whole - other)).sum())
        n += len(x)
    return total / n


@pytest.mark.parametrize("family", BUILDERS)
def test_exchanges_equal_full_passes(family: str) -> None:
    companions = setting(family)
    plan = mixed(companions)
    exchanges = {name: ["int2", "int6"] for name in list(plan)[::5]}
    found = companions.exchanged(plan, exchanges)
    assert set(found) == set(exchanges)
    for name, forms in found.items():
        for form, kl in forms.items():
            assert kl == pytest.approx(naive(companions, {**plan, name: form}), rel=1e-4)
    even = dict.fromkeys(plan, "int8")
    for whole, values in zip((plan, even), companions.wholes([plan, even]), strict=True):
        assert len(values) == 5
        assert fmean(values) == pytest.approx(naive(companions, whole), rel=1e-4)


def test_only_the_planned_part_is_quantized() -> None:
    companions = setting("resnet", part=Part.WEIGHTS)
    plan = mixed(companions)
    found = fmean(companions.wholes([plan])[0])
    assert found == pytest.approx(naive(companions, plan, Part.WEIGHTS), rel=1e-4)
    assert found < 0.9 * naive(companions, plan)


def test_interrupted_work_is_not_done_again_and_gives_the_same_numbers() -> None:
    memory = CompanyMemory()
    undisturbed = setting("vit")
    plan = mixed(undisturbed)
    exchanges = {name: ["int2"] for name in list(plan)[::4]}
    expected = undisturbed.exchanged(plan, exchanges), undisturbed.wholes([plan])

    ticks = iter(range(100))
    stopped = setting("vit", memory=memory, deadline=Deadline(7, clock=lambda: next(ticks)))
    with pytest.raises(TimeIsUpError):
        stopped.exchanged(plan, exchanges)
    assert len(memory.sums) == 7
    again = setting("vit", memory=memory)
    assert (again.exchanged(plan, exchanges), again.wholes([plan])) == expected
    assert len(memory.sums) == 3 * len(exchanges)
    assert len(memory.values) == 3
    known = setting("vit", memory=memory)
    known.quantizers = None  # type: ignore[assignment]  # nothing is left to measure
    assert (known.exchanged(plan, exchanges), known.wholes([plan])) == expected


def test_the_model_is_given_back_as_it_was() -> None:
    companions = setting("swin")
    x = images(2)
    with torch.no_grad():
        before = companions.model(x)
        plan = mixed(companions)
        companions.exchanged(plan, {next(iter(plan)): ["int2"]})
        assert torch.equal(companions.model(x), before)
