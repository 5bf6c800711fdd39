"""Read weights from a file without ever unpickling code, and load them strictly."""

from __future__ import annotations

import math
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
    """The tensors of a checkpoint, by plain parameter names.

    Args:
        path: safetensors, or a file that `torch.load` reads with ``weights_only=True``.

    Raises:
        InputMissingError: no such file.
        UserInputError: truncated, not a checkpoint, or only loadable by running code.
    """
    if not path.is_file():
        raise InputMissingError(f"There is no checkpoint {path}; check --checkpoint.")
    state = _flat(_read(path), path)
    for prefix in _PREFIXES * 2:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


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
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises half a dozen unrelated types for files that are cut, foreign or unsafe
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserInputError(
            f"{path} cannot be read as plain tensors ({reason[:160]}). It may be cut short, or "
            "need code to be run, which vitsense never does: save model.state_dict() as "
            "safetensors and use that."
        ) from error


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
    classes = [key for key in own if key in state and _is_classifier(key, own[key], state[key])]
    if classes and not missing and not unexpected:
        lines.append(
            f"The file has {state[classes[0]].shape[0]} classes, the model "
            f"{own[classes[0]].shape[0]}: build the model with that many classes."
        )
    else:
        lines.append("Check that --model names the architecture the file was trained with.")
    raise UserInputError(" ".join(lines))


def classes_of(model: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Number of classes of a state dict that fits ``model`` but for its classifier, else None."""
    own = model.state_dict()
    if set(own) - set(state) or set(state) - set(own):
        return None
    differing = [key for key in own if own[key].shape != state[key].shape]
    if not differing or not all(_is_classifier(k, own[k], state[k]) for k in differing):
        return None
    return int(state[differing[0]].shape[0])


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
    """Refuse weights that are not finite.

    Raises:
        MeasurementError: naming the first such tensor.
    """
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not math.isfinite(float(tensor.abs().sum())):
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
