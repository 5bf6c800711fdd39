"""Regularizers against slow literal loops in float64 and against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import BUILDERS, images
from torch import Tensor

from vitsense.plan.plan import ModulePlan, Plan
from vitsense.qat.prepare import QuantizedModel, prepare_qat
from vitsense.qat.regularize import BinReduction, dampening_loss, obr_loss, ramp
from vitsense.qat.settings import QatSettings, WeightMethod
from vitsense.settings import Granule

NAMES = ("blocks.0.attn.qkv.k", "blocks.1.mlp.fc1")
SETTINGS = {
    "per tensor": QatSettings(weight_granularity=Granule.TENSOR),
    "per channel": QatSettings(),
    "per head": QatSettings(weight_granularity=Granule.TENSOR, per_head=True),
    "statsq": QatSettings(weights=WeightMethod.STATISTIC),
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def prepared(settings: QatSettings, bits: int = 3) -> QuantizedModel:
    """Two rounded weights, steps made small enough that some weights lie beyond the grid."""
    plan = Plan(modules=tuple(ModulePlan(name=n, bits=bits, activation="float") for n in NAMES))
    model = prepare_qat(BUILDERS["vit"](), plan, settings=settings, calibration=[images(2)])
    with torch.no_grad():
        for parameter in model.scale_parameters():
            parameter.mul_(0.7)
    return model


def literal(
    model: QuantizedModel, weights: dict[str, Tensor], reduction: BinReduction, *, bins: bool = True
) -> Tensor:
    """The definition, one weight and one bin after the other, differentiable, float64."""
    total = torch.zeros((), dtype=torch.float64)
    for module, quantizer, weight in model.quantized_weights():
        w = weights[module.name]
        step, offset = quantizer.fixed_grid(weight)
        step = step.double().expand_as(w)
        shift = torch.zeros_like(w) if offset is None else offset.double().expand_as(w)
        codes = quantizer.codes(weight)
        low, high = step * quantizer.format.qmin + shift, step * quantizer.format.qmax + shift
        clipped = torch.minimum(torch.maximum(w, low), high)
        distance = (clipped - (codes * step + shift)).square()
        total = total + (distance.mean() if reduction is BinReduction.PUBLISHED else distance.sum())
        if not bins:
            continue
        for rows in range(quantizer.groups):
            part = slice(
                rows * (w.shape[0] // quantizer.groups),
                (rows + 1) * (w.shape[0] // quantizer.groups),
            )
            for code in range(quantizer.format.qmin, quantizer.format.qmax + 1):
                members = clipped[part][codes[part] == code]
                if reduction is BinReduction.SUM and len(members):
                    total = total + (members - members.mean()).square().sum()
                elif reduction is not BinReduction.SUM and len(members) > 1:
                    total = total + members.var(unbiased=True)
    return total


def leaves(model: QuantizedModel) -> dict[str, Tensor]:
    return {m.name: w.detach().double().requires_grad_() for m, _, w in model.quantized_weights()}


def gradients(model: QuantizedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    grads = {name: p.grad for name, p in model.model.named_parameters()}
    return {
        m.name: grads[m.weight][list(m.channels)] if m.channels else grads[m.weight]
        for m, _, _ in model.quantized_weights()
    }


@every_setting
@pytest.mark.parametrize("reduction", BinReduction)
def test_bins_equal_the_literal_loop(settings: QatSettings, reduction: BinReduction) -> None:
    model = prepared(settings)
    weights = leaves(model)
    expected = literal(model, weights, reduction)
    loss = obr_loss(model, reduction)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    for name, gradient in gradients(model, loss).items():
        theirs = weights[name].grad
        beyond = theirs == 0  # a clipped member moves its bin's mean, not its own gradient
        assert bool((~beyond).any())
        if settings.weights is WeightMethod.LEARNED:
            assert bool(beyond.any())
        torch.testing.assert_close(gradient.double(), theirs, rtol=1e-3, atol=1e-7)


@every_setting
def test_dampening_equals_the_literal_loop(settings: QatSettings) -> None:
    model = prepared(settings)
    weights = leaves(model)
    expected = literal(model, weights, BinReduction.SUM, bins=False)
    loss = dampening_loss(model)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    for name, gradient in gradients(model, loss).items():
        torch.testing.assert_close(gradient.double(), weights[name].grad, rtol=1e-3, atol=1e-7)


def test_the_steps_get_no_gradient() -> None:
    model = prepared(QatSettings())
    (obr_loss(model) + dampening_loss(model)).backward()
    assert all(parameter.grad is None for parameter in model.scale_parameters())


def test_eight_bit_weights_are_left_out() -> None:
    model = prepared(QatSettings(), bits=8)
    assert obr_loss(model).item() == 0.0
    assert dampening_loss(model).item() == 0.0
    assert obr_loss(model, widest=8).item() > 0.0


def test_the_strength_rises_as_published() -> None:
    """Huang et al. 2024's code with 150 epochs: the values of its schedule at five epochs."""
    for epoch, strength in ((38, 0.0), (60, 9.5e-4), (80, 3.1e-3), (100, 5.9e-3), (140, 9.8e-3)):
        assert 0.01 * ramp(epoch / 150) == pytest.approx(strength, abs=8e-5)
    assert ramp(1.0) == 1.0
    assert math.isclose(ramp(0.5, start=0.0), 0.5)
