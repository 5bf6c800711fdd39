"""How an image becomes a model's input: read from the model, or assumed and said so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vitsense.errors import UserInputError
from vitsense.model_names import ModelSource, ResolvedName
from vitsense.zoo import MEAN, STD

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an image becomes the model's input."""

    input_size: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"

    def transform(self) -> Callable[[Image], Tensor]:
        """Timm's evaluation transform: a PIL image to a tensor `(3, H, W)`."""
        from timm.data.transforms_factory import create_transform

        made: Callable[[Image], Tensor] = create_transform(
            input_size=self.input_size,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )
        return made


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def preprocessing_of(
    model: nn.Module, resolved: ResolvedName, checkpoint: Path | None
) -> tuple[Preprocessing, str]:
    """The model's own preprocessing and, where it had to be assumed, a note that says so."""
    if resolved.source is ModelSource.ZOO:
        return Preprocessing(
            input_size=(3, 32, 32), mean=MEAN, std=STD, interpolation="bilinear", crop_pct=1.0
        ), ""
    if resolved.source is ModelSource.TIMM:
        from timm.data.config import resolve_model_data_config

        config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
        return _from_config(config, resolved.name), ""
    if resolved.source is ModelSource.TORCHVISION:
        return _torchvision_preprocessing(resolved.name, checkpoint), ""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    # a tensor of that name is the model's own normalization, not a wish
    own = {k: getattr(model, k, None) for k in ("input_size", "mean", "std")}
    own = {k: list(v) for k, v in own.items() if isinstance(v, (tuple, list))}
    named = {k: getattr(model, k, None) for k in ("crop_pct", "interpolation", "crop_mode")}
    own |= {k: v for k, v in named.items() if isinstance(v, (str, int, float))}
    config = {**config} | own
    missing = [key for key in ("input_size", "mean", "std") if key not in config]
    note = (
        f"{resolved.name} says nothing about {', '.join(missing)}: 3x224x224 and ImageNet's mean "
        "and deviation are assumed; set these attributes on the model to change it."
        if missing
        else ""
    )
    return _from_config(config, resolved.name), note


def _from_config(config: dict[str, Any], name: str) -> Preprocessing:
    try:
        channels, height, width = (int(n) for n in config.get("input_size", (3, 224, 224)))
        return Preprocessing(
            input_size=(channels, height, width),
            mean=tuple(float(v) for v in config.get("mean", _IMAGENET_MEAN)),
            std=tuple(float(v) for v in config.get("std", _IMAGENET_STD)),
            interpolation=str(config.get("interpolation", "bilinear")),
            crop_pct=float(config.get("crop_pct", 1.0)),
            crop_mode=str(config.get("crop_mode", "center")),
        )
    except (TypeError, ValueError) as error:
        raise UserInputError(
            f"The preprocessing that {name} states cannot be used ({error}): input_size is "
            "(3, height, width), mean and std are three numbers each."
        ) from error


def _torchvision_preprocessing(name: str, checkpoint: Path | None) -> Preprocessing:
    """The transform of the weights in ``checkpoint`` if torchvision knows the file, else default's.

    torchvision has several weights for some models, with different sizes to resize to.
    """
    from torchvision.models import get_model_weights

    known = get_model_weights(name)
    file = "" if checkpoint is None else checkpoint.name
    weights = next((w for w in known if file and w.url.endswith(f"/{file}")), known.DEFAULT)
    made = weights.transforms()
    crop, resize = made.crop_size[0], made.resize_size[0]
    return Preprocessing(
        input_size=(3, crop, crop),
        mean=tuple(made.mean),
        std=tuple(made.std),
        interpolation=str(made.interpolation.value),
        crop_pct=crop / resize,
    )
