"""Loading a model: weights, notes, classes, a person's own factory, and what goes wrong."""

from __future__ import annotations

import sys
import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vitsense.data import check_labels, open_source
from vitsense.errors import InputMissingError, MeasurementError, UserInputError
from vitsense.hub_access import offline_if_unreachable
from vitsense.models import Family, LoadedModel, family_of, load_model
from vitsense.settings import ModelRequest, WeightSource

CPU = torch.device("cpu")
SMALL = "test_vit"  # timm's own model for tests: 0.4 M parameters


def load(name: str, **options: Any) -> LoadedModel:
    return load_model(ModelRequest(name=name, **options), CPU)


def checkpoint(path: Path, model: nn.Module) -> Path:
    save_file(model.state_dict(), path)
    return path


@pytest.mark.parametrize(("name", "family"), [("glyph_swin", "vit"), ("glyph_resnet", "convnet")])
def test_the_zoo_brings_its_weights_and_preprocessing(name: str, family: str) -> None:
    model = load(f"zoo/{name}")
    assert (model.key, model.family.value, model.num_classes) == (name, family, 36)
    assert model.weights is WeightSource.ZOO
    assert model.preprocessing.input_size == (3, 32, 32)
    assert not model.module.training
    assert model.params == sum(p.numel() for p in model.module.parameters())


def test_random_weights_are_the_same_in_every_run_and_leave_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    one = load(SMALL, weights=WeightSource.RANDOM)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    two = load(SMALL, weights=WeightSource.RANDOM)
    assert one.digest == two.digest
    assert one.weights is WeightSource.RANDOM


def test_a_checkpoint_gives_exactly_its_weights(tmp_path: Path) -> None:
    theirs = timm.create_model(SMALL).eval()
    model = load(SMALL, checkpoint=checkpoint(tmp_path / "w.safetensors", theirs))
    image = torch.randn(1, *model.preprocessing.input_size)
    with torch.no_grad():
        assert torch.equal(model.module(image), theirs(image))
    assert model.weights is WeightSource.FILE
    assert model.notes == ()


def test_the_model_is_float32_in_eval_mode(tmp_path: Path) -> None:
    theirs = timm.create_model(SMALL).half().train()
    model = load(SMALL, checkpoint=checkpoint(tmp_path / "w.safetensors", theirs))
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    assert not any(m.training for m in model.module.modules())


def test_the_classes_of_a_fine_tuned_timm_model_are_taken_from_its_file_and_noted(
    tmp_path: Path,
) -> None:
    theirs = timm.create_model(SMALL, num_classes=7)
    model = load(SMALL, checkpoint=checkpoint(tmp_path / "mine.safetensors", theirs))
    assert model.num_classes == 7
    assert model.notes == (f"{SMALL} was built with 7 classes, as mine.safetensors has",)


def test_data_of_more_classes_than_the_checkpoint_is_refused(tmp_path: Path) -> None:
    theirs = timm.create_model(SMALL, num_classes=7)
    model = load(SMALL, checkpoint=checkpoint(tmp_path / "mine.safetensors", theirs))
    with pytest.raises(UserInputError, match="label 35, but test_vit has 7 classes"):
        check_labels(open_source(None), model.num_classes, model.key)


