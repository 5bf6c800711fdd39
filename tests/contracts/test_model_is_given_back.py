"""DESIGN 6.1 and 6.2: whatever happens, the model is as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_models import BUILDERS, RaisesOnCall, WithFrozenNorm, images

from vitsense.discover import find_sites
from vitsense.observe import ReplaySession, observing
from vitsense.plan.plan import ModulePlan, Plan
from vitsense.qat.prepare import convert, prepare_qat
from vitsense.sensitivity.draws import Draws
from vitsense.sensitivity.fisher import estimate_fisher
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.sweep import measure_exact, measure_joint
from vitsense.settings import QuantSettings
from vitsense.sites import SiteCatalog
from vitsense.statistics.collect import collect_statistics


def snapshot(model: torch.nn.Module) -> dict[str, Any]:
    """Everything about a model that a measurement could change."""
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__)
        for name, m in model.named_modules()
    ]
    return {
        "hooks": hooks,
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "identity": {k: id(v) for k, v in model.named_parameters()},
        "grads": {k: v.grad for k, v in model.named_parameters()},
        "requires_grad": {k: v.requires_grad for k, v in model.named_parameters()},
        "training": {name: m.training for name, m in model.named_modules()},
        "rng": torch.get_rng_state(),
        "modes": torch.overrides._get_current_function_mode_stack(),
        "grad_enabled": torch.is_grad_enabled(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for key in before.keys() - {"state", "rng"}:
        assert before[key] == after[key], key
    assert torch.equal(before["rng"], after["rng"])
    for name, value in before["state"].items():
        assert torch.equal(value, after["state"][name]), name


class Interrupting:
    """Batches that raise Ctrl-C before the second one."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield images(2), torch.tensor([0, 1])
        raise KeyboardInterrupt


def prepared(model: torch.nn.Module) -> tuple[SiteCatalog, Quantizers]:
    catalog = find_sites(model, images(1))
    statistics = collect_statistics(model, catalog, [images(4)])
    return catalog, Quantizers(catalog, statistics, QuantSettings(), "cpu")


def batches(n: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images(3), torch.tensor([0, 1, 2])) for _ in range(n)]


def do_find(model, catalog, quantizers) -> None:
    find_sites(model, images(1))


def do_collect(model, catalog, quantizers) -> None:
    collect_statistics(model, catalog, [images(2), images(2)])


def do_exact(model, catalog, quantizers) -> None:
    measure_exact(model, catalog, quantizers, batches(), bits=(8, 3))


def do_joint(model, catalog, quantizers) -> None:
    plan = {m.name: 4 for m in catalog}
    measure_joint(model, catalog, quantizers, batches(), {"all": plan})


def do_estimate(model, catalog, quantizers) -> None:
    x, labels = (torch.cat(part) for part in zip(*batches(), strict=True))
    read = lambda numbers: (x[list(numbers)], labels[list(numbers)])  # noqa: E731
    estimate_fisher(model, catalog, quantizers, read, Draws.every(len(x)), bits=(8, 3))


def do_qat(model, catalog, quantizers) -> None:
    plan = Plan(modules=tuple(ModulePlan(name=m.name, bits=4) for m in catalog))
    quantized = prepare_qat(model, plan, calibration=[images(2)]).eval()  # draws no numbers
    quantized(images(2)).sum().backward()
    with torch.no_grad():
        for parameter in quantized.parameters():
            parameter.add_(1.0)
    convert(quantized)


METHODS: dict[str, Callable[..., None]] = {
    "find_sites": do_find,
    "collect_statistics": do_collect,
    "measure_exact": do_exact,
    "measure_joint": do_joint,
    "estimate_fisher": do_estimate,
    "prepare_qat": do_qat,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", BUILDERS)
def test_after_a_normal_run(family: str, method: str) -> None:
    model = BUILDERS[family]()
    model.train()  # a measurement runs in eval mode and must undo that
    catalog, quantizers = prepared(model)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    METHODS[method](model, catalog, quantizers)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("method", ["measure_exact", "measure_joint", "collect_statistics"])
def test_after_ctrl_c_between_batches(method: str) -> None:
    model = BUILDERS["vit"]()
    catalog, quantizers = prepared(model)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        if method == "measure_exact":
            measure_exact(model, catalog, quantizers, Interrupting(), bits=(4,))
        elif method == "measure_joint":
            plan = {m.name: 4 for m in catalog}
            measure_joint(model, catalog, quantizers, Interrupting(), {"all": plan})
        else:
            collect_statistics(model, catalog, (x for x, _ in Interrupting()))
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_after_a_module_raises_in_the_middle(call: int) -> None:
    whole = RaisesOnCall(call=10**9)
    catalog, quantizers = prepared(whole)
    model = RaisesOnCall(call)
    model.load_state_dict(whole.state_dict())
    model.train()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="planted"):
        measure_exact(model, catalog, quantizers, batches(), bits=(8, 4))
    assert_same(before, snapshot(model))


def test_after_a_visit_raises() -> None:
    model = BUILDERS["swin"]()
    catalog = find_sites(model, images(1))

    def planted(_tensor: torch.Tensor) -> None:
        raise ValueError("planted")

    before = snapshot(model)
    with (
        pytest.raises(ValueError, match="planted"),
        observing(model, catalog, {catalog.sites[5].id: planted}),
    ):
        model(images(1))
    assert_same(before, snapshot(model))


def test_after_a_wrong_argument() -> None:
    model = BUILDERS["vit"]()
    before = snapshot(model)
    with pytest.raises(Exception, match="shape|size|channels|height"):
        find_sites(model, torch.zeros(1, 3, 7, 9))
    assert_same(before, snapshot(model))


def test_each_modules_own_training_flag_is_kept() -> None:
    model = WithFrozenNorm()
    flags = {name: m.training for name, m in model.named_modules()}
    assert flags["drop"] is True
    assert flags["norm"] is False
    find_sites(model, images(1))
    assert {name: m.training for name, m in model.named_modules()} == flags


def test_an_own_forward_on_the_instance_survives_replay() -> None:
    model = BUILDERS["vit"]()
    original = model.blocks[0].forward
    model.blocks[0].forward = lambda x: original(x)
    mine = model.blocks[0].__dict__["forward"]
    catalog = find_sites(model, images(1))
    with ReplaySession.open(model, catalog) as session:
        session.record(images(2))
    assert model.blocks[0].__dict__["forward"] is mine


def test_copies_made_afterwards_carry_no_hook() -> None:
    import copy

    model = BUILDERS["resnet"]()
    catalog, quantizers = prepared(model)
    do_exact(model, catalog, quantizers)
    twin = copy.deepcopy(model)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in twin.modules())
