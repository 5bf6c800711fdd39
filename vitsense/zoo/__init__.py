"""Two small trained models that come with the package: a Swin and a ResNet that read glyphs.

Both are plain timm models, trained by ``examples/train_zoo.py`` on `vitsense.glyphs`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsense.errors import InputMissingError, UserInputError
from vitsense.glyphs import GLYPH_CLASSES, SIZE

if TYPE_CHECKING:
    from torch import nn

MEAN = (0.5, 0.5, 0.5)
"""Mean subtracted from the pixels (0 to 1)."""
STD = (0.25, 0.25, 0.25)
"""Standard deviation the pixels are divided by."""


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "glyph_swin": {
        "img_size": SIZE,
        "patch_size": 4,
        "window_size": 4,
        "embed_dim": 64,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "mlp_ratio": 3.0,
        "drop_path_rate": 0.0,
    },
    "glyph_resnet": {"layers": (2, 2, 2, 2), "channels": (16, 32, 48, 64)},
}
"""Arguments of timm's ``SwinTransformer`` and of its ``ResNet`` of ``BasicBlock``."""


def _swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    model: nn.Module = SwinTransformer(
        **ARCHITECTURES["glyph_swin"], num_classes=len(GLYPH_CLASSES)
    )
    return model


def _resnet() -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    model: nn.Module = ResNet(
        BasicBlock,  # type: ignore[arg-type]  # timm annotates an instance, it wants the class
        **ARCHITECTURES["glyph_resnet"],
        num_classes=len(GLYPH_CLASSES),
    )
    return model


ZOO = {"glyph_swin": _swin, "glyph_resnet": _resnet}
"""Names of the shipped models and how timm builds them."""


def create_zoo_model(name: str, *, pretrained: bool = True) -> nn.Module:
    """A model of the zoo in eval mode, with its trained weights unless told otherwise.

    Raises:
        UserInputError: no such model.
        InputMissingError: the weights are not in this installation.
    """
    _check(name)
    model = ZOO[name]()
    if pretrained:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(str(zoo_file(name))), strict=True)
    return model.eval()


def zoo_file(name: str) -> Path:
    """The safetensors file of a model.

    Raises:
        UserInputError: no such model.
        InputMissingError: the file is not there.
    """
    _check(name)
    path = Path(__file__).with_name(f"{name}.safetensors")
    if not path.is_file():
        raise InputMissingError(
            f"The weights {path.name} are missing from the installation; reinstall vitsense."
        )
    return path


def zoo_card(name: str) -> dict[str, Any]:
    """What is known of a shipped model: accuracy in percent, data, architecture, training.

    ``top1`` has its 95 % interval ``top1_low`` to ``top1_high`` over ``evaluated`` images of the
    evaluation split; ``evaluation_digest`` is `vitsense.glyphs.glyph_digest` of its first 360
    images; ``weights_sha256`` is that of the safetensors file.

    Raises:
        UserInputError: no such model.
    """
    _check(name)
    text = Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8")
    card: dict[str, Any] = json.loads(text)
    return card


def _check(name: str) -> None:
    if name not in ZOO:
        raise UserInputError(f"The zoo has no model {name!r}; it has {', '.join(sorted(ZOO))}.")
