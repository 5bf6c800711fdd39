"""Crops are drawn from numbers alone, and cut as they are described."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vitsense.errors import UserInputError
from vitsense.preprocessing import Preprocessing
from vitsense.qat.crops import Crop, CropPolicy, cut, draw_crop

_PLAIN = Preprocessing(
    input_size=(3, 8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0), interpolation="bilinear",
    crop_pct=1.0,
)  # fmt: skip


def test_the_same_key_draws_the_same_crop_and_another_key_another() -> None:
    policy = CropPolicy()
    drawn = [draw_crop(policy, (60, 80), (0, 3, i, j)) for i in range(4) for j in range(4)]
    again = [draw_crop(policy, (60, 80), (0, 3, i, j)) for i in range(4) for j in range(4)]
    assert drawn == again
    assert len(set(drawn)) == 16


def test_boxes_lie_inside_with_area_ratio_and_flips_of_the_policy() -> None:
    policy = CropPolicy(scale=(0.2, 0.6), ratio=(0.5, 2.0), flip=0.3)
    drawn = [draw_crop(policy, (90, 120), (1, i)) for i in range(2000)]
    assert all(c.top + c.height <= 90 and c.left + c.width <= 120 for c in drawn)
    area = np.array([c.height * c.width / (90 * 120) for c in drawn])
    ratio = np.array([c.width / c.height for c in drawn])
    # rounding to whole pixels moves both a little
    assert area.min() > 0.19
    assert area.max() < 0.62
    assert ratio.min() > 0.48
    assert ratio.max() < 2.1
    # boxes that do not fit are drawn again, which thins the large ones out
    assert abs(area.mean() - 0.4) < 0.03
    assert abs(np.mean([c.flip for c in drawn]) - 0.3) < 0.04


def test_an_image_in_which_no_box_fits_gives_the_largest_central_one() -> None:
    crop = draw_crop(CropPolicy(scale=(1.0, 1.0), flip=0.0), (10, 100), (0,))
    assert (crop.height, crop.width, crop.top) == (10, 13, 0)
    assert crop.left == 43


def test_a_crop_is_the_scaled_box_mirrored_and_normalized() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    found = cut(image, Crop(4, 6, 8, 8, flip=True), _PLAIN)  # 8x8 pixels: no interpolation
    expected = torch.from_numpy(pixels[4:12, 6:14][:, ::-1].copy()).double() / 255
    expected = (expected - 0.5) / torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected.permute(2, 0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("values", "word"),
    [({"scale": (0.0, 1.0)}, "crop_scale"), ({"scale": (0.9, 0.2)}, "crop_scale"),
     ({"flip": 1.5}, "flip"), ({"ratio": (2.0, 1.0)}, "ratio")],
)  # fmt: skip
def test_a_policy_that_means_nothing_is_refused(values: dict[str, object], word: str) -> None:
    with pytest.raises(UserInputError, match=word):
        CropPolicy(**values)  # type: ignore[arg-type]


def test_a_policy_survives_json() -> None:
    policy = CropPolicy(scale=(0.3, 0.7), flip=0.1)
    assert CropPolicy.from_json(policy.to_json()) == policy
