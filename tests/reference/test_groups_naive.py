"""Groups in both directions against edited copies of the model, and what is remembered for them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import t
from small_models import BUILDERS, images

from vitsense.discover import find_sites
from vitsense.numerics import (
    Format,
    PerChannel,
    RangeMethod,
    fake_quantize,
    grid_from_tensor,
)
from vitsense.observe import observing
from vitsense.sensitivity.group_sweep import GroupLedger, _one_head, measure_groups
from vitsense.sensitivity.groups import MHSA, Group, Member, everything, groups_of
from vitsense.sensitivity.interval import paired_drop
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.recovery import recovery_of
from vitsense.settings import By, Direction, Part, QuantSettings
from vitsense.sites import Kind
from vitsense.statistics.collect import collect_statistics


def setting(family: str, n: int = 6):
    model = BUILDERS[family]()
    catalog = find_sites(model, images(1))
    statistics = collect_statistics(model, catalog, [images(8)])
    quantizers = Quantizers(catalog, statistics, QuantSettings(), "cpu")
    x = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    labels = torch.randint(0, 10, (n,), generator=torch.Generator().manual_seed(4))
    return model, catalog, quantizers, list(zip(x.split(2), labels.split(2), strict=True))


def logits_of(model, catalog, quantizers, names, width, part, x) -> torch.Tensor:
    """A full pass of the plain observer with the named modules quantized: no replay."""
    visits = {
        site.id: quantizers.visit(site, width)
        for module in catalog
        if module.name in names
        for site in module.sites
        if part is Part.BOTH or site.is_weight == (part is Part.WEIGHTS)
    }
    with torch.no_grad(), observing(model, catalog, visits):
        return model(x)


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("part", Part)
def test_both_directions_equal_full_passes_in_every_bit(family: str, part: Part) -> None:
    model, catalog, quantizers, batches = setting(family)
    groups = [*groups_of(catalog, By.ROLE)[::2], *groups_of(catalog, By.MODULE)[1::9]]
    found = measure_groups(model, catalog, quantizers, batches, groups, formats=(3,), parts=(part,))
    every = {m.name for m in catalog}
    assert len(found) == 1 + 2 * len(groups)
    for measured in found:
        names = {m.name for m in measured.group.modules}
        if not measured.group.within(part):
            assert measured.found is None
            assert measured.reason == "it has no weight"
            continue
        spared = measured.cell.direction is Direction.SPARED
        total, back = [], []
        for x, labels in batches:
            with torch.no_grad():
                reference = model(x)
            given = (model, catalog, quantizers)
            whole = logits_of(*given, every, 3, part, x)
            own = logits_of(*given, every - names if spared else names, 3, part, x)
            total.append(float((own.double() - reference.double()).square().sum()))
            back.append(recovery_of(reference, whole, own, labels))
        assert measured.found is not None
        assert measured.found.outcome.n == 6
        assert measured.found.outcome.noise == pytest.approx(sum(total), rel=1e-12)
        expected = back[0] + back[1] + back[2]
        assert (measured.found.recovery == expected) if spared else not measured.found.recovery


def test_everything_but_a_layer_equals_a_copy_with_that_layer_restored() -> None:
    """Weights of a ResNet by hand: every layer quantized, one put back."""
    model, catalog, quantizers, batches = setting("resnet")
    groups = groups_of(catalog, By.MODULE)
    found = measure_groups(
        model, catalog, quantizers, batches, groups, formats=(2,), parts=(Part.WEIGHTS,)
    )
    spared = {
        m.group.name: m.found
        for m in found
        if m.cell.direction is Direction.SPARED and m.group.by != "model"
    }
    twin = copy.deepcopy(model)
    for module in catalog:
        layer = twin.get_submodule(module.weight.removesuffix(".weight"))
        site = module.sites[0]
        with torch.no_grad():
            grid = quantizers.grid(site, 2, layer.weight)
            layer.weight.copy_(fake_quantize(layer.weight, grid))
    for name in ("layer2.0.conv1", "fc"):
        layer = twin.get_submodule(name)
        kept = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight.copy_(model.get_submodule(name).weight)
            noise = sum(float((twin(x) - model(x)).double().square().sum()) for x, _ in batches)
            layer.weight.copy_(kept)
        assert spared[name].outcome.noise == pytest.approx(noise, rel=1e-3)


def test_recovery_is_the_paired_difference_of_both_drops() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (60,), generator=rng)
    reference, whole, spared = (torch.randn(60, 4, generator=rng) for _ in range(3))
    found = recovery_of(reference, whole, spared, labels)
    drops = [100 * float((x.argmax(1) == labels).float().mean()) for x in (whole, spared)]
    assert found.points.value == pytest.approx(drops[1] - drops[0])
    regained = int(((spared.argmax(1) == labels) & (whole.argmax(1) != labels)).sum())
    relost = int(((spared.argmax(1) != labels) & (whole.argmax(1) == labels)).sum())
    plain = paired_drop(60, regained, relost)
    assert (found.points.low, found.points.high) == (100 * plain.low, 100 * plain.high)

    def kl(logits: torch.Tensor) -> np.ndarray:
        p, q = reference.double().log_softmax(1), logits.double().log_softmax(1)
        return (p.exp() * (p - q)).sum(1).numpy()

    gain = kl(whole) - kl(spared)
    low, high = t.interval(0.95, 59, gain.mean(), gain.std(ddof=1) / np.sqrt(60))
    assert found.kl_nats.value == pytest.approx(gain.mean())
    assert (found.kl_nats.low, found.kl_nats.high) == (pytest.approx(low), pytest.approx(high))
    halves = recovery_of(reference[:7], whole[:7], spared[:7], labels[:7]) + recovery_of(
        reference[7:], whole[7:], spared[7:], labels[7:]
    )
    assert halves.kl == pytest.approx(found.kl)
    assert halves.points == found.points
    blank = recovery_of(reference, whole, spared, torch.full_like(labels, -1))
    own = reference.argmax(1)
    kept = [100 * float((x.argmax(1) == own).float().mean()) for x in (whole, spared)]
    assert blank.points.value == pytest.approx(kept[1] - kept[0])
    assert type(found).from_list(found.to_list()) == found


@pytest.mark.parametrize("family", BUILDERS)
def test_every_grouping_divides_the_model(family: str) -> None:
    _, catalog, _, _ = setting(family, 2)
    sites = {site.id for site in catalog.sites}
    for by in (By.MODULE, By.ROLE, By.SITE):
        groups = [g for g in groups_of(catalog, by) if g.name != MHSA]
        members = [m.site.id for g in groups for m in g.members]
        assert len(members) == len(set(members))
        assert set(members) == sites
        assert sum(g.params for g in groups) == sum(m.params for m in catalog)
    names = [g.name for g in groups_of(catalog, By.ROLE)]
    assert (names[0] == MHSA) == (family != "resnet")
    blocks = groups_of(catalog, By.BLOCK)
    assert {g.name for g in blocks} == {m.block for m in catalog} - {""}
    assert {m.site.id for m in everything(catalog).members} == sites


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_one_head_is_quantized_and_the_others_are_not(family: str) -> None:
    _, catalog, quantizers, _ = setting(family, 2)
    groups = groups_of(catalog, By.HEAD)
    products = [m for m in catalog if m.kind is Kind.PRODUCT]
    assert len(groups) == sum(m.heads for m in products) // 2
    group = groups[1]
    assert {m.head for m in group.members} == {1}
    roles = sorted(m.site.role.value for m in group.members)
    assert roles == sorted(["weight"] * 3 + ["query", "key", "attention_probs", "value"])
    heads = group.members[0].module.heads
    inside = [m for m in group.members if m.site.is_weight]
    assert group.params == sum(m.module.params for m in inside) // heads

    for member in group.members:
        shape = (heads * 8, 24) if member.site.is_weight else (2, heads, 5, 8)
        tensor = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        visit = quantizers.visit(member.site, 2)
        if member.site.is_weight:
            grid = grid_from_tensor(tensor, Format(2), PerChannel(0), RangeMethod.MINMAX)

            def visit(x, grid=grid):
                return fake_quantize(x, grid)

        rounded = visit(tensor)
        alone, spared = (_one_head(visit, member, spared=s)(tensor) for s in (False, True))
        mine = (slice(8, 16),) if member.site.is_weight else (slice(None), 1)
        others = torch.ones_like(tensor, dtype=torch.bool)
        others[mine] = False
        assert torch.equal(alone[mine], rounded[mine])
        assert torch.equal(alone[others], tensor[others])
        assert torch.equal(spared[mine], tensor[mine])
        assert torch.equal(spared[others], rounded[others])


def test_all_heads_together_are_the_operands_and_projections() -> None:
    """The heads' slices unite to whole sites: one group of all heads equals one of those sites."""
    model, catalog, quantizers, batches = setting("vit")
    heads = [g for g in groups_of(catalog, By.HEAD) if g.name.startswith("blocks.0.attn head")]
    pairs = {(m.site.id): m for g in heads for m in g.members}
    whole = Group("head", "whole", tuple(Member(m.module, m.site) for m in pairs.values()))
    found = measure_groups(model, catalog, quantizers, batches, [*heads, whole], formats=(3,))
    noise = {(m.group.name, m.cell.direction): m.found.outcome.noise for m in found}
    assert 0 < max(noise[g.name, Direction.ALONE] for g in heads) < noise["whole", Direction.ALONE]
    everything_ = next(m.found.outcome.noise for m in found if m.group.by == "model")
    assert noise["whole", Direction.SPARED] != everything_


