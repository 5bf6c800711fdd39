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
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
    "swin_v2_t": "swinv2_tiny_window8_256",
    "swin_v2_s": "swinv2_small_window8_256",
    "swin_v2_b": "swinv2_base_window8_256",
    "vit_t": "vit_tiny_patch16_224",
    "vit_s": "vit_small_patch16_224",
    "vit_b": "vit_base_patch16_224",
    "vit_l": "vit_large_patch16_224",
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
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
    "convnext_l": "convnext_large",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "efficientnet_v2_s": "tf_efficientnetv2_s",
    "efficientnet_v2_m": "tf_efficientnetv2_m",
    "efficientnet_v2_l": "tf_efficientnetv2_l",
    "regnet_y_400mf": "regnety_004",
    "regnet_y_800mf": "regnety_008",
    "regnet_y_1_6gf": "regnety_016",
    "regnet_y_3_2gf": "regnety_032",
    "regnet_y_8gf": "regnety_080",
    "regnet_y_16gf": "regnety_160",
    "regnet_y_32gf": "regnety_320",
    "regnet_y_128gf": "regnety_1280",
    "regnet_x_400mf": "regnetx_004",
    "regnet_x_800mf": "regnetx_008",
    "regnet_x_1_6gf": "regnetx_016",
    "regnet_x_3_2gf": "regnetx_032",
    "regnet_x_8gf": "regnetx_080",
    "regnet_x_16gf": "regnetx_160",
    "regnet_x_32gf": "regnetx_320",
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
    known = _torchvision_names()
    if name not in known:
        raise UserInputError(_unknown(f"torchvision/{name}", _nearest(name, known), "torchvision/"))
    return ResolvedName(source=ModelSource.TORCHVISION, name=name)


def _torchvision_names() -> list[str]:
    import torchvision

    # only what classifies images: not detection, segmentation, video or quantized models
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _timm(text: str) -> ResolvedName:
    import timm

    architecture, _, tag = text.partition(".")
    if timm.is_model(architecture):
        _check_tag(architecture, tag)
        return ResolvedName(source=ModelSource.TIMM, name=text)
    plain = text.lower().replace("-", "_")
    alias = ALIASES.get(plain) or (plain if timm.is_model(plain) else None)
    if alias is not None:
        return ResolvedName(source=ModelSource.TIMM, name=alias, note=f"{text} is timm's {alias}")
    if plain in _torchvision_names():
        note = f"{text} is torchvision's {plain}"
        return ResolvedName(source=ModelSource.TORCHVISION, name=plain, note=note)
    near = _nearest(text, [*ALIASES, *timm.list_models()])
    raise UserInputError(_unknown(text, near, ""))


def _check_tag(architecture: str, tag: str) -> None:
    from timm.models import list_pretrained

    if not tag:
        return
    tags = [n.partition(".")[2] for n in list_pretrained(f"{architecture}.*")]
    if tag not in tags:
        raise UserInputError(
            f"timm's {architecture} has no weights {tag!r}; it has {', '.join(tags) or 'none'}. "
            f"Leave out .{tag} for its default ones."
        )


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
    """Known names and what they are: zoo, aliases, timm, torchvision; filtered by ``pattern``.

    ``pattern`` may hold ``*``; without one, names that contain it are listed.
    """
    import fnmatch

    import timm

    rows = [(f"zoo/{name}", "shipped, trained on generated glyphs") for name in sorted(ZOO)]
    rows += [(alias, f"alias of {name}") for alias, name in sorted(ALIASES.items())]
    rows += [(name, "timm") for name in timm.list_models()]
    rows += [(f"torchvision/{name}", "torchvision") for name in _torchvision_names()]
    wanted = pattern if "*" in pattern else f"*{pattern}*"
    return [row for row in rows if fnmatch.fnmatchcase(row[0], wanted)]
