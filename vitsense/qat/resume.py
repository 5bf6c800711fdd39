"""What an interrupted training needs to go on exactly where it was, in one file."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitsense.errors import InputMissingError, UserInputError
from vitsense.runfolder import replacing


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values whole or not at all.

    Raises:
        UserInputError: the disk is full or the folder cannot be written; the earlier file is kept.
    """
    with replacing(path) as stream:
        try:
            torch.save(dict(state), stream)
        except RuntimeError as error:  # torch's zip writer hides the system's reason
            raise OSError(None, str(error).splitlines()[0]) from error


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        InputMissingError: there is none.
        UserInputError: it is damaged.
    """
    if not path.is_file():
        raise InputMissingError(
            f"There is no {path} to resume from: the training was stopped before its first "
            "checkpoint. Give the same command without --resume to start it afresh."
        )
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises half a dozen unrelated types for files that are cut or foreign
        raise UserInputError(
            f"{path} is damaged and cannot be resumed from; start again under another --name."
        ) from error
    return found


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every generator a model may draw from."""
    version, internal, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(numpy_state, dict)
    found: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
    }
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def restore_random(state: Mapping[str, Any], device: torch.device) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kept = state["numpy"]
    key = kept["key"].numpy().astype(np.uint32)
    np.random.set_state(  # noqa: NPY002
        ("MT19937", key, kept["pos"], kept["has_gauss"], kept["gauss"])
    )
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
