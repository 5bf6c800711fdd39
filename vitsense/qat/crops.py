"""Random resized crops that are a function of numbers alone: they can be stored and redrawn.

Nothing here uses a global generator: the same seed, image and draw give the same crop on any
machine, in any order, in any worker process.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitsense.errors import UserInputError
from vitsense.preprocessing import Preprocessing

_ATTEMPTS = 10
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CropPolicy:
    """How crops are drawn; the size they are scaled to belongs to the model that sees them."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width over height."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    version: int = 1
    """Raised whenever equal arguments give other crops."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserInputError: a range is empty or a share is outside 0 to 1.
        """
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserInputError(
                f"crop_scale is {list(self.scale)}: give the least and the largest share of the "
                "area, 0 < least <= largest <= 1, for example 0.08,1."
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserInputError(f"The crop ratio {list(self.ratio)} is empty; use 0.75,1.3333.")
        if not 0 <= self.flip <= 1:
            raise UserInputError(f"flip is {self.flip}: a probability from 0 to 1 is needed.")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CropPolicy:
        """The inverse of `to_json`."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**plain)


DEFAULT_POLICY = CropPolicy()
"""Crops as for ImageNet."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A box in pixels of the image as it was read, and whether it is mirrored afterwards."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def draw_crop(policy: CropPolicy, size: tuple[int, int], key: tuple[int, ...]) -> Crop:
    """The crop that ``key`` draws from an image of ``size`` (height, width).

    Area uniform in ``scale``, logarithm of the aspect ratio uniform; after ten boxes that do not
    fit, the largest central box of an allowed ratio.

    Source: Szegedy et al. 2015, "Going deeper with convolutions" (training methodology).
    """
    rng = np.random.default_rng(key)
    height, width = size
    low, high = (math.log(value) for value in policy.ratio)
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(*policy.scale)
        ratio = math.exp(rng.uniform(low, high))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            top = int(rng.integers(height - tall + 1))
            left = int(rng.integers(width - wide + 1))
            return Crop(top, left, tall, wide, bool(rng.random() < policy.flip))
    wide = min(width, max(1, round(height * policy.ratio[1])))
    tall = min(height, max(1, round(width / policy.ratio[0])))
    top, left = (height - tall) // 2, (width - wide) // 2
    return Crop(top, left, tall, wide, bool(rng.random() < policy.flip))


def cut(image: Image.Image, crop: Crop, preprocessing: Preprocessing) -> Tensor:
    """The crop as a model's input, `(3, H, W)`: scaled, mirrored and normalized."""
    _, height, width = preprocessing.input_size
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    # timm writes "random" where any filter will do
    kind = _FILTERS.get(preprocessing.interpolation, Image.Resampling.BILINEAR)
    scaled = image.resize((width, height), kind, box=box)
    pixels = torch.from_numpy(np.array(scaled, dtype=np.float32)).permute(2, 0, 1) / 255
    if crop.flip:
        pixels = pixels.flip(2)
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    return ((pixels - mean) / torch.tensor(preprocessing.std).view(3, 1, 1)).contiguous()
