"""Blocks and stages: the repeated containers a module stands in."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


class Structure:
    """Tells block and stage of a path from how a model repeats itself.

    A repeated container has a sibling of the same class and holds at least two operations. The
    innermost one around a path is its block; the outermost, where it holds blocks, its stage.
    """

    def __init__(self, model: nn.Module, operation_paths: Iterable[str]) -> None:
        self._modules = dict(model.named_modules())
        self._operations = sorted(set(operation_paths))
        self._repeated: dict[str, bool] = {}
        chains = {path: self._chain(path) for path in self._operations}
        self._stages = {chain[0] for chain in chains.values() if len(chain) > 1}

    def block_and_stage(self, path: str) -> tuple[str, str]:
        """Dotted paths of block and stage, ``""`` where there is none."""
        chain = self._chain(path)
        if not chain:
            return "", ""
        stage = chain[0] if chain[0] in self._stages else ""
        block = chain[-1] if chain[-1] != stage else ""
        return block, stage

    def _chain(self, path: str) -> list[str]:
        parts = path.split(".") if path else []
        prefixes = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return [prefix for prefix in prefixes if self._is_repeated(prefix)]

    def _is_repeated(self, path: str) -> bool:
        if path not in self._repeated:
            parent = self._modules.get(path.rpartition(".")[0])
            module = self._modules.get(path)
            siblings = [] if parent is None else list(parent.children())
            alike = sum(type(s) is type(module) for s in siblings) > 1
            self._repeated[path] = alike and self._operations_in(path) > 1
        return self._repeated[path]

    def _operations_in(self, path: str) -> int:
        return sum(p == path or p.startswith(path + ".") for p in self._operations)
