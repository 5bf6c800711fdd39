"""A prepared model: every site rounded, the given model untouched, one grid before and after."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import timm
import torch
from small_models import BUILDERS, images
from torch import nn

from vitsense.discover import find_sites
from vitsense.errors import MeasurementError, SiteMismatchError, UserInputError
from vitsense.numerics import Grid, fake_quantize
from vitsense.plan.plan import ModulePlan, Plan
from vitsense.qat.prepare import QuantizedModel, convert, prepare_qat, restore_qat
from vitsense.qat.settings import Offsets, QatSettings, StepGradient, WeightMethod
from vitsense.settings import Granule, Part


def _convnext() -> nn.Module:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16), num_classes=10, ls_init_value=None)


def _levit() -> nn.Module:
    from timm.models.levit import Levit

    return Levit(
        img_size=64,
        embed_dim=(16, 32, 48),
        key_dim=8,
        num_heads=(2, 2, 2),
        depth=(1, 1, 1),
        num_classes=10,
    )


OTHERS = {
    "convnext": (_convnext, 32),
    "mobilenet": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=10), 32),
    "levit": (_levit, 64),
}


def plan_for(model: nn.Module, bits: int = 4) -> Plan:
    catalog = find_sites(model, images(1))
    last = len(catalog) - 1
    return Plan(
        modules=tuple(
            ModulePlan(name=m.name, bits=8 if i in (0, last) else bits)
            for i, m in enumerate(catalog)
        )
    )


def prepared(
    model: nn.Module, settings: QatSettings | None = None, bits: int = 4
) -> QuantizedModel:
    return prepare_qat(model, plan_for(model, bits), settings=settings, calibration=[images(4)])


SETTINGS = {
    "default": QatSettings(),
    "per head": QatSettings(per_head=True, weight_granularity=Granule.TENSOR),
    "statsq": QatSettings(weights=WeightMethod.STATISTIC, step_gradient=StepGradient.LSQ),
    "lsq+": QatSettings(offsets=Offsets.ALWAYS, step_gradient=StepGradient.LSQ),
}


@pytest.mark.parametrize("family", BUILDERS)
def test_every_site_has_a_quantizer_of_the_planned_width(family: str) -> None:
    model = BUILDERS[family]()
    quantized = prepared(model, bits=3)
    catalog = find_sites(model, images(1))
    assert list(quantized.quantizers) == [site.id for site in catalog.sites]
    middle = catalog.modules[1].sites[0].id
    assert quantized.quantizers[middle].bits == 3
    assert quantized.quantizers[catalog.sites[-1].id].bits == 8


def check_forward_backward_and_convert(quantized: QuantizedModel, size: int = 32) -> None:
    """Gradients reach every parameter, and the fixed grid gives the same logits in every bit."""
    quantized.train()(images(4, size)).square().sum().backward()
    missing = [
        name
        for name, p in quantized.named_parameters()
        if p.grad is None or not bool(p.grad.isfinite().all())
    ]
    assert missing == []
    quantized.eval()
    fixed = convert(quantized)
    with torch.no_grad():
        assert torch.equal(fixed(images(3, size)), quantized(images(3, size)))


@pytest.mark.parametrize(
    ("family", "setting"),
    [*(("vit", name) for name in SETTINGS), ("swin", "per head"), ("resnet", "default")],
)
def test_it_trains_and_converts_without_a_change(family: str, setting: str) -> None:
    check_forward_backward_and_convert(prepared(BUILDERS[family](), SETTINGS[setting]))


@pytest.mark.parametrize("family", ["convnext", "mobilenet", "levit"])
def test_more_families_train_and_convert(family: str) -> None:
    model, size = OTHERS[family]
    made = model().eval()
    catalog = find_sites(made, images(1, size))
    plan = Plan(modules=tuple(ModulePlan(name=m.name, bits=4) for m in catalog))
    quantized = prepare_qat(made, plan, calibration=[images(4, size)])
    assert len(quantized.quantizers) == len(catalog.sites)
    if family == "levit":  # q, k and v of a head lie side by side
        assert any(
            m.channels and m.channels[-1] - m.channels[0] >= len(m.channels) for m in catalog
        )
    check_forward_backward_and_convert(quantized, size)


def test_a_copy_and_a_restored_state_compute_the_same() -> None:
    model = BUILDERS["vit"]()
    settings = SETTINGS["per head"]
    quantized = prepared(model, settings).eval()
    with torch.no_grad():
        for parameter in quantized.parameters():
            parameter.mul_(1.01)
    restored = restore_qat(
        model, plan_for(model), quantized.state_dict(), settings=settings, image=images(1)
    ).eval()
    twin = copy.deepcopy(quantized)
    with torch.no_grad():
        expected = quantized(images(2))
        assert torch.equal(restored(images(2)), expected)
        assert torch.equal(twin(images(2)), expected)
        for parameter in twin.parameters():
            parameter.zero_()  # the copy has parameters of its own
        assert torch.equal(quantized(images(2)), expected)


def test_the_float_model_is_the_given_one() -> None:
    model = BUILDERS["resnet"]()
    plain = prepared(model).float_model()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in plain.modules())
    with torch.no_grad():
        assert torch.equal(plain(images(2)), model(images(2)))


def test_weights_stand_on_the_grid_that_numerics_computes() -> None:
    quantized = prepared(BUILDERS["vit"]())
    for _, quantizer, weight in quantized.quantized_weights():
        step, _ = quantizer.fixed_grid(weight)
        grid = Grid(quantizer.format, step, torch.zeros_like(step))
        assert torch.equal(quantizer(weight), fake_quantize(weight.detach(), grid))


def test_probabilities_are_unsigned_and_gelu_gets_an_offset() -> None:
    model = BUILDERS["vit"]()
    with torch.no_grad():  # random weights stay in the part of GELU that is nearly straight
        model.blocks[0].mlp.fc1.weight.mul_(30)
    quantizers = prepared(model).quantizers
    probs = quantizers["blocks.0.attn.pv_product:attention_probs"]
    after_gelu = quantizers["blocks.0.mlp.fc2:input"]
    after_norm = quantizers["blocks.0.mlp.fc1:input"]
    assert (probs.format.name, probs.offset) == ("uint4", None)
    assert after_gelu.format.name == "uint4"
    assert after_gelu.offset is not None
    assert (after_norm.format.name, after_norm.offset) == ("int4", None)


def test_q_k_and_v_of_a_fused_projection_have_steps_of_their_own() -> None:
    quantizers = prepared(BUILDERS["vit"]()).quantizers
    names = [f"blocks.0.attn.qkv.{part}:{role}" for part in "qkv" for role in ("weight", "input")]
    assert len({id(quantizers[name].scale) for name in names}) == 6


def test_a_head_of_its_own_has_a_step_of_its_own() -> None:
    quantizers = prepared(BUILDERS["vit"](), SETTINGS["per head"]).quantizers
    assert quantizers["blocks.0.attn.qk_product:query"].scale.shape == (3, 1, 1)
    assert quantizers["blocks.0.attn.qkv.q:weight"].scale.shape == (3, 1)


def test_modules_outside_the_plan_and_float_formats_stay_as_they_are() -> None:
    model = BUILDERS["vit"]()
    plan = Plan(modules=(ModulePlan(name="blocks.0.attn.qkv.k", bits=4, activation="float"),))
    quantized = prepare_qat(model, plan, calibration=[images(4)])
    assert list(quantized.quantizers) == ["blocks.0.attn.qkv.k:weight"]
    with torch.no_grad():
        quantized.quantizers["blocks.0.attn.qkv.k:weight"].scale.fill_(1e-7)
        quantized.model.blocks[0].attn.qkv.weight[24:48] = 0  # what is left of it
        model.blocks[0].attn.qkv.weight[24:48] = 0
        assert torch.allclose(quantized.eval()(images(2)), model(images(2)), atol=1e-5)


def test_the_wrong_plan_is_refused() -> None:
    vit, resnet = BUILDERS["vit"](), BUILDERS["resnet"]()
    with pytest.raises(SiteMismatchError, match="belongs to another model"):
        prepare_qat(resnet, plan_for(vit), calibration=[images(2)])
    other = Plan(modules=plan_for(vit).modules, model={"weights_digest": "0" * 16})
    with pytest.raises(SiteMismatchError, match="0000000000000000"):
        prepare_qat(vit, other, calibration=[images(2)])
    other = Plan(modules=plan_for(vit).modules, model={"sites_digest": "f" * 16})
    with pytest.raises(SiteMismatchError, match="ffffffffffffffff"):
        prepare_qat(vit, other, calibration=[images(2)])
    strange = Plan(modules=(ModulePlan(name="head", bits=4, weight="int33"),))
    with pytest.raises(UserInputError, match="33"):
        prepare_qat(vit, strange, calibration=[images(2)])


@pytest.mark.parametrize(
    ("entry", "quantization", "message"),
    [
        ({"weight": "mxfp4", "activation": "uint4"}, {}, "format 'mxfp4'.*int2 to int8"),
        ({"activation": "fp8_e4m3"}, {}, "format 'fp8_e4m3'.*--pin head=4"),
        ({}, {"attention_probs": "log2"}, "probabilities as log2"),
    ],
)
def test_a_plan_without_evenly_spaced_levels_is_refused(
    entry: dict[str, str], quantization: dict[str, str], message: str
) -> None:
    module = ModulePlan(name="head", bits=4, **entry)
    plan = Plan(modules=(module,), quantization=quantization)
    with pytest.raises(UserInputError, match=message):
        prepare_qat(BUILDERS["vit"](), plan, calibration=[images(2)])


def test_no_images_are_refused() -> None:
    with pytest.raises(MeasurementError, match="calibrate"):
        prepare_qat(BUILDERS["vit"](), plan_for(BUILDERS["vit"]()), calibration=[])


def test_a_state_of_another_format_is_refused() -> None:
    four, three = (prepared(BUILDERS["vit"](), bits=bits) for bits in (4, 3))
    with pytest.raises(RuntimeError, match="codes from"):
        three.load_state_dict(four.state_dict())
    with pytest.raises(SiteMismatchError, match="another prepared model"):
        restore_qat(
            BUILDERS["vit"](), plan_for(BUILDERS["vit"](), 3), four.state_dict(), image=images(1)
        )


def test_a_forward_that_raises_leaves_the_next_one_right() -> None:
    quantized = prepared(BUILDERS["vit"]()).eval()
    with torch.no_grad():
        expected = quantized(images(2))
        with pytest.raises(Exception, match="size|height|shape"):
            quantized(torch.zeros(1, 3, 7, 9))
        assert torch.equal(quantized(images(2)), expected)


def kept_bytes(model: nn.Module) -> int:
    """Bytes of distinct storages that autograd keeps of one forward, parameters left out."""
    mine = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images(8))
    return sum(sizes.values())


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_no_second_copy_is_kept_for_the_backward_pass(family: str) -> None:
    model = BUILDERS[family]().train()
    quantized = prepared(model).train()
    assert kept_bytes(quantized) <= 1.10 * kept_bytes(model)


def test_one_step_for_the_common_input_of_q_k_and_v() -> None:
    model = BUILDERS["vit"]()
    apart = prepared(model).eval()
    together = prepared(model, QatSettings(share_inputs=True)).eval()
    names = [f"blocks.0.attn.qkv.{part}:input" for part in "qkv"]
    assert len({id(together.quantizers[name]) for name in names}) == 1
    with torch.no_grad():  # calibration gave all three the same step
        torch.testing.assert_close(together(images(2)), apart(images(2)), rtol=1e-4, atol=1e-5)
        assert torch.equal(convert(together)(images(2)), together(images(2)))
    restored = restore_qat(
        model,
        plan_for(model),
        together.state_dict(),
        settings=QatSettings(share_inputs=True),
        image=images(1),
    )
    assert len({id(restored.quantizers[name]) for name in names}) == 1


def test_gradient_checkpointing_is_refused() -> None:
    model = BUILDERS["vit"]()
    plan = plan_for(model)
    model.set_grad_checkpointing(True)
    with pytest.raises(UserInputError, match="checkpointing"):
        prepare_qat(model, plan, calibration=[images(2)])


def test_mixed_precision_follows_single_precision() -> None:
    quantized = prepared(BUILDERS["swin"](), bits=8)  # in eval mode: no random depth
    found = []
    for mixed in (False, True):
        quantized.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = quantized(images(4)).float().square().sum()
        loss.backward()
        weights = [p.grad.flatten() for p in quantized.weight_parameters() if p.grad is not None]
        found.append(torch.cat(weights))
    similarity = torch.nn.functional.cosine_similarity(found[0], found[1], dim=0)
    assert float(similarity) > 0.98


@pytest.mark.parametrize("method", WeightMethod)
def test_weights_that_are_computed_before_use_are_rounded_as_they_are_used(
    method: WeightMethod,
) -> None:
    from timm.layers import StdConv2d

    model = nn.Sequential(StdConv2d(3, 6, 3), nn.Flatten(), nn.Linear(6 * 64, 10)).eval()
    catalog = find_sites(model, images(1, 8))
    assert catalog.modules[0].derived_weight
    plan = Plan(modules=tuple(ModulePlan(name=m.name, bits=3) for m in catalog))
    settings = QatSettings(weights=method)
    quantized = prepare_qat(model, plan, settings=settings, calibration=[images(4, 8)])
    check_forward_backward_and_convert(quantized, 8)


class OneAttention(nn.Module):
    """The smallest model with a fused projection and an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, 36)
        self.head = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).unflatten(2, (-1, 4)).mean(3).transpose(1, 2).repeat(1, 1, 4)
        qkv = self.qkv(tokens).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(*qkv.unbind(0))
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