def test_known_outcomes_are_not_measured_again_and_give_the_same_table() -> None:
    model, catalog, quantizers, batches = setting("vit")
    groups = groups_of(catalog, By.ROLE)[:4]
    kept = []
    first = measure_groups(
        model,
        catalog,
        quantizers,
        batches,
        groups,
        formats=("int3", "mxfp4"),
        ledger=GroupLedger(keep=lambda *record: kept.append(record)),
    )
    assert len(kept) == 3 * len(first) == 3 * 2 * 9
    again = []
    second = measure_groups(
        model,
        catalog,
        quantizers,
        batches,
        groups,
        formats=("int3", "mxfp4"),
        ledger=GroupLedger(kept[::2], keep=lambda *record: again.append(record)),
    )
    assert second == first
    assert len(again) == len(kept) - len(kept[::2])


def test_when_memory_runs_out_the_batch_is_taken_in_halves(monkeypatch) -> None:
    model, catalog, quantizers, batches = setting("resnet")
    whole = [(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))]
    groups = groups_of(catalog, By.ROLE)
    expected = measure_groups(model, catalog, quantizers, whole, groups, formats=(3,))
    forward = type(model).forward

    def hungry(self, x):
        if len(x) > 3:
            raise torch.OutOfMemoryError("planted")
        return forward(self, x)

    monkeypatch.setattr(type(model), "forward", hungry)
    found = measure_groups(model, catalog, quantizers, whole, groups, formats=(3,))
    for one, other in zip(expected, found, strict=True):
        assert one.found.outcome.agree == other.found.outcome.agree
        assert one.found.outcome.kl == pytest.approx(other.found.outcome.kl, rel=1e-3)
        assert one.found.outcome.n == other.found.outcome.n == 6
