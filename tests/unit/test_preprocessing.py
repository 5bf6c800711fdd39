"""An image reaches the model as its makers' own evaluation code would have sent it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

from vitsense.model_names import resolve_name
from vitsense.preprocessing import Preprocessing, preprocessing_of

TORCHVISION = torchvision.models.list_models(module=torchvision.models)


def photograph(width: int, height: int) -> Image.Image:
    """Smooth colours with some detail, so that resizing matters."""
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    planes = [np.sin(x) * 120 + 128, np.cos(x * y / 5) * 120 + 128, np.sin(x + 3 * y) * 120 + 128]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def of(name: str, checkpoint: Path | None = None) -> Preprocessing:
    resolved = resolve_name(name)
    model = torch.nn.Identity()
    if resolved.source.value == "timm":
        with torch.device("meta"):
            model = timm.create_model(resolved.name)
    found, note = preprocessing_of(model, resolved, checkpoint)
    assert note == ""
    return found


SIZES = [(300, 200), (224, 224), (91, 413)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "resnet50", "vit_base_patch16_224", "convnext_tiny"]
)
def test_timm_models_get_timms_evaluation_transform(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    config = timm.data.resolve_model_data_config(model)
    theirs = timm.data.create_transform(**config, is_training=False)
    image = photograph(*size)
    assert torch.equal(of(name).transform()(image), theirs(image))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet50", "swin_t", "efficientnet_b1"])
def test_torchvision_models_get_the_transform_of_their_default_weights(
    name: str, size: tuple[int, int]
) -> None:
    theirs = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    image = photograph(*size)
    # both normalize in float32, in another order of operations
    torch.testing.assert_close(of(f"torchvision/{name}").transform()(image), theirs(image))


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_torchvision_model_has_its_sizes(name: str) -> None:
    theirs = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    found = of(f"torchvision/{name}")
    assert found.input_size == (3, theirs.crop_size[0], theirs.crop_size[0])
    # timm computes the size to resize to as floor(size / crop_pct)
    assert int(found.input_size[1] / found.crop_pct) == theirs.resize_size[0]


def test_a_downloaded_file_of_torchvision_gets_its_own_transform() -> None:
    """resnet50 has two sets of weights: one resizes to 256, the newer one to 232."""
    old = of("torchvision/resnet50", Path("somewhere/resnet50-0676ba61.pth"))
    new = of("torchvision/resnet50", Path("resnet50-11ad3fa6.pth"))
    other = of("torchvision/resnet50", Path("mine.pth"))
    assert round(224 / old.crop_pct) == 256
    assert round(224 / new.crop_pct) == 232
    assert other == new