def test_it_compiles_to_one_graph_and_gives_the_same() -> None:
    torch.manual_seed(0)
    model, x = OneAttention().eval(), images(3, 8)
    catalog = find_sites(model, x[:1])
    assert [m.name for m in catalog][:3] == ["qkv.q", "qkv.k", "qkv.v"]
    plan = Plan(modules=tuple(ModulePlan(name=m.name, bits=4) for m in catalog))
    eager = prepare_qat(model, plan, calibration=[x]).train()
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    expected, result = eager(x), compiled(x)
    torch.testing.assert_close(result, expected)
    expected.square().sum().backward()
    result.square().sum().backward()
    for a, b in zip(eager.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("part", [Part.WEIGHTS, Part.ACTIVATIONS])
def test_a_plan_of_one_part_rounds_that_part_alone(part: Part) -> None:
    """As ``vitsense analyze --parts weights`` plans: its entries name both formats."""
    model = BUILDERS["vit"]()
    plan = replace(plan_for(model), quantization={"part": part.value})
    quantized = prepare_qat(model, plan, calibration=[images(2)])
    both = prepare_qat(model, plan_for(model), calibration=[images(2)])
    expected = {key for key in both.quantizers if key.endswith(":weight") == (part is Part.WEIGHTS)}
    assert set(quantized.quantizers) == expected
    assert expected
    quantized(images(2)).sum().backward()  # and it trains
