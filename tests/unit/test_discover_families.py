"""Sites of timm's families, found without a change to any model and without reading their code."""

from __future__ import annotations

from collections import Counter

import pytest
import timm
import torch

from vitsense.discover import find_sites
from vitsense.sites import Kind, SiteRole

# model, options that make it smaller, image size (None: its own), attentions, whether q, k, v come
# out split
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 64}, 64, 12, True),
    "deit": ("deit_tiny_distilled_patch16_224", {"img_size": 64}, 64, 12, True),
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": 112, "embed_dim": 48}, 112, 12, True),
    "swinv2": ("swinv2_tiny_window8_256", {"img_size": 128, "embed_dim": 48}, 128, 12, True),
    "cait": ("cait_xxs24_224", {"img_size": 64}, 64, 26, True),
    "levit": ("levit_128s", {}, None, 11, True),
    "pvt_v2": ("pvt_v2_b0", {}, 64, 8, True),
    "mobilevit": ("mobilevit_xxs", {}, 128, 9, True),
    "maxvit": ("maxvit_pico_rw_256", {"img_size": 64}, 64, 22, True),
    "xcit": ("xcit_nano_12_p16_224", {}, 64, 14, True),
    "beit": (
        "beit_base_patch16_224", {"img_size": 64, "embed_dim": 192, "num_heads": 3}, 64, 12, True,
    ),
    "eva02": ("eva02_tiny_patch14_224", {"img_size": 56}, 56, 12, True),
    "twins": ("twins_svt_small", {"embed_dims": (32, 64, 128, 256)}, None, 18, True),
    "tiny_vit": ("tiny_vit_5m_224", {}, None, 10, True),
    "efficientvit_msra": ("efficientvit_m0", {}, None, 24, True),
    "efficientvit": ("efficientvit_b0", {}, None, 0, False),
    "mvitv2": ("mvitv2_tiny", {"img_size": 64}, 64, 10, True),
    "crossvit": ("crossvit_tiny_240", {}, None, 21, True),
    "convnext": ("convnext_atto", {}, 64, 0, False),
    "resnet": ("resnet18", {}, 64, 0, False),
    "mobilenetv3": ("mobilenetv3_small_050", {}, 64, 0, False),
    "efficientnet": ("efficientnet_b0", {}, 64, 0, False),
    "regnet": ("regnety_002", {}, 64, 0, False),
    "nfnet": ("nfnet_l0", {}, 64, 0, False),
}  # fmt: skip


def built(family: str) -> tuple[torch.nn.Module, torch.Tensor]:
    name, options, size, _, _ = FAMILIES[family]
    model = timm.create_model(name, **options).eval()
    side = size or timm.data.resolve_model_data_config(model)["input_size"][-1]
    return model, torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_operation_is_a_site_or_listed(family: str) -> None:
    *_, attentions, split = FAMILIES[family]
    model, image = built(family)
    catalog = find_sites(model, image)
    roles = Counter(module.role.value for module in catalog)

    # every attention is seen, with both of its products
    assert roles["qk_product"] == roles["pv_product"] == attentions
    if split:
        assert roles["q"] == roles["k"] == roles["v"] == attentions
        assert roles["qkv"] == 0
    # every dense weight of the model is a site's or has a reason
    weights = {module.weight for module in catalog}
    listed = " ".join(entry.name for entry in catalog.uncovered)
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            assert f"{name}.weight" in weights or f"{name}.weight" in listed or name in listed, name
    # slices of a fused weight are disjoint and complete
    for weight in weights - {None}:
        parts = [m for m in catalog if m.weight == weight and m.channels is not None]
        if parts:
            channels = sorted(c for part in parts for c in part.channels or ())
            assert channels == list(range(len(channels)))
            assert len(channels) == dict(model.named_parameters())[weight].shape[0]
    # parameters are accounted for, once
    covered = sum(module.params for module in catalog)
    rest = sum(entry.params for entry in catalog.uncovered)
    assert covered + rest == sum(p.numel() for p in model.parameters())
    assert [m.index for m in catalog] == list(range(len(catalog)))
    assert len({m.name for m in catalog}) == len(catalog)


def test_interleaved_heads_are_told_apart() -> None:
    """LeViT stores q, k, v per head; taking thirds of its qkv would mix them."""
    model, image = built("levit")
    query = next(m for m in find_sites(model, image) if m.role.value == "q")
    assert query.channels is not None
    assert query.channels != tuple(range(len(query.channels)))


def test_q_k_v_of_a_vit_are_the_thirds_of_its_projection() -> None:
    model, image = built("vit")
    parts = [m for m in find_sites(model, image) if m.weight == "blocks.0.attn.qkv.weight"]
    assert [m.name for m in parts] == [f"blocks.0.attn.qkv.{letter}" for letter in "qkv"]
    assert [m.channels for m in parts] == [
        tuple(range(start, start + 192)) for start in (0, 192, 384)
    ]
    assert len({site.tensor for m in parts for site in m.activation_sites}) == 1


def test_fused_and_spelled_out_attention_have_the_same_sites() -> None:
    model, image = built("vit")
    fused = find_sites(model, image)
    for block in model.blocks:
        block.attn.fused_attn = False
    plain = find_sites(model, image)
    assert [m.name for m in fused] == [m.name for m in plain]
    assert [m.role for m in fused] == [m.role for m in plain]
    assert [s.role for s in fused.sites] == [s.role for s in plain.sites]
    assert [m.macs for m in fused] == [m.macs for m in plain]


def test_multihead_attention_module_is_taken_apart() -> None:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(64, 32, 12, 12, hidden_dim=192, mlp_dim=768).eval()
    catalog = find_sites(model, torch.randn(1, 3, 64, 64))
    roles = Counter(m.role.value for m in catalog)
    assert roles["q"] == roles["k"] == roles["v"] == roles["projection"] == 12
    assert roles["qk_product"] == roles["pv_product"] == 12
    assert roles["ffn"] == 24


def test_multiply_accumulates_of_a_vit_are_those_of_its_shapes() -> None:
    model, image = built("vit")
    catalog = find_sites(model, image)
    tokens, width, heads = 17, 192, 3
    by_name = {m.name: m.macs for m in catalog}
    assert by_name["blocks.0.attn.qkv.q"] == tokens * width * width
    assert by_name["blocks.0.mlp.fc1"] == tokens * width * 4 * width
    assert by_name["blocks.0.attn.qk_product"] == heads * tokens * tokens * (width // heads)
    assert by_name["patch_embed.proj"] == 16 * width * 3 * 16 * 16


def test_weight_standardization_is_quantized_after_it() -> None:
    model, image = built("nfnet")
    catalog = find_sites(model, image)
    assert any(m.derived_weight for m in catalog)
    assert all(m.weight is not None for m in catalog if m.kind is not Kind.PRODUCT)


def test_names_of_sites_are_unique() -> None:
    model, image = built("swin")
    sites = find_sites(model, image).sites
    ids = [site.id for site in sites]
    assert len(set(ids)) == len(ids)
    assert {site.role for site in sites} >= {
        SiteRole.WEIGHT,
        SiteRole.INPUT,
        SiteRole.QUERY,
        SiteRole.KEY,
        SiteRole.ATTENTION_PROBS,
        SiteRole.VALUE,
    }
