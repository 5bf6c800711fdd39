"""The features a classifier is given: the input of a model's last linear layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Features:
    """Holds the features of the last forward."""

    def __init__(self) -> None:
        self.tensor: Tensor | None = None

    def _take(self, _module: nn.Module, args: Any) -> None:
        if args and isinstance(args[0], Tensor):
            self.tensor = args[0]

    def __call__(self, module: nn.Module, args: Any) -> None:
        """The hook."""
        self._take(module, args)


@contextmanager
def features_of(model: nn.Module, path: str) -> Iterator[Features]:
    """Inside, every forward of ``model`` leaves the input of the module ``path``, `(B, D)`."""
    features = Features()
    handle = model.get_submodule(path).register_forward_pre_hook(features)
    try:
        yield features
    finally:
        handle.remove()
        features.tensor = None
