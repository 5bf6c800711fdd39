"""Flips counted against a literal loop; freezing and annealing hold what they should hold."""

from __future__ import annotations

import pytest
import torch
from small_models import BUILDERS, images
from torch import nn

from vitsense.discover import find_sites
from vitsense.plan.plan import ModulePlan, Plan
from vitsense.qat.freezing import ConfidenceGuidedAnnealing, IterativeFreezing, threshold_distance
from vitsense.qat.oscillation import OscillationTracker
from vitsense.qat.prepare import QuantizedModel, prepare_qat
from vitsense.qat.settings import QatSettings, WeightMethod
from vitsense.sites import SiteModule


@pytest.fixture(scope="module")
def prepared() -> QuantizedModel:
    """A ViT of which only two weights are rounded: a slice of a fused one, and a whole one."""
    model = BUILDERS["vit"]()
    names = ["blocks.0.attn.qkv.k", "blocks.1.mlp.fc1"]
    plan = Plan(modules=tuple(ModulePlan(name=n, bits=3, activation="float") for n in names))
    return prepare_qat(model, plan, calibration=[images(2)])


def restored(prepared: QuantizedModel) -> QuantizedModel:
    import copy

    return copy.deepcopy(prepared)


def moves(model: QuantizedModel, steps: int) -> list[dict[str, torch.Tensor]]:
    """Random steps of the weights, about one level each."""
    generator = torch.Generator().manual_seed(3)
    path = []
    for _ in range(steps):
        place = {}
        for module, quantizer, weight in model.quantized_weights():
            step, _ = quantizer.fixed_grid(weight)
            noise = torch.randn(weight.shape, generator=generator)
            place[module.name] = (weight + 0.6 * step * noise).detach()
        path.append(place)
    return path


def put(model: QuantizedModel, place: dict[str, torch.Tensor]) -> None:
    for module, _, _ in list(model.quantized_weights()):
        model.put_weight(module, place[module.name])


def test_flips_are_those_of_a_literal_loop(prepared: QuantizedModel) -> None:
    model = restored(prepared)
    tracker = OscillationTracker(model, momentum=0.1)
    codes = {m.name: [q.codes(w).flatten().tolist()] for m, q, w in model.quantized_weights()}
    for place in moves(model, 12):
        put(model, place)
        tracker.update(model)
        for module, quantizer, weight in model.quantized_weights():
            codes[module.name].append(quantizer.codes(weight).flatten().tolist())
    flips = 0
    for name, history in codes.items():
        expected = []
        for place in range(len(history[0])):
            frequency, last = 0.0, 0
            for before, now in zip(history, history[1:], strict=False):
                change = now[place] - before[place]
                flip = change * last < 0
                flips += flip
                frequency = 0.1 * flip + 0.9 * frequency
                last = change or last
            expected.append(frequency)
        assert tracker.frequency(name).flatten().tolist() == pytest.approx(expected, abs=1e-6)
        above = sum(f > 0.15 for f in expected) / len(expected)
        assert tracker.share(0.15)[name] == pytest.approx(above)
    assert flips > 1000


def test_all_state_survives_a_checkpoint(prepared: QuantizedModel) -> None:
    model = restored(prepared)
    path = moves(model, 8)
    whole, first = OscillationTracker(model), OscillationTracker(model)
    for place in path[:4]:
        put(model, place)
        whole.update(model)
        first.update(model)
    second = OscillationTracker(restored(prepared))
    second.load_state_dict(first.state_dict(), strict=True)
    for place in path[4:]:
        put(model, place)
        whole.update(model)
        second.update(model)
    for name, buffer in whole.state_dict().items():
        assert torch.equal(buffer, second.state_dict()[name]), name


def test_a_still_weight_never_oscillates(prepared: QuantizedModel) -> None:
    tracker = OscillationTracker(prepared)
    for _ in range(3):
        tracker.update(prepared)
    assert tracker.total_share(0.0) == 0.0


def test_frozen_weights_stay_on_their_level(prepared: QuantizedModel) -> None:
    model = restored(prepared)
    tracker = OscillationTracker(model, momentum=0.1)
    freezing = IterativeFreezing(model, momentum=0.1)
    path = moves(model, 10)
    for place in path[:6]:
        put(model, place)
        tracker.update(model)
        freezing.update(model, tracker, threshold=0.15)
    share = freezing.share()
    assert 0.05 < share < 0.95
    frozen = {
        name: value.clone()
        for name, value in freezing.state_dict().items()
        if name.endswith(":frozen")
    }
    held = {m.name: q.codes(w).clone() for m, q, w in model.quantized_weights()}
    with torch.no_grad():
        for quantizer in model.quantizers.values():
            quantizer.scale.mul_(1.1)  # the level moves with the step, the code does not
    put(model, path[7])
    freezing.update(model, tracker, threshold=0.15)
    for module, quantizer, weight in model.quantized_weights():
        mask = frozen[f"{module.name.replace('.', '/')}:frozen"]
        assert torch.equal(quantizer.codes(weight)[mask], held[module.name][mask])
        step, _ = quantizer.fixed_grid(weight)
        assert torch.equal((held[module.name] * step)[mask], weight.detach()[mask])
        assert not torch.equal(weight.detach()[~mask], (held[module.name] * step)[~mask])


def literal_distance(v: float, qmin: int, qmax: int) -> float:
    return min(abs(v - (code + 0.5)) for code in range(qmin, qmax))


def test_only_weights_near_a_threshold_move_in_annealing(prepared: QuantizedModel) -> None:
    model = restored(prepared)
    before = {m.name: w.detach().clone() for m, _, w in model.quantized_weights()}
    near = {}
    for module, quantizer, weight in model.quantized_weights():
        step, _ = quantizer.fixed_grid(weight)
        values = (weight.detach() / step).flatten().tolist()
        distances = [literal_distance(v, -4, 3) for v in values]
        assert threshold_distance(weight, quantizer).flatten().tolist() == pytest.approx(
            distances, abs=1e-4
        )
        near[module.name] = threshold_distance(weight, quantizer) <= 0.1
    annealing = ConfidenceGuidedAnnealing(boundary_range=0.1)
    annealing.hold(model)
    with torch.no_grad():
        for parameter in model.weight_parameters():
            parameter.add_(0.01)
    annealing.release(model)
    for module, _, weight in model.quantized_weights():
        moved = weight.detach() != before[module.name]
        assert torch.equal(moved, near[module.name])
        assert bool(moved.any())


def test_statistic_steps_are_tracked_as_well() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(48, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.flatten(1))

    model = Small()
    x = torch.randn(2, 3, 4, 4)
    modules: tuple[SiteModule, ...] = find_sites(model, x[:1]).modules
    plan = Plan(modules=(ModulePlan(name=modules[0].name, bits=2),))
    settings = QatSettings(weights=WeightMethod.STATISTIC)
    quantized = prepare_qat(model, plan, settings=settings, calibration=[x])
    tracker = OscillationTracker(quantized, momentum=0.5)
    for sign in (1, -1, 1, -1):
        with torch.no_grad():
            quantized.model.head.weight.mul_(-1 * abs(sign))
        tracker.update(quantized)
    assert tracker.total_share() > 0.9
