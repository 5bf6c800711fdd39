"""DESIGN 6.4: replay gives the logits of a full pass, bit for bit."""

from __future__ import annotations

import pytest
import timm
import torch
from small_models import BUILDERS, images

from vitsense.discover import find_sites
from vitsense.observe import ReplaySession
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.settings import Part, QuantSettings
from vitsense.statistics.collect import collect_statistics
from vitsense.zoo import create_zoo_model


def check_all(model: torch.nn.Module, x: torch.Tensor, every: int = 1) -> int:
    """Compare replay with the full pass for all (every n-th) modules; gives the tensors kept."""
    catalog = find_sites(model, x[:1])
    quantizers = Quantizers(
        catalog, collect_statistics(model, catalog, [x]), QuantSettings(), "cpu"
    )
    with ReplaySession.open(model, catalog) as session:
        reference = session.record(x)
        kept = sum(unit.intact for unit in session._units.values())
        with torch.no_grad():
            assert torch.equal(reference, session.full({}))
        changed = 0
        for module in catalog.modules[::every]:
            visits = quantizers.visits(module, 3, Part.BOTH)
            replayed, full = session.replay(visits, module), session.full(visits)
            assert torch.equal(replayed, full), module.name
            changed += not torch.equal(replayed, reference)
        assert session.unharmed()
    assert changed >= 1  # 3 bits must be seen, though fresh residual branches may be dead
    return kept


@pytest.mark.parametrize("family", BUILDERS)
def test_replay_equals_the_full_pass_for_every_module(family: str) -> None:
    assert check_all(BUILDERS[family](), images(3)) > 5


def test_every_module_of_a_trained_model_matters_at_three_bits() -> None:
    """Guards the tests above: a visit that is never called would pass them."""
    model = create_zoo_model("glyph_resnet")
    x = images(4)
    catalog = find_sites(model, x[:1])
    quantizers = Quantizers(
        catalog, collect_statistics(model, catalog, [x]), QuantSettings(), "cpu"
    )
    with ReplaySession.open(model, catalog) as session:
        reference = session.record(x)
        for module in catalog:
            visits = quantizers.visits(module, 3, Part.BOTH)
            assert not torch.equal(session.replay(visits, module), reference), module.name


@pytest.mark.parametrize(
    ("name", "size", "every"),
    [
        ("convnext_atto", 64, 7),
        ("mobilenetv3_small_050", 64, 9),
        ("efficientnet_b0", 64, 13),
        ("levit_128s", 224, 13),
        ("pvt_v2_b0", 64, 13),
        ("regnety_002", 64, 11),
    ],
)
def test_replay_equals_the_full_pass_on_other_families(name: str, size: int, every: int) -> None:
    torch.manual_seed(0)
    check_all(timm.create_model(name).eval(), images(2, size), every)


def test_outputs_changed_in_place_are_not_remembered() -> None:
    class InPlace(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = torch.nn.Conv2d(3, 4, 3)
            self.second = torch.nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = self.first(x)
            features.relu_()  # changes the output of `first` after it was given
            return self.second(features.mean((2, 3)))

    model = InPlace().eval()
    catalog = find_sites(model, images(1))
    with ReplaySession.open(model, catalog) as session:
        reference = session.record(images(2))
        assert not session._units["first"].intact
        assert torch.equal(session.replay({}, catalog["second"]), reference)


def test_modules_that_run_twice_are_not_remembered() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.shared = torch.nn.Linear(3, 3)
            self.head = torch.nn.Linear(3, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.shared(self.shared(x.mean((2, 3)))))

    model = Twice().eval()
    catalog = find_sites(model, images(1))
    assert [m.name for m in catalog] == ["shared", "head"]
    assert catalog["shared"].macs == 2 * 9
    with ReplaySession.open(model, catalog) as session:
        session.record(images(2))
        assert not session._units["shared"].intact
        visits = {"shared:weight": lambda w: w * 2}
        assert torch.equal(session.replay(visits, catalog["shared"]), session.full(visits))


def test_replay_skips_what_ran_before() -> None:
    model = BUILDERS["vit"]()
    catalog = find_sites(model, images(1))
    ran = []
    model.blocks[0].mlp.act.register_forward_hook(lambda *_: ran.append("early"))
    with ReplaySession.open(model, catalog) as session:
        session.record(images(2))
        ran.clear()
        session.replay({}, catalog["head"])
        assert ran == []
        session.full({})
        assert ran == ["early"]
