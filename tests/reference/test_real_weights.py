"""Published weights classify real photographs as their makers' own code does.

Runs only where the data is: the folder ``VITSENSE_DATA``, or ``shared/data`` beside the checkout.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from vitsense.data import Draw, check_labels, draw_images, open_source
from vitsense.models import Family, load_model
from vitsense.settings import ModelRequest

DATA = Path(os.environ.get("VITSENSE_DATA", Path(__file__).parents[3] / "shared" / "data"))
PHOTOGRAPHS = DATA / "imagenet-val-1000"
IMAGES = 100
CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="VITSENSE_DATA names no folder of real data"),
]

Theirs = tuple[nn.Module, Callable[[Image.Image], Tensor]]


def timms() -> Theirs:
    model = timm.create_model("deit_tiny_patch16_224")
    config = timm.data.resolve_model_data_config(model)
    return model, timm.data.create_transform(**config, is_training=False)


def torchvisions() -> Theirs:
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    return torchvision.models.squeezenet1_1(), weights.transforms()


@pytest.mark.parametrize(
    ("name", "file", "family", "theirs", "known"),
    [
        (
            "deit_t",
            "deit-tiny-imagenet/deit_tiny_patch16_224.safetensors",
            Family.VIT,
            timms,
            81.4,
        ),
        (
            "torchvision/squeezenet1_1",
            "squeezenet1_1-imagenet/squeezenet1_1.safetensors",
            Family.CONVNET,
            torchvisions,
            69.5,
        ),
    ],
)
def test_every_photograph_is_classified_as_by_the_makers_own_code(
    name: str, file: str, family: Family, theirs: Callable[[], Theirs], known: float
) -> None:
    """Image by image: an accuracy on few images has too wide an interval to find a wrong crop."""
    model = load_model(ModelRequest(name=name, checkpoint=DATA / file), CPU)
    assert (model.num_classes, model.family) == (1000, family)
    source = open_source(str(PHOTOGRAPHS))
    check_labels(source, model.num_classes, model.key)
    calibration, evaluation = draw_images(source, Draw(evaluation=IMAGES, calibration=50))
    assert (len(calibration), len(evaluation)) == (50, IMAGES)
    assert calibration.skipped == evaluation.skipped == []

    reference, transform = theirs()
    reference.load_state_dict(load_file(str(DATA / file)))
    reference.eval()
    with (PHOTOGRAPHS / "labels.csv").open(encoding="utf-8") as table:
        labels = {row["file"]: int(row["label"]) for row in csv.DictReader(table)}
    names = [source.name(number) for number in evaluation.numbers]
    right = 0
    with torch.no_grad():
        for start, (images, ours) in zip(
            range(0, IMAGES, 20), evaluation.batches(model.preprocessing, 20, CPU), strict=True
        ):
            part = names[start : start + 20]
            pictures = [Image.open(PHOTOGRAPHS / n).convert("RGB") for n in part]
            expected = reference(torch.stack([transform(picture) for picture in pictures]))
            logits = model.module(images)
            # the two normalize in another order of float32 operations
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)
            assert ours.tolist() == [labels[n] for n in part]
            right += int((logits.argmax(1) == ours).sum())
    # four standard errors of a share measured on so few images
    margin = 4 * (known * (100 - known) / IMAGES) ** 0.5
    assert abs(100 * right / IMAGES - known) <= margin
