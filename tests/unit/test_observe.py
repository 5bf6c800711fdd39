"""Visiting tensors, and what replaces them."""

from __future__ import annotations

import pytest
import timm
import torch
from small_models import images, tiny_vit
from torch import Tensor
from torch.nn import functional as F

from vitsense.discover import find_sites
from vitsense.errors import SiteMismatchError
from vitsense.observe import observing
from vitsense.sites import SiteCatalog


@pytest.fixture(scope="module")
def vit() -> tuple[torch.nn.Module, SiteCatalog]:
    model = tiny_vit()
    return model, find_sites(model, images(1))


def run(model: torch.nn.Module, catalog: SiteCatalog, visits: dict, x: Tensor) -> Tensor:
    with torch.no_grad(), observing(model, catalog, visits):
        return model(x)


def test_looking_changes_nothing(vit) -> None:
    model, catalog = vit
    x = images()
    seen: dict[str, Tensor] = {}
    visits = {s.id: (lambda t, key=s.id: seen.__setitem__(key, t)) for s in catalog.sites}
    with torch.no_grad():
        expected = model(x)
    logits = run(model, catalog, visits, x)
    assert set(seen) == {site.id for site in catalog.sites}
    # attention is spelled out to be seen, which rounds differently
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_replaced_weight_is_what_the_layer_uses(vit) -> None:
    model, catalog = vit
    x = images()
    logits = run(model, catalog, {"head:weight": torch.zeros_like}, x)
    torch.testing.assert_close(logits, model.head.bias.detach().expand_as(logits))


def test_replaced_slice_leaves_the_other_slices_alone(vit) -> None:
    """Zeroing V's weight equals zeroing V's rows in the fused weight."""
    model, catalog = vit
    x = images()
    name = "blocks.1.attn.qkv.v"
    logits = run(model, catalog, {f"{name}:weight": torch.zeros_like}, x)
    other = tiny_vit()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.blocks[1].attn.qkv.weight[48:] = 0
        expected = other(x)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


def test_input_of_one_slice_is_replaced_for_that_slice_only(vit) -> None:
    model, catalog = vit
    x = images()
    seen = {}
    logits = run(
        model,
        catalog,
        {
            "blocks.0.attn.qkv.q:input": lambda t: t * 0.5,
            "blocks.0.attn.qk_product:key": lambda t: seen.__setitem__("key", t.clone()),
        },
        x,
    )
    plain = {}
    expected = run(
        model,
        catalog,
        {"blocks.0.attn.qk_product:key": lambda t: plain.__setitem__("key", t.clone())},
        x,
    )
    assert torch.equal(seen["key"], plain["key"])
    assert not torch.equal(logits, expected)


def test_attention_probabilities_sum_to_one(vit) -> None:
    model, catalog = vit
    sums = []
    visits = {"blocks.0.attn.pv_product:attention_probs": lambda t: sums.append(t.sum(-1))}
    run(model, catalog, visits, images())
    torch.testing.assert_close(sums[0], torch.ones_like(sums[0]))


@pytest.mark.parametrize("masked", ["none", "bool", "float", "causal"])
def test_spelled_out_attention_equals_the_fused_one(masked: str) -> None:
    from vitsense.observe.attention import attention_output, attention_scores
    from vitsense.observe.operations import Call

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(3))
    kwargs: dict = {"scale": 0.7}
    if masked == "bool":
        kwargs["attn_mask"] = torch.ones(5, 5, dtype=torch.bool).tril()
    elif masked == "float":
        kwargs["attn_mask"] = torch.randn(5, 5, generator=generator)
    elif masked == "causal":
        kwargs["is_causal"] = True
    call = Call(F.scaled_dot_product_attention, (q, k, v), kwargs)
    ours = attention_output(call, attention_scores(call), v)
    torch.testing.assert_close(ours, call.run(), rtol=1e-5, atol=1e-6)


def test_multihead_attention_equals_torchs() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(2), _Attention())
    x = torch.randn(2, 6, 2, 4, generator=torch.Generator().manual_seed(0))
    catalog = find_sites(model, x[:1])
    with torch.no_grad():
        expected = model(x)
    looked = run(model, catalog, {s.id: (lambda _t: None) for s in catalog.sites}, x)
    torch.testing.assert_close(looked, expected, rtol=1e-5, atol=1e-6)


class _Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x, need_weights=False)
        return self.head(mixed.mean(1))


def test_unknown_site_is_refused(vit) -> None:
    model, catalog = vit
    with (
        pytest.raises(SiteMismatchError, match="No site 'blocks.9:weight'"),
        observing(model, catalog, {"blocks.9:weight": lambda t: t}),
    ):
        pass


def test_catalog_of_another_model_is_refused(vit) -> None:
    _, catalog = vit
    with (
        pytest.raises(SiteMismatchError, match="belongs to another model"),
        observing(timm.create_model("resnet18"), catalog, {}),
    ):
        pass


def test_calls_outside_the_model_are_not_touched(vit) -> None:
    model, catalog = vit
    hits = []
    with torch.no_grad(), observing(model, catalog, {"head:input": hits.append}):
        F.linear(torch.randn(2, 24), model.head.weight)
    assert hits == []
