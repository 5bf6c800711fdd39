"""What people call models, and what timm calls them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import Enum

from vitsense.errors import UserInputError
from vitsense.zoo import ZOO


class ModelSource(Enum):
    """Who builds the model."""

    TIMM = "timm"
    TORCHVISION = "torchvision"
    ZOO = "zoo"
    FACTORY = "factory"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedName:
    """A name made definite."""

    source: ModelSource
    name: str
    note: str = ""
    """What was resolved to what; empty where the name was taken as it is."""


ALIASES = {
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
    "swin_l": "swin_large_patch4_window7_224",
    "swin_v2_t": "swinv2_tiny_window8_256",
    "swin_v2_s": "swinv2_small_window8_256",
    "swin_v2_b": "swinv2_base_window8_256",
    "vit_t": "vit_tiny_patch16_224",
    "vit_s": "vit_small_patch16_224",
    "vit_b": "vit_base_patch16_224",
    "vit_l": "vit_large_patch16_224",
    "vit_t_16": "vit_tiny_patch16_224",
    "vit_s_16": "vit_small_patch16_224",
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "vit_h_14": "vit_huge_patch14_224",
    "deit_t": "deit_tiny_patch16_224",
    "deit_s": "deit_small_patch16_224",
    "deit_b": "deit_base_patch16_224",
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224",
    "deit3_s": "deit3_small_patch16_224",
    "deit3_b": "deit3_base_patch16_224",
    "beit_b": "beit_base_patch16_224",
    "beit_l": "beit_large_patch16_224",
    "eva02_t": "eva02_tiny_patch14_336",
    "eva02_s": "eva02_small_patch14_336",
    "maxvit_t": "maxvit_tiny_tf_224",
    "mvit_v2_s": "mvitv2_small",
    "mvit_v2_t": "mvitv2_tiny",
    "mobile_vit_s": "mobilevit_s",
    "tiny_vit": "tiny_vit_5m_224",
    "cait_xxs": "cait_xxs24_224",
    "twins_s": "twins_svt_small",
    "xcit_nano": "xcit_nano_12_p16_224",
    "convnext_t": "convnext_tiny",
    "convnext_s": "convnext_small",
    "convnext_b": "convnext_base",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "efficientnet_v2_s": "tf_efficientnetv2_s",
    "regnet_y_400mf": "regnety_004",
    "regnet_y_800mf": "regnety_008",
    "regnet_y_1_6gf": "regnety_016",
    "regnet_y_3_2gf": "regnety_032",
    "regnet_x_400mf": "regnetx_004",
    "resnext50_32x4d": "resnext50_32x4d",
    "wide_resnet50_2": "wide_resnet50_2",
}
"""Common and torchvision names -> timm's."""


def resolve_name(text: str) -> ResolvedName:
    """Tell who builds the model called ``text`` and under which name.

    Args:
        text: A timm name, an alias, ``torchvision/NAME``, ``zoo/NAME``, or ``module:factory``.

    Raises:
        UserInputError: no such model; the nearest names are listed.
    """
    prefix, _, rest = text.partition("/")
    if prefix == "zoo" or text in ZOO:
        name = rest if prefix == "zoo" else text
        if name not in ZOO:
            raise UserInputError(f"The zoo has no model {name!r}; it has {', '.join(sorted(ZOO))}.")
        return ResolvedName(source=ModelSource.ZOO, name=name)
    if prefix == "torchvision":
        return _torchvision(rest)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text):
        return ResolvedName(source=ModelSource.FACTORY, name=text)
    return _timm(text.removeprefix("timm/"))


def _torchvision(name: str) -> ResolvedName:
    from torchvision.models import list_models

    known = list_models()
    if name not in known:
        raise UserInputError(_unknown(f"torchvision/{name}", _nearest(name, known), "torchvision/"))
    return ResolvedName(source=ModelSource.TORCHVISION, name=name)


def _timm(text: str) -> ResolvedName:
    import timm

    if timm.is_model(text.split(".", maxsplit=1)[0]):
        return ResolvedName(source=ModelSource.TIMM, name=text)
    alias = ALIASES.get(text.lower().replace("-", "_"))
    if alias is not None:
        return ResolvedName(source=ModelSource.TIMM, name=alias, note=f"{text} is timm's {alias}")
    near = _nearest(text, [*ALIASES, *timm.list_models()])
    raise UserInputError(_unknown(text, near, ""))


def _unknown(text: str, near: Sequence[str], prefix: str) -> str:
    names = ", ".join(prefix + name for name in near)
    return (
        f"There is no model {text!r}. Near names: {names}. "
        "All names: vitsense models; your own model: package.module:factory."
    )


def _nearest(text: str, names: Sequence[str], n: int = 5) -> list[str]:
    """Names that begin alike first (people know the beginning), then by similarity."""
    wanted = text.lower().replace("-", "_")

    def distance(name: str) -> tuple[float, int, str]:
        shared = 0
        for a, b in zip(wanted, name, strict=False):
            if a != b:
                break
            shared += 1
        similarity = SequenceMatcher(None, wanted, name).ratio()
        return (-(shared / max(len(wanted), 1) + similarity), len(name), name)

    return sorted(names, key=distance)[:n]


def list_models(pattern: str = "") -> list[tuple[str, str]]:
    """Known names and what they are: the zoo, the aliases and timm's, filtered by ``pattern``.

    ``pattern`` may hold ``*``; without one, names that contain it are listed.
    """
    import fnmatch

    import timm

    rows = [(f"zoo/{name}", "shipped, trained on generated glyphs") for name in sorted(ZOO)]
    rows += [(alias, f"alias of {name}") for alias, name in sorted(ALIASES.items())]
    rows += [(name, "timm") for name in timm.list_models()]
    wanted = pattern if "*" in pattern else f"*{pattern}*"
    return [row for row in rows if fnmatch.fnmatchcase(row[0], wanted)]