def test_a_wrong_number_of_classes_is_refused_where_the_model_is_fixed(tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    path = checkpoint(tmp_path / "w.safetensors", squeezenet1_1(num_classes=7))
    with pytest.raises(UserInputError, match="The file has 7 classes, the model 1000"):
        load("torchvision/squeezenet1_1", checkpoint=path)


def test_a_checkpoint_of_another_model_lists_what_differs(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "w.safetensors", timm.create_model("test_resnet"))
    with pytest.raises(UserInputError, match=r"Missing in the file.*Not in the model"):
        load(SMALL, checkpoint=path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    theirs = timm.create_model(SMALL)
    with torch.no_grad():
        theirs.head.weight[0, 0] = value
    with pytest.raises(MeasurementError, match=r"'head\.weight'.*not finite"):
        load(SMALL, checkpoint=checkpoint(tmp_path / "w.safetensors", theirs))


def test_a_checkpoint_and_random_weights_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="contradict"):
        ModelRequest(name=SMALL, checkpoint=tmp_path, weights=WeightSource.RANDOM)


def test_an_alias_is_noted() -> None:
    model = load("deit-t", weights=WeightSource.RANDOM)
    assert model.notes == ("deit-t is timm's deit_tiny_patch16_224",)
    assert model.key == "deit-t"


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing answers and nothing is cached, whatever the machine that runs the tests has."""
    from huggingface_hub import constants

    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", [SMALL, "torchvision/squeezenet1_1"])
def test_a_hub_out_of_reach_names_the_three_ways_out_and_soon(name: str) -> None:
    import socket

    from huggingface_hub import constants

    started = time.monotonic()
    with pytest.raises(InputMissingError) as caught:
        load(name)
    assert time.monotonic() - started < 20
    assert caught.value.exit_code == 3
    for way in ("(1)", "--checkpoint", "(2)", "HF_HOME", "(3)", "--weights random"):
        assert way in str(caught.value)
    assert constants.HF_HUB_OFFLINE is False
    assert socket.getdefaulttimeout() is None


@pytest.mark.usefixtures("no_network")
def test_a_hub_that_never_answers_is_waited_for_as_long_as_its_own_variable_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    over = threading.Event()

    def hang(*_: Any, **__: Any) -> None:
        over.wait(30)
        raise urllib.error.URLError("timed out")

    monkeypatch.setattr("urllib.request.urlopen", hang)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    started = time.monotonic()
    with offline_if_unreachable():
        assert constants.HF_HUB_OFFLINE is True
    assert time.monotonic() - started < 5
    over.set()


@pytest.mark.usefixtures("no_network")
def test_a_model_without_published_weights_says_so() -> None:
    name = next(n for n in timm.list_models("resnet*") if not timm.is_model_pretrained(n))
    with pytest.raises(InputMissingError, match=f"no pretrained weights of {name}"):
        load(name)


def test_an_error_of_another_kind_is_not_blamed_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(timm, "create_model", broken)
    with pytest.raises(ZeroDivisionError):
        load(SMALL)


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.fc = nn.Linear(5, classes)

    def forward(self, images):
        return self.fc(self.conv(images).mean((2, 3)))

def plain():
    torch.manual_seed(0)
    return Net()

def described():
    net = plain()
    net.input_size, net.mean, net.std = (3, 20, 24), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    return net

def configured():
    net = plain()
    net.default_cfg = {"input_size": (3, 16, 16), "mean": (0, 0, 0), "std": (1, 1, 1),
                       "interpolation": "bicubic", "crop_pct": 0.9}
    return net

def normalizes_itself():
    net = plain()
    net.register_buffer("mean", torch.zeros(1, 3, 1, 1))
    return net

def one_number():
    net = plain()
    net.input_size = 3
    net.input_size = [32]
    return net

def grey():
    net = plain()
    net.input_size = (1, 8, 8)
    return net

def fixed_size():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    return net

def sized():
    net = fixed_size()
    net.input_size = (3, 32, 32)
    return net

def maps():
    return nn.Conv2d(3, 4, 1)

class Pair(nn.Module):
    def forward(self, images):
        return images, images

def needs(classes):
    return Net(classes)

def raises():
    raise RuntimeError("no GPU here")

def late_import():
    import beside_it
    return beside_it.make()

made = plain()
number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the working folder."""
    (tmp_path / "own_models.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "beside_it.py").write_text(
        "def make():\n    from own_models import plain\n    return plain()\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield "own_models"
    assert sys.path == before
    for name in ("own_models", "beside_it"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("factory", ["plain", "Net", "made", "late_import"])
def test_a_module_in_the_working_folder_can_be_named(own: str, factory: str) -> None:
    model = load(f"{own}:{factory}")
    assert (model.num_classes, model.family) == (4, Family.CONVNET)
    assert model.weights is WeightSource.FACTORY


def test_what_a_factory_does_not_say_is_assumed_and_noted(own: str) -> None:
    model = load(f"{own}:plain")
    assert model.preprocessing.input_size == (3, 224, 224)
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)
    assert "says nothing about input_size, mean, std" in model.notes[0]


def test_a_factory_may_describe_its_preprocessing(own: str) -> None:
    model = load(f"{own}:described")
    assert model.preprocessing.input_size == (3, 20, 24)
    assert model.preprocessing.mean == (0.1, 0.2, 0.3)
    assert model.preprocessing.std == (0.4, 0.5, 0.6)
    assert model.notes == ()


def test_a_factory_may_carry_a_config_like_timms(own: str) -> None:
    found = load(f"{own}:configured").preprocessing
    assert (found.input_size, found.interpolation, found.crop_pct) == ((3, 16, 16), "bicubic", 0.9)


def test_a_models_own_normalization_is_not_taken_for_a_wish(own: str) -> None:
    model = load(f"{own}:normalizes_itself")
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)
    assert "mean" in model.notes[0]


def test_a_factory_can_be_given_a_checkpoint(own: str, tmp_path: Path) -> None:
    plain = load(f"{own}:plain")
    state = {f"module.{k}": v + 1 for k, v in plain.module.state_dict().items()}
    torch.save({"model": state}, tmp_path / "w.pth")
    model = load(f"{own}:plain", checkpoint=tmp_path / "w.pth")
    assert torch.equal(model.module.fc.bias, plain.module.fc.bias + 1)
    assert model.weights is WeightSource.FILE


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("nothing", "AttributeError.*no attribute 'nothing'"),
        ("number", "not callable"),
        ("needs", "takes no arguments"),
        ("raises", "RuntimeError: no GPU here"),
        ("grey", "takes images of 1x8x8"),
        ("one_number", "input_size is"),
        ("fixed_size", "fails on an image of 3x224x224.*input_size = "),
        ("maps", r"does not map images to logits.*Tensor of shape \(1, 4, 224, 224\)"),
        ("Pair", "does not map images to logits.*gives a tuple"),
    ],
)
def test_a_factory_that_cannot_be_used_says_why(own: str, factory: str, says: str) -> None:
    with pytest.raises(UserInputError, match=says):
        load(f"{own}:{factory}")


