"""Weights from files: the usual nestings, strictness, and files that must not be trusted."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_models import tiny_resnet, tiny_swin, tiny_vit
from torch import Tensor, nn

from vitsense.checkpoints import (
    check_finite,
    classes_of,
    load_strictly,
    read_state,
    renamed_for,
    weights_digest,
)
from vitsense.errors import InputMissingError, MeasurementError, UserInputError

State = dict[str, Tensor]


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("body", nn.Linear(4, 5))
    model.add_module("head", nn.Linear(5, classes))
    return model


class Wrapped(nn.Module):
    """A person's model whose own names begin like a wrapper's."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()


def saved(path: Path, data: Any) -> Path:
    torch.save(data, path)
    return path


def renamed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def load(path: Path, model: nn.Module) -> nn.Module:
    load_strictly(model, renamed_for(model, read_state(path)), str(path))
    return model


def equal(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in a.state_dict().items())


def fresh() -> nn.Module:
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


NESTINGS = {
    "plain": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3},
    "state_dict": lambda s: {"state_dict": s, "optimizer": {"lr": 0.1}},
    "model_state": lambda s: {"model_state": s},
    "net": lambda s: {"net": s, "acc": 91.2},
    "twice": lambda s: {"state_dict": {"model": s}},
    "module.": lambda s: renamed(s, "module."),
    "model.": lambda s: {"state_dict": renamed(s, "model.")},
    "_orig_mod.": lambda s: renamed(s, "_orig_mod."),
    "module._orig_mod.": lambda s: renamed(s, "module._orig_mod."),
    "compiled part": lambda s: {k.replace("body.", "body._orig_mod."): v for k, v in s.items()},
    "timm training": lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1), "arch": "x"},
}


@pytest.mark.parametrize("nesting", NESTINGS)
def test_the_usual_nestings_are_seen_through(tmp_path: Path, nesting: str) -> None:
    model = network()
    path = saved(tmp_path / "w.pth", NESTINGS[nesting](model.state_dict()))
    assert equal(load(path, fresh()), model)


def test_safetensors_are_read(tmp_path: Path) -> None:
    model = network()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert equal(load(tmp_path / "w.safetensors", fresh()), model)


def test_averaged_weights_are_taken_before_plain_ones(tmp_path: Path) -> None:
    averaged, plain = network(), fresh()
    data = {"state_dict": plain.state_dict(), "state_dict_ema": averaged.state_dict()}
    assert equal(load(saved(tmp_path / "w.pth", data), fresh()), averaged)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_prefix_that_is_the_models_own_stays(tmp_path: Path, prefix: str) -> None:
    model, other = Wrapped(), Wrapped()
    nn.init.zeros_(other.model.body.weight)
    path = saved(tmp_path / "w.pth", renamed(model.state_dict(), prefix))
    assert equal(load(path, other), model)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in network().state_dict().items()}
    model = load(saved(tmp_path / "w.pth", state), fresh())
    assert model.body.weight.dtype is torch.float32
    assert torch.equal(model.body.weight, state["body.weight"].float())


def test_counters_of_batches_may_be_missing() -> None:
    model = tiny_resnet()
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    load_strictly(model, state, "w")


def test_names_of_an_original_checkpoint_are_converted_by_timm() -> None:
    """Swin's first releases named the merging layers one stage earlier, without a norm on top."""
    model = tiny_swin()
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    original = {
        key.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): v
        for key, v in state.items()
    }
    assert original.keys() != state.keys()
    found = renamed_for(model, original)
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


def test_a_converter_may_not_resample_weights() -> None:
    """A position embedding of another image size would be interpolated: other weights."""
    model = tiny_vit()
    state = dict(model.state_dict())
    state["pos_embed"] = torch.zeros(1, 65, 24)
    state["extra"] = torch.zeros(1)
    assert renamed_for(model, state)["pos_embed"].shape == (1, 65, 24)
    with pytest.raises(UserInputError, match=r"pos_embed is \(1, 65, 24\)"):
        load_strictly(model, renamed_for(model, state), "w")


def refusal(state: State, model: nn.Module | None = None) -> str:
    target = model or network()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UserInputError) as caught:
        load_strictly(target, state, "w.pth")
    # a refused file must not have changed anything
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
    return str(caught.value)


def test_missing_and_unexpected_names_are_listed() -> None:
    state = dict(network().state_dict())
    state["tail.weight"] = state.pop("head.weight")
    message = refusal(state)
    assert "Missing in the file (1): head.weight." in message
    assert "Not in the model (1): tail.weight." in message
    assert message.startswith("w.pth does not fit the model.")


