"""The sweep against a slow literal loop: edit a copy's weights, hook its inputs, compare."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from small_models import BUILDERS, images

from vitsense.discover import find_sites
from vitsense.sensitivity.ledger import Ledger
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.sweep import measure_exact, measure_joint
from vitsense.settings import Part, QuantSettings
from vitsense.sites import Kind
from vitsense.statistics.collect import collect_statistics

BITS = (8, 3)


def setting(family: str, n: int = 6):
    model = BUILDERS[family]()
    catalog = find_sites(model, images(1))
    statistics = collect_statistics(model, catalog, [images(8)])
    quantizers = Quantizers(catalog, statistics, QuantSettings(), "cpu")
    x = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    labels = torch.randint(0, 10, (n,), generator=torch.Generator().manual_seed(4))
    return model, catalog, quantizers, list(zip(x.split(2), labels.split(2), strict=True))


def grid_numbers(quantizers, site, bits, tensor):
    grid = quantizers.grid(site, bits, tensor)
    return grid.scale.double().numpy(), grid.zero_point.double().numpy(), grid.format


def rounded(x: torch.Tensor, scale, zero, form) -> torch.Tensor:
    """Round to nearest in numpy, float32 division as torch does it."""
    codes = np.rint((x.numpy() * (np.float32(1.0) / scale.astype(np.float32))).astype(np.float32))
    codes = np.clip(codes + zero, form.qmin, form.qmax)
    return torch.from_numpy(((codes - zero) * scale).astype(np.float32))


def naive_logits(model, module, quantizers, bits, part, x) -> torch.Tensor:
    """Quantize one whole linear or convolution module by hand, on a copy."""
    twin = copy.deepcopy(model)
    layer = twin.get_submodule(module.weight.removesuffix(".weight"))
    weight_site, input_site = module.sites
    if part is not Part.ACTIVATIONS:
        numbers = grid_numbers(quantizers, weight_site, bits, layer.weight.detach())
        with torch.no_grad():
            layer.weight.copy_(rounded(layer.weight.detach(), *numbers))
    if part is not Part.WEIGHTS:
        numbers = grid_numbers(quantizers, input_site, bits, None)
        layer.register_forward_pre_hook(lambda _m, args: (rounded(args[0], *numbers),))
    with torch.no_grad():
        return twin(x)


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("part", Part)
def test_outcomes_equal_the_naive_loop(family: str, part: Part) -> None:
    model, catalog, quantizers, batches = setting(family)
    measured = measure_exact(model, catalog, quantizers, batches, bits=BITS, parts=(part,))
    found = {(m.cell.module, m.cell.bits): m.outcome for m in measured}
    whole = [m for m in catalog if m.kind is not Kind.PRODUCT and m.channels is None]
    assert len(whole) > 4
    for module in whole[::2]:
        for bits in BITS:
            kl, lost, agree, noise = 0.0, 0, 0, 0.0
            for x, labels in batches:
                with torch.no_grad():
                    reference = model(x)
                logits = naive_logits(model, module, quantizers, bits, part, x)
                p = log_softmax(reference.double().numpy(), axis=1)
                q = log_softmax(logits.double().numpy(), axis=1)
                kl += float((np.exp(p) * (p - q)).sum())
                right = reference.argmax(1) == labels
                lost += int((right & (logits.argmax(1) != labels)).sum())
                agree += int((reference.argmax(1) == logits.argmax(1)).sum())
                noise += float((logits - reference).double().square().sum())
            outcome = found[module.name, bits]
            assert outcome.n == 6
            assert (outcome.lost, outcome.agree) == (lost, agree)
            assert outcome.kl == pytest.approx(kl, rel=2e-3, abs=1e-9)
            assert outcome.noise == pytest.approx(noise, rel=2e-3, abs=1e-9)


def test_all_slices_of_a_projection_together_equal_the_whole_projection() -> None:
    """q, k and v at equal bits is the fused weight, per channel, on the same rounded input."""
    model, catalog, quantizers, batches = setting("vit")
    names = [f"blocks.0.attn.qkv.{letter}" for letter in "qkv"]
    outcome = measure_joint(model, catalog, quantizers, batches, {"qkv": dict.fromkeys(names, 4)})[
        "qkv"
    ]
    twin = copy.deepcopy(model)
    layer = twin.blocks[0].attn.qkv
    parts = []
    for name in names:
        module = catalog[name]
        rows = layer.weight.detach()[list(module.channels)]
        parts.append(rounded(rows, *grid_numbers(quantizers, module.sites[0], 4, rows)))
    with torch.no_grad():
        layer.weight.copy_(torch.cat(parts))
    numbers = grid_numbers(quantizers, catalog[names[0]].sites[1], 4, None)
    layer.register_forward_pre_hook(lambda _m, args: (rounded(args[0], *numbers),))
    noise = 0.0
    for x, _ in batches:
        with torch.no_grad():
            noise += float((twin(x) - model(x)).double().square().sum())
    assert outcome.noise == pytest.approx(noise, rel=1e-3)


def test_products_have_no_weights_to_quantize_alone() -> None:
    model, catalog, quantizers, batches = setting("vit")
    measured = measure_exact(model, catalog, quantizers, batches, bits=(4,), parts=(Part.WEIGHTS,))
    rows = [m.row("exact") for m in measured]
    products = [r for r in rows if "product" in r["module"]]
    assert len(products) == 4
    assert all(r["status"] == "unmeasured" and r["reason"] == "it has no weight" for r in products)
    assert all(r["kl"] is None for r in products)
    assert len(rows) == len(catalog)


def test_sixteen_bits_lose_nothing_and_fewer_bits_lose_more() -> None:
    model, catalog, quantizers, batches = setting("swin")
    measured = measure_exact(model, catalog, quantizers, batches, bits=(16, 8, 4, 2))
    kl = {(m.cell.module, m.cell.bits): m.outcome.kl / m.outcome.n for m in measured}
    for module in catalog:
        # what remains at 16 bits is clipping of images beyond the calibrated range
        assert kl[module.name, 16] < 1e-4
    total = [sum(kl[m.name, b] for m in catalog) for b in (16, 8, 4, 2)]
    assert total == sorted(total)


def test_known_results_are_not_measured_again_and_give_the_same_table() -> None:
    model, catalog, quantizers, batches = setting("resnet")
    kept = []
    first = measure_exact(
        model,
        catalog,
        quantizers,
        batches,
        bits=BITS,
        ledger=Ledger(keep=kept.append),
    )
    assert len(kept) == 3 * len(catalog)
    again = []
    half = kept[::2]
    second = measure_exact(
        model,
        catalog,
        quantizers,
        batches,
        bits=BITS,
        ledger=Ledger(half, keep=again.append),
    )
    assert first == second
    assert again == kept[1::2]


def test_unlabelled_images_give_agreement_and_no_drop() -> None:
    model, catalog, quantizers, batches = setting("vit")
    blank = [(x, torch.full_like(y, -1)) for x, y in batches]
    row = measure_exact(model, catalog, quantizers, blank, bits=(3,))[0].row("exact")
    assert row["drop"] is None
    assert row["lost"] is None
    assert 0 <= row["agreement_low"] <= row["agreement"] <= row["agreement_high"] <= 100


def test_a_model_that_is_not_deterministic_takes_full_passes() -> None:
    class Noisy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = torch.nn.Linear(3, 3)
            self.head = torch.nn.Linear(3, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = self.first(x.mean((2, 3)))
            return self.head(features + torch.rand(1))

    model = Noisy().eval()
    catalog = find_sites(model, images(1))
    statistics = collect_statistics(model, catalog, [images(4)])
    quantizers = Quantizers(catalog, statistics, QuantSettings(), "cpu")
    notes = []

    class Listening:
        def start(self, total: int, label: str) -> None: ...
        def advance(self, steps: int, label: str = "") -> None: ...
        def note(self, text: str) -> None:
            notes.append(text)

        def close(self) -> None: ...

    measure_exact(
        model,
        catalog,
        quantizers,
        [(images(2), torch.tensor([0, 1]))],
        bits=(4,),
        progress=Listening(),
    )
    assert any("does not allow replay" in note for note in notes)


def test_logits_that_are_not_finite_are_an_error() -> None:
    from vitsense.errors import MeasurementError

    model, catalog, quantizers, batches = setting("resnet")
    with torch.no_grad():
        model.fc.bias[0] = float("nan")
    with pytest.raises(MeasurementError, match="not finite"):
        measure_exact(model, catalog, quantizers, batches, bits=(4,))