def test_a_factory_that_states_its_size_works(own: str) -> None:
    assert load(f"{own}:sized").num_classes == 10


@pytest.mark.parametrize("text", ["def broken(:\n", "1 / 0\n", "import not_there\n"])
def test_a_module_that_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "broken_models.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserInputError, match=r"'broken_models:make' cannot be used \(\w+Error"):
        load("broken_models:make")


def test_a_missing_module_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserInputError, match=rf"No module named 'nowhere'.*{tmp_path}"):
        load("nowhere:make")


def built(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name)
    return model


VITS = (
    "vit_tiny_patch16_224 deit_tiny_patch16_224 swin_tiny_patch4_window7_224 levit_128 "
    "swinv2_tiny_window8_256 cait_xxs24_224 pvt_v2_b0 mobilevit_s maxvit_tiny_rw_224 "
    "xcit_nano_12_p16_224 beit_base_patch16_224 eva02_tiny_patch14_224 twins_svt_small "
    "tiny_vit_5m_224 efficientvit_b0 efficientvit_m0 mvitv2_tiny crossvit_tiny_240 "
    "mobilevitv2_050 levit_conv_128s visformer_tiny"
)
CONVNETS = (
    "convnext_atto resnet18 seresnet18 ecaresnet26t mobilenetv3_small_050 efficientnet_b0 "
    "regnety_002 gcresnet33ts skresnet18 resnest14d vgg11 densenet121 repvgg_a0 dm_nfnet_f0"
)


@pytest.mark.parametrize("name", VITS.split())
def test_a_model_with_attention_over_tokens_is_a_vit(name: str) -> None:
    assert family_of(built(name)) is Family.VIT


@pytest.mark.parametrize("name", CONVNETS.split())
def test_a_model_with_convolutions_or_channel_attention_is_a_convnet(name: str) -> None:
    assert family_of(built(name)) is Family.CONVNET


def test_torchvisions_families_are_told_apart() -> None:
    from torchvision.models import get_model

    with torch.device("meta"):
        found = {n: family_of(get_model(n)).value for n in ("vit_b_32", "swin_t", "squeezenet1_1")}
    assert found == {"vit_b_32": "vit", "swin_t": "vit", "squeezenet1_1": "convnet"}
