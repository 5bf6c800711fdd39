"""A model whose every forward runs with its operations carried out by someone else.

`observing` is for the length of a context. Training needs the same for the life of a model: the
hooks stay on the (copied) model, and each forward enters the torch-function mode by itself, so
that autograd, ``copy.deepcopy``, ``state_dict`` and ``torch.compile`` see an ordinary module.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import MutableMapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from vitsense.errors import SiteMismatchError
from vitsense.observe.attention import can_expand, multi_head_attention
from vitsense.observe.operations import Call, Op
from vitsense.observe.stack import FunctionMode, parameter_names
from vitsense.sites import Kind, SiteModule


class Operations(Protocol):
    """Carries out the operations of a model's modules."""

    def layer(self, modules: Sequence[SiteModule], call: Call, channel_axis: int) -> Any:
        """The linear or convolution whose weight belongs to ``modules`` (slices of it).

        ``channel_axis`` is the axis of the output's channels, counted from the end.
        """

    def product(self, module: SiteModule, call: Call) -> Any:
        """A product of two activations."""

    def attention(self, modules: Sequence[SiteModule], call: Call) -> Any:
        """A fused attention that holds the products ``modules``."""


class _Enter:
    """A hook that is an object: a copy of the model gets a copy that belongs to it."""

    def __init__(self, name: str, paths: list[str]) -> None:
        self._name = name
        self._paths = paths

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        self._paths.append(self._name)


class _Leave:
    def __init__(self, paths: list[str]) -> None:
        self._paths = paths

    def __call__(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._paths.pop()


class _Router:
    """The handler: finds the modules of an intercepted call and hands it to the operations."""

    every_function = False

    def __init__(self, modules: Sequence[SiteModule]) -> None:
        self.operations: Operations | None = None
        self._calls: dict[str, int] = defaultdict(int)
        self._products: dict[tuple[str, int], list[SiteModule]] = {}
        weights: dict[str, list[SiteModule]] = {}
        for module in modules:
            if module.kind is Kind.PRODUCT:
                self._products.setdefault((module.path, module.call), []).append(module)
            elif module.weight is not None:
                weights.setdefault(module.weight, []).append(module)
        # most weights are the only one used where they run; the others are told by identity
        paths: dict[str, set[str]] = defaultdict(set)
        for weight, group in weights.items():
            paths[group[0].path].add(weight)
        self._by_path = {
            group[0].path: group
            for weight, group in weights.items()
            if len(paths[group[0].path]) == 1
            and (group[0].derived_weight or weight == f"{group[0].path}.weight")
        }
        self._by_name = weights
        self._by_id: dict[int, list[SiteModule]] = {}

    def bind(self, model: nn.Module) -> None:
        """Know the parameters of ``model`` by identity (they change when a model is copied)."""
        names = parameter_names(model)
        self._by_id = {i: self._by_name[name] for i, name in names.items() if name in self._by_name}

    def begin(self) -> None:
        """Count products from the start of every forward."""
        self._calls.clear()

    def handle(self, op: Op | None, call: Call, path: str) -> Any:
        """Run the call, by the operations if it belongs to a module."""
        assert self.operations is not None
        if op is Op.LINEAR or op is Op.CONV:
            group = self._by_path.get(path) or self._by_id.get(id(call.weight))
            axis = -1 if op is Op.LINEAR else 1 - call.weight.dim()
            return call.run() if group is None else self.operations.layer(group, call, axis)
        if op is Op.PRODUCT or op is Op.SDPA:
            group = self._products.get((path, self._calls[path]))
            self._calls[path] += 1
            if group is None:
                return call.run()
            if op is Op.SDPA:
                return self.operations.attention(group, call)
            return self.operations.product(group[0], call)
        if op is Op.MHA and can_expand(call):
            return multi_head_attention(call, lambda inner: self._expanded(inner, path))
        return call.run()

    def _expanded(self, call: Call, path: str) -> Any:
        op = Op.LINEAR if call.function is nn.functional.linear else Op.SDPA
        return self.handle(op, call, path)


class Intercepted(nn.Module):
    """A copy of a model whose linear, convolution and product operations run elsewhere.

    Subclasses set ``self.operations``. The copy's parameters and buffers are those of
    ``self.model``.
    """

    def __init__(self, model: nn.Module, modules: Sequence[SiteModule]) -> None:
        """Copy ``model`` and put the hooks on the copy.

        Raises:
            SiteMismatchError: a module's weight is not in the model.
        """
        super().__init__()
        known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        missing = sorted({m.weight for m in modules if m.weight is not None} - known)
        if missing:
            raise SiteMismatchError(
                f"The model has no parameter {missing[0]!r} ({len(missing)} of the catalog's "
                "weights are missing): the catalog belongs to another model; find the sites again."
            )
        self.model = copy.deepcopy(model)
        self._paths: list[str] = []
        self._router = _Router(modules)
        self._install()

    def _install(self) -> None:
        for name, module in self.model.named_modules():
            module.register_forward_pre_hook(_Enter(name, self._paths))
            module.register_forward_hook(_Leave(self._paths))

    def operations(self) -> Operations:
        """Who carries the operations out."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, classes)` of images `(B, 3, H, W)`."""
        self._paths.clear()  # a forward that raised has left its names behind
        router = self._router
        router.begin()
        router.operations = self.operations()
        router.bind(self.model)
        try:
            with FunctionMode(self._paths, router):
                logits: Tensor = self.model(images)
                return logits
        finally:
            router.operations = None

    def float_model(self) -> nn.Module:
        """A copy of the model with its full-precision weights and without any interception."""
        plain = copy.deepcopy(self.model)
        for module in plain.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                _drop(hooks)
        return plain


def _drop(hooks: MutableMapping[int, Any]) -> None:
    for key in [k for k, hook in hooks.items() if isinstance(hook, (_Enter, _Leave))]:
        del hooks[key]
