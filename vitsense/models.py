"""Load a model with its weights and its own preprocessing."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vitsense.checkpoints import (
    check_finite,
    classes_of,
    load_strictly,
    read_state,
    weights_digest,
)
from vitsense.errors import InputMissingError, UserInputError
from vitsense.model_names import ModelSource, ResolvedName, resolve_name
from vitsense.settings import ModelRequest, WeightSource
from vitsense.zoo import MEAN, STD, create_zoo_model

if TYPE_CHECKING:
    from PIL.Image import Image


class Family(Enum):
    """The two kinds of networks that are compared."""

    VIT = "vit"
    CONVNET = "convnet"


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

    def transform(self) -> Callable[[Image], torch.Tensor]:
        """Timm's evaluation transform: a PIL image to a tensor `(3, H, W)`."""
        from timm.data.transforms_factory import create_transform

        made: Callable[[Image], torch.Tensor] = create_transform(
            input_size=self.input_size,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )
        return made


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model ready to be measured."""

    key: str
    """Short name in tables and figures, unique in a run."""
    request: ModelRequest
    resolved: ResolvedName
    family: Family
    digest: str
    """Of the weights."""
    num_classes: int
    params: int
    preprocessing: Preprocessing
    module: nn.Module
    notes: tuple[str, ...] = ()


def load_model(
    request: ModelRequest, device: torch.device, *, key: str | None = None
) -> LoadedModel:
    """Build a model, give it its weights, and put it on ``device`` in eval mode.

    Raises:
        UserInputError: unknown name, or a checkpoint that does not fit.
        InputMissingError: the weights cannot be reached.
        MeasurementError: a weight is not finite.
    """
    resolved = resolve_name(request.name)
    notes = [resolved.note] if resolved.note else []
    module = _with_weights(request, resolved)
    module = module.float().eval().to(device)
    check_finite(module, request.name)
    preprocessing, note = _preprocessing(module, resolved)
    notes += [note] if note else []
    image = torch.zeros(1, *preprocessing.input_size, device=device)
    with torch.no_grad():
        logits = module(image)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise UserInputError(
            f"{request.name} does not map images to logits (its output is a "
            f"{type(logits).__name__}); wrap it in a module whose forward returns (batch, classes)."
        )
    return LoadedModel(
        key=key or _short(request.name),
        request=request,
        resolved=resolved,
        family=family_of(module),
        digest=weights_digest(module),
        num_classes=int(logits.shape[1]),
        params=sum(p.numel() for p in module.parameters()),
        preprocessing=preprocessing,
        module=module,
        notes=tuple(notes),
    )


def _short(name: str) -> str:
    return re.sub(r"[^\w.:-]+", "-", name.rpartition("/")[2])


_ATTENTION = re.compile(r"attn|attention|qkv|to_qk", re.IGNORECASE)


def family_of(model: nn.Module) -> Family:
    """VIT where a module is named for attention over tokens, else CONVNET.

    Squeeze-and-excitation and other channel attention of ConvNets has convolutions only.
    """
    for name, module in model.named_modules():
        linear = any(isinstance(m, (nn.Linear, nn.MultiheadAttention)) for m in module.modules())
        if _ATTENTION.search(name.rpartition(".")[2]) and linear:
            return Family.VIT
        if isinstance(module, nn.MultiheadAttention):
            return Family.VIT
    return Family.CONVNET


def _with_weights(request: ModelRequest, resolved: ResolvedName) -> nn.Module:
    if request.weights is WeightSource.RANDOM:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same random model in every run
            return _build(resolved, pretrained=False)
    if request.checkpoint is not None:
        state = read_state(request.checkpoint)
        model = _build(resolved, pretrained=False)
        classes = classes_of(model, state) if resolved.source is ModelSource.TIMM else None
        if classes is not None:
            model = _build(resolved, pretrained=False, num_classes=classes)
        load_strictly(model, state, str(request.checkpoint))
        return model
    return _build(resolved, pretrained=True)


def _build(resolved: ResolvedName, *, pretrained: bool, **extra: Any) -> nn.Module:
    if resolved.source is ModelSource.ZOO:
        return create_zoo_model(resolved.name, pretrained=pretrained)
    if resolved.source is ModelSource.FACTORY:
        return _from_factory(resolved.name)
    build = _torchvision_model if resolved.source is ModelSource.TORCHVISION else _timm_model
    if not pretrained:
        return build(resolved.name, pretrained=False, **extra)
    with _reachable_or_not(resolved.name):
        return build(resolved.name, pretrained=True, **extra)


def _timm_model(name: str, **options: Any) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, **options)
    return model


def _torchvision_model(name: str, *, pretrained: bool) -> nn.Module:
    from torchvision.models import get_model

    model: nn.Module = get_model(name, weights="DEFAULT" if pretrained else None)
    return model


@contextmanager
def _reachable_or_not(name: str) -> Iterator[None]:
    """Turn every way of not reaching a hub into one sentence, without minutes of retries."""
    try:
        with _offline_if_unreachable():
            yield
    except Exception as error:
        if not _is_unreachable(error):
            raise
        raise InputMissingError(
            f"The pretrained weights of {name} could not be fetched from their hub "
            f"({type(error).__name__}). You can: (1) give weights from a file with --checkpoint; "
            "(2) connect to the network, or set HF_HOME to a cache that has them; (3) try the "
            "mechanics with --weights random."
        ) from error


@contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Let the hub's client look only into its cache when one short request gets no answer."""
    import logging
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    loggers = [logging.getLogger(n) for n in ("timm", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    if not before:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310  https
        try:
            with urllib.request.urlopen(request, timeout=5):  # noqa: S310
                pass
        except urllib.error.HTTPError:
            pass  # an answer, whatever it says
        except OSError:
            constants.HF_HUB_OFFLINE = True
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_HUB_PACKAGES = (
    "huggingface_hub",
    "requests",
    "httpx",
    "httpcore",
    "urllib",
    "httpx2",
    "httpcore2",
)


def _is_unreachable(error: BaseException | None) -> bool:
    while error is not None:
        root = type(error).__module__.partition(".")[0]
        is_io = isinstance(error, (OSError, EOFError)) and not isinstance(error, PermissionError)
        if root in _HUB_PACKAGES or is_io or "pretrained" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def _from_factory(name: str) -> nn.Module:
    """Call ``package.module:factory``; modules beside the person's working folder are found."""
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UserInputError(
            f"{name!r} cannot be imported ({error}): the module must be on the Python path or in "
            f"{here}, and name a function that returns a torch.nn.Module."
        ) from error
    finally:
        sys.path.remove(here)
    model = found() if not isinstance(found, nn.Module) else found
    if not isinstance(model, nn.Module):
        raise UserInputError(f"{name!r} gave a {type(model).__name__}, not a torch.nn.Module.")
    return model


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _preprocessing(model: nn.Module, resolved: ResolvedName) -> tuple[Preprocessing, str]:
    """The model's own preprocessing and, where it had to be assumed, a note that says so."""
    if resolved.source is ModelSource.ZOO:
        return Preprocessing(
            input_size=(3, 32, 32), mean=MEAN, std=STD, interpolation="bilinear", crop_pct=1.0
        ), ""
    if resolved.source is ModelSource.TIMM:
        from timm.data.config import resolve_model_data_config

        config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
        return _from_config(config), ""
    if resolved.source is ModelSource.TORCHVISION:
        return _torchvision_preprocessing(resolved.name), ""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    config = {**config} | {
        key: getattr(model, key)
        for key in ("input_size", "mean", "std", "crop_pct", "interpolation")
        if hasattr(model, key)
    }
    missing = [key for key in ("input_size", "mean", "std") if key not in config]
    note = (
        f"{resolved.name} says nothing about {', '.join(missing)}: 3x224x224 and ImageNet's mean "
        "and deviation are assumed; set these attributes on the model to change it."
        if missing
        else ""
    )
    return _from_config(config), note


def _from_config(config: dict[str, Any]) -> Preprocessing:
    size = config.get("input_size", (3, 224, 224))
    return Preprocessing(
        input_size=(int(size[0]), int(size[1]), int(size[2])),
        mean=tuple(config.get("mean", _IMAGENET_MEAN)),
        std=tuple(config.get("std", _IMAGENET_STD)),
        interpolation=str(config.get("interpolation", "bilinear")),
        crop_pct=float(config.get("crop_pct", 1.0)),
        crop_mode=str(config.get("crop_mode", "center")),
    )


def _torchvision_preprocessing(name: str) -> Preprocessing:
    """The transform that belongs to the default weights of a torchvision model."""
    from torchvision.models import get_model_weights

    made = next(iter(get_model_weights(name))).transforms()
    crop, resize = made.crop_size[0], made.resize_size[0]
    return Preprocessing(
        input_size=(3, crop, crop),
        mean=tuple(made.mean),
        std=tuple(made.std),
        interpolation=str(made.interpolation.value),
        crop_pct=crop / resize,
    )