def test_a_long_list_is_cut_at_ten_and_counted() -> None:
    state = dict(network().state_dict()) | {f"x{n:02}": torch.zeros(1) for n in range(25)}
    message = refusal(state)
    assert "Not in the model (25): x00, " in message
    assert "x09 and 15 more." in message
    assert "x10" not in message


def test_shapes_that_differ_are_listed_with_both() -> None:
    state = dict(network().state_dict())
    state["body.weight"] = torch.zeros(5, 9)
    message = refusal(state)
    assert "Shapes that differ (1): body.weight is (5, 9), the model needs (5, 4)." in message
    assert "classes" not in message


def test_another_number_of_classes_is_named_as_such() -> None:
    message = refusal(dict(network(classes=7).state_dict()))
    assert "The file has 7 classes, the model 3" in message


def test_another_width_of_an_inner_layer_is_not_taken_for_classes() -> None:
    """``mlp.fc1`` sounds like a classifier."""
    model, other = tiny_vit(), tiny_vit()
    block = other.blocks[0].mlp
    block.fc1, block.fc2 = nn.Linear(24, 48), nn.Linear(48, 24)
    assert classes_of(model, other.state_dict()) is None
    assert "classes" not in refusal(dict(other.state_dict()), model)


def test_the_number_of_classes_is_none_where_the_file_fits_anyway() -> None:
    assert classes_of(network(), network().state_dict()) is None
    assert classes_of(network(), network(classes=7).state_dict()) == 7
    assert classes_of(network(), {}) is None


class Evil:
    """What an attacker would store: unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    victim = tmp_path / "owned"
    path = saved(tmp_path / "w.pth", {"model": network().state_dict(), "x": Evil(victim)})
    with pytest.raises(UserInputError, match="only running code from the file could build"):
        read_state(path)
    assert not victim.exists()


def test_a_whole_pickled_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"holds a torch\.nn.*save model\.state_dict\(\)"):
        read_state(saved(tmp_path / "w.pth", network()))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"w{suffix}"
    state = network().state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UserInputError) as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    assert "fetch it again" in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin", ""])
def test_a_foreign_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_text("<html>404 Not Found</html>", encoding="utf-8")
    with pytest.raises(UserInputError, match=re.escape(str(path))):
        read_state(path)


@pytest.mark.parametrize("data", [[1, 2], "text", {"a": 1}, {}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, data: Any) -> None:
    with pytest.raises(UserInputError, match="not a state dict"):
        read_state(saved(tmp_path / "w.pth", data))


def test_a_missing_file_is_missing_input(tmp_path: Path) -> None:
    for path in (tmp_path / "w.pth", tmp_path):
        with pytest.raises(InputMissingError, match="no checkpoint"):
            read_state(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_names_its_tensor(value: float) -> None:
    model = network()
    check_finite(model, "net")
    with torch.no_grad():
        model.head.weight[1, 2] = value
    with pytest.raises(MeasurementError, match=r"net: the weight 'head\.weight'"):
        check_finite(model, "net")


def test_large_finite_values_are_accepted() -> None:
    """Their sum would overflow."""
    model = network()
    nn.init.constant_(model.body.weight, 3e38)
    check_finite(model, "net")


def test_a_mask_may_be_infinite_but_not_nan() -> None:
    model = network()
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    check_finite(model, "net")
    model.mask[0] = float("nan")
    with pytest.raises(MeasurementError, match="'mask'"):
        check_finite(model, "net")


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_a_norms_statistics_may_not_be_infinite(name: str) -> None:
    model = nn.BatchNorm2d(2)
    getattr(model, name)[0] = float("inf")
    with pytest.raises(MeasurementError, match=name):
        check_finite(model, "net")


def test_the_digest_is_of_names_types_shapes_and_values() -> None:
    digest = weights_digest(network())
    assert re.fullmatch(r"[0-9a-f]{16}", digest)
    assert weights_digest(network()) == digest
    changed = network()
    with torch.no_grad():
        changed.head.bias[0] = torch.nextafter(changed.head.bias[0], torch.tensor(9.0))
    digests = {
        digest,
        weights_digest(changed),
        weights_digest(network().half()),
        weights_digest(nn.Sequential(*network().children())),
    }
    assert len(digests) == 4


def test_the_digest_does_not_depend_on_memory_layout() -> None:
    model = nn.Conv2d(3, 4, 3)
    digest = weights_digest(model)
    assert weights_digest(model.to(memory_format=torch.channels_last)) == digest
