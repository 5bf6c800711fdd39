"""Load a model with its weights and its own preprocessing."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitsense.checkpoints import (
    check_finite,
    classes_of,
    load_strictly,
    read_state,
    renamed_for,
    weights_digest,
)
from vitsense.errors import UserInputError
from vitsense.hub_access import reachable_or_explained
from vitsense.model_names import ModelSource, ResolvedName, resolve_name
from vitsense.preprocessing import Preprocessing, preprocessing_of
from vitsense.settings import ModelRequest, WeightSource
from vitsense.zoo import create_zoo_model


class Family(Enum):
    """The two kinds of networks that are compared."""

    VIT = "vit"
    CONVNET = "convnet"


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

    @property
    def weights(self) -> WeightSource:
        """Where the weights come from; a zoo model and a factory bring their own."""
        own = {ModelSource.ZOO: WeightSource.ZOO, ModelSource.FACTORY: WeightSource.FACTORY}
        if self.request.weights is WeightSource.HUB:
            return own.get(self.resolved.source, WeightSource.HUB)
        return self.request.weights


def load_model(
    request: ModelRequest,
    device: torch.device,
    *,
    key: str | None = None,
    classes: int | None = None,
) -> LoadedModel:
    """Build a model, give it its weights, and put it on ``device`` in eval mode.

    Args:
        request: Which model with which weights.
        device: Where to put it.
        key: Its short name; None makes one from the name.
        classes: Outputs of a timm model with random weights; None is the model's own number.

    Raises:
        UserInputError: unknown name, or a checkpoint that does not fit.
        InputMissingError: the weights cannot be reached.
        MeasurementError: a weight is not finite.
    """
    resolved = resolve_name(request.name)
    notes = [resolved.note] if resolved.note else []
    module, note = _with_weights(request, resolved, classes)
    notes += [note] if note else []
    module = module.float().eval().to(device)
    check_finite(module, request.name)
    preprocessing, note = preprocessing_of(module, resolved, request.checkpoint)
    notes += [note] if note else []
    return LoadedModel(
        key=key or _short(request.name),
        request=request,
        resolved=resolved,
        family=family_of(module),
        digest=weights_digest(module),
        num_classes=_count_classes(module, preprocessing, request.name, device),
        params=sum(p.numel() for p in module.parameters()),
        preprocessing=preprocessing,
        module=module,
        notes=tuple(notes),
    )


def _count_classes(
    module: nn.Module, preprocessing: Preprocessing, name: str, device: torch.device
) -> int:
    """Number of logits that the model gives for one black image."""
    size = preprocessing.input_size
    shown = "x".join(map(str, size))
    if size[0] != 3:
        raise UserInputError(f"{name} takes images of {shown}; vitsense gives 3 channels (RGB).")
    try:
        with torch.no_grad():
            logits = module(torch.zeros(1, *size, device=device))
    except Exception as error:
        # a person's model may raise anything
        raise UserInputError(
            f"{name} fails on an image of {shown} ({type(error).__name__}: {_line(error)}). If it "
            "needs another size, give the model an attribute input_size = (3, height, width)."
        ) from error
    if isinstance(logits, torch.Tensor) and logits.dim() == 2 and len(logits) == 1:
        return int(logits.shape[1])
    shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else ""
    raise UserInputError(
        f"{name} does not map images to logits (for one image it gives a {type(logits).__name__}"
        f"{shape}); wrap it in a module whose forward returns (batch, classes)."
    )


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0][:200]


def _short(name: str) -> str:
    return re.sub(r"[^\w.:-]+", "-", name.rpartition("/")[2])


_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_PROJECTION = re.compile(r"(to_)?(q|qk|qkv|qkvs|kv|query)(_proj)?", re.IGNORECASE)


def family_of(model: nn.Module) -> Family:
    """VIT where a module makes queries or is named for attention over tokens, else CONVNET.

    Squeeze-and-excitation and other channel attention of ConvNets makes no queries and has
    convolutions only.
    """
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, nn.MultiheadAttention) or _PROJECTION.fullmatch(name):
            return Family.VIT
        linear = any(isinstance(inner, nn.Linear) for inner in module.modules())
        if _ATTENTION.search(name) and linear:
            return Family.VIT
    return Family.CONVNET


def _with_weights(
    request: ModelRequest, resolved: ResolvedName, wanted: int | None
) -> tuple[nn.Module, str]:
    """The model, and a note where its number of classes was taken from the file."""
    if request.weights is WeightSource.RANDOM:
        of_timm = wanted is not None and resolved.source is ModelSource.TIMM
        extra = {"num_classes": wanted} if of_timm else {}
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same random model in every run
            return _build(resolved, pretrained=False, **extra), ""
    if request.checkpoint is None:
        return _build(resolved, pretrained=True), ""
    path, note = request.checkpoint, ""
    state = read_state(path)
    model = _build(resolved, pretrained=False)
    state = renamed_for(model, state)
    classes = classes_of(model, state) if resolved.source is ModelSource.TIMM else None
    if classes is not None:
        model = _build(resolved, pretrained=False, num_classes=classes)
        note = f"{resolved.name} was built with {classes} classes, as {path.name} has"
    load_strictly(model, state, str(path))
    return model, note


def _build(resolved: ResolvedName, *, pretrained: bool, **extra: Any) -> nn.Module:
    if resolved.source is ModelSource.ZOO:
        return create_zoo_model(resolved.name, pretrained=pretrained)
    if resolved.source is ModelSource.FACTORY:
        return _from_factory(resolved.name)
    build = _torchvision_model if resolved.source is ModelSource.TORCHVISION else _timm_model
    if not pretrained:
        return build(resolved.name, pretrained=False, **extra)
    with reachable_or_explained(resolved.name):
        return build(resolved.name, pretrained=True, **extra)


def _timm_model(name: str, **options: Any) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, **options)
    return model


def _torchvision_model(name: str, *, pretrained: bool) -> nn.Module:
    from torchvision.models import get_model

    model: nn.Module = get_model(name, weights="DEFAULT" if pretrained else None)
    return model


def _from_factory(name: str) -> nn.Module:
    """Call ``package.module:factory``; modules beside the person's working folder are found."""
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
        model = found() if not isinstance(found, nn.Module) else found
    except Exception as error:
        # a person's code may raise anything
        raise UserInputError(
            f"{name!r} cannot be used ({type(error).__name__}: {_line(error)}): the module must be "
            f"on the Python path or in {here}, and name a function that takes no arguments and "
            "returns a torch.nn.Module."
        ) from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    if not isinstance(model, nn.Module):
        raise UserInputError(f"{name!r} gave a {type(model).__name__}, not a torch.nn.Module.")
    return model
