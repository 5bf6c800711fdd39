"""What a name means, and what is suggested for one that means nothing."""

from __future__ import annotations

import pytest
import timm
import torchvision

from vitsense.errors import UserInputError
from vitsense.model_names import ALIASES, ModelSource, list_models, resolve_name

TORCHVISION = torchvision.models.list_models(module=torchvision.models)


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_means_a_model_of_timm_and_hides_none(alias: str) -> None:
    assert timm.is_model(ALIASES[alias])
    assert not timm.is_model(alias)


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_means_a_model_that_has_weights(alias: str) -> None:
    assert timm.is_model_pretrained(ALIASES[alias])


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_torchvision_name_resolves_and_says_to_what(name: str) -> None:
    found = resolve_name(name)
    assert found.source in {ModelSource.TIMM, ModelSource.TORCHVISION}
    assert found.note == "" if found.name == name and timm.is_model(name) else name in found.note
    forced = resolve_name(f"torchvision/{name}")
    assert (forced.source, forced.name) == (ModelSource.TORCHVISION, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("swin_t", "swin_tiny_patch4_window7_224"),
        ("swin_s", "swin_small_patch4_window7_224"),
        ("swin_v2_t", "swinv2_tiny_window8_256"),
        ("vit_b_16", "vit_base_patch16_224"),
        ("vit_l_16", "vit_large_patch16_224"),
        ("deit_t", "deit_tiny_patch16_224"),
        ("deit3_s", "deit3_small_patch16_224"),
        ("beit_b", "beit_base_patch16_224"),
        ("mobilenet_v3_large", "mobilenetv3_large_100"),
        ("regnet_y_400mf", "regnety_004"),
        ("Swin-T", "swin_tiny_patch4_window7_224"),
        ("ConvNeXt-Tiny", "convnext_tiny"),
    ],
)
def test_a_common_name_is_resolved_and_the_note_says_so(text: str, name: str) -> None:
    found = resolve_name(text)
    assert (found.source, found.name) == (ModelSource.TIMM, name)
    assert found.note == f"{text} is timm's {name}"


@pytest.mark.parametrize("text", ["resnet50", "timm/resnet50"])
def test_a_name_of_timm_is_taken_as_it_is(text: str) -> None:
    found = resolve_name(text)
    assert (found.source, found.name, found.note) == (ModelSource.TIMM, "resnet50", "")


def test_a_tag_of_timm_is_kept() -> None:
    assert resolve_name("resnet50.a1_in1k").name == "resnet50.a1_in1k"


def test_an_unknown_tag_lists_the_known_ones() -> None:
    with pytest.raises(UserInputError, match=r"resnet50 has no weights 'mine'; it has a1_in1k"):
        resolve_name("resnet50.mine")


@pytest.mark.parametrize("text", ["zoo/glyph_swin", "glyph_swin"])
def test_the_zoo_is_named_with_and_without_its_prefix(text: str) -> None:
    found = resolve_name(text)
    assert (found.source, found.name) == (ModelSource.ZOO, "glyph_swin")


def test_the_zoo_lists_what_it_has() -> None:
    with pytest.raises(UserInputError, match="no model 'x'; it has glyph_resnet, glyph_swin"):
        resolve_name("zoo/x")


@pytest.mark.parametrize("text", ["cifar:resnet20", "my_net.models:build", "a.b:C.make"])
def test_a_factory_is_known_by_its_colon(text: str) -> None:
    found = resolve_name(text)
    assert (found.source, found.name) == (ModelSource.FACTORY, text)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("swin_tny", "swin_t"),
        ("deit_tin", "deit_tiny"),
        ("resnet5", "resnet50"),
        ("vit_b16", "vit_b_16"),
        ("convnext_tinyy", "convnext_tiny"),
        ("torchvision/squeezenet", "torchvision/squeezenet1_1"),
        ("ViT-B/16", "vit_b_16"),
    ],
)
def test_an_unknown_name_gets_near_ones_that_begin_alike(text: str, near: str) -> None:
    with pytest.raises(UserInputError) as caught:
        resolve_name(text)
    message = str(caught.value)
    assert f"no model {text!r}" in message
    assert near in message.partition("Near names: ")[2].partition(".")[0].split(", ")


@pytest.mark.parametrize("text", ["", "?", "a b", "x:", ":y", "../../etc", "torchvision/", "zoo/"])
def test_any_text_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(UserInputError, match="no model"):
        resolve_name(text)


def test_a_detector_is_no_classifier() -> None:
    with pytest.raises(UserInputError, match="no model 'torchvision/fasterrcnn_resnet50_fpn'"):
        resolve_name("torchvision/fasterrcnn_resnet50_fpn")


def test_the_list_is_filtered_by_part_or_pattern() -> None:
    rows = dict(list_models("swin_t"))
    assert rows["swin_t"] == "alias of swin_tiny_patch4_window7_224"
    assert rows["swin_tiny_patch4_window7_224"] == "timm"
    assert rows["torchvision/swin_t"] == "torchvision"
    assert dict(list_models("zoo/*")).keys() == {"zoo/glyph_swin", "zoo/glyph_resnet"}
    assert list_models("no such thing") == []


def test_every_listed_name_can_be_asked_for() -> None:
    for name, _ in list_models()[::50]:
        assert resolve_name(name)
