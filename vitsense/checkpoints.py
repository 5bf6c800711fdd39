"""Read weights from a file without ever unpickling code, and load them strictly."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitsense.errors import InputMissingError, MeasurementError, UserInputError
from vitsense.provenance import digest

_NESTINGS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state", "net", "module")
"""Keys under which training scripts put the weights, the better ones first."""

_PREFIXES = ("module.", "_orig_mod.", "model.")
"""What wrappers put in front of every name."""


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by the names they have in the file.

    Args:
        path: safetensors, or a file that `torch.load` reads with ``weights_only=True``. Where it
            holds averaged (EMA) and plain weights, the averaged ones are taken.

    Raises:
        InputMissingError: no such file.
        UserInputError: truncated, not a checkpoint, or only loadable by running code.
    """
    if not path.is_file():
        raise InputMissingError(f"There is no checkpoint {path}; check --checkpoint.")
    return _flat(_read(path), path)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(str(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise UserInputError(
                f"{path} is not a whole safetensors file ({error}); fetch it again."
            ) from error
    try:
        # training scripts store their arguments beside the weights; a Namespace is plain data
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises half a dozen unrelated types for files that are cut, foreign or unsafe
        raise UserInputError(f"{path} {_why_unreadable(error)}") from error


def _why_unreadable(error: Exception) -> str:
    """One sentence for torch's page of advice (which suggests to run the file's code)."""
    foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
    if foreign is not None:
        return (
            f"holds a {foreign[1]}, which only running code from the file could build; vitsense "
            "never does that: save model.state_dict() as safetensors and use that."
        )
    return (
        "is cut short, or is not a file that torch.save or safetensors wrote: fetch it again, or "
        "save model.state_dict() and use that."
    )


def _flat(data: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(data, Mapping):
        inner = next((data[k] for k in _NESTINGS if isinstance(data.get(k), Mapping)), None)
        if inner is None:
            break
        data = inner
    if not isinstance(data, Mapping):
        raise UserInputError(f"{path} holds a {type(data).__name__}, not a state dict.")
    state = {str(key): value for key, value in data.items() if isinstance(value, Tensor)}
    if not state:
        raise UserInputError(f"{path} holds no tensors: it is not a state dict.")
    return state


def renamed_for(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names that ``model`` uses.

    Prefixes of wrappers (DDP, ``torch.compile``, Lightning) are taken off where that makes more
    names fit. Where names still differ, a timm model's own converter of original checkpoints is
    asked; an answer that resamples a tensor is not taken.
    """
    own = model.state_dict().keys()
    tried = [dict(state)]
    if not any("_orig_mod." in key for key in own):
        tried[0] = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    while (prefix := _shared_prefix(tried[-1])) is not None:
        tried.append({key.removeprefix(prefix): value for key, value in tried[-1].items()})
    best = max(tried, key=lambda names: len(own & names.keys()))
    convert = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    if best.keys() == own or convert is None:
        return best
    try:
        converted = dict(convert(dict(best), model))
    except Exception:  # noqa: BLE001  a foreign file may break the converter anywhere
        return best
    resampled = any(best[k].shape != converted[k].shape for k in best.keys() & converted.keys())
    return best if resampled or converted.keys() - own else converted


def _shared_prefix(state: Mapping[str, Tensor]) -> str | None:
    if not state:
        return None
    return next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Put ``state`` into ``model``; every name and shape must fit.

    Raises:
        UserInputError: missing, unexpected or differently shaped tensors, listed.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the model needs {tuple(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    if not (missing or unexpected or shapes):
        model.load_state_dict(dict(state), strict=False)  # strict but for batch counters
        return
    lines = [f"{source} does not fit the model."]
    lines += _listed("Shapes that differ", shapes)
    lines += _listed("Missing in the file", missing)
    lines += _listed("Not in the model", unexpected)
    theirs = classes_of(model, state)
    if theirs is not None:
        ours = next(own[key].shape[0] for key in own if own[key].shape != state[key].shape)
        lines.append(
            f"The file has {theirs} classes, the model {ours}: use a model with {theirs} classes."
        )
    else:
        lines.append("Check that --model names the architecture the file was trained with.")
    raise UserInputError(" ".join(lines))


def classes_of(model: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Number of classes of a state dict that fits ``model`` but for its classifier, else None."""
    own = model.state_dict()
    if own.keys() != state.keys():
        return None
    differing = [key for key in own if own[key].shape != state[key].shape]
    if not all(_is_classifier(k, own[k], state[k]) for k in differing):
        return None
    counts = {int(state[key].shape[0]) for key in differing}
    return counts.pop() if len(counts) == 1 else None


def _is_classifier(key: str, own: Tensor, other: Tensor) -> bool:
    is_last = any(mark in key for mark in ("head", "fc", "classifier"))
    return (
        is_last and own.dim() > 0 and own.shape[1:] == other.shape[1:] and own.shape != other.shape
    )


def _listed(title: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    if not names:
        return []
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return [f"{title} ({len(names)}): {', '.join(names[:10])}{more}."]


def check_finite(model: nn.Module, name: str) -> None:
    """Refuse weights that are not finite; a buffer may hold infinities, as masks do.

    Raises:
        MeasurementError: naming the first such tensor.
    """
    masks = {key for key, _ in model.named_buffers() if not key.endswith(("_mean", "_var"))}
    for key, tensor in model.state_dict().items():
        wrong = tensor.isnan() if key in masks else ~tensor.isfinite()
        if bool(wrong.any()):
            raise MeasurementError(
                f"{name}: the weight {key!r} has values that are not finite (NaN or infinity); "
                "the checkpoint is damaged or its training diverged."
            )


def weights_digest(model: nn.Module) -> str:
    """16 hex digits over names, types, shapes and bytes of every tensor of the model."""

    def parts() -> Iterable[bytes]:
        for key, tensor in sorted(model.state_dict().items()):
            yield f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode()
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            yield flat.view(torch.uint8).numpy().tobytes()

    return digest(parts())
