"""Hooks and the torch-function mode: who is running, and every tensor function it calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn
from torch.overrides import TorchFunctionMode

from vitsense.observe.operations import OPS, Call, Op


class Handler(Protocol):
    """What is done with an intercepted call."""

    every_function: bool
    """Whether to be called for functions that are not in `OPS` as well."""

    def begin(self) -> None:
        """The model's own forward starts."""

    def handle(self, op: Op | None, call: Call, path: str) -> Any:
        """Give the call's result; ``path`` is the innermost running module."""


class ModuleStack:
    """Dotted paths of the modules that are running, innermost last; the model itself is ``""``."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def install(self, model: nn.Module, begin: Callable[[], None]) -> list[Any]:
        """Register the hooks that keep the stack; gives the handles to remove."""
        handles: list[Any] = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(name, begin)))
            # always_call: a module that raises must leave the stack as well
            handles.append(module.register_forward_hook(self._leaving, always_call=True))
        return handles

    def _entering(self, name: str, begin: Callable[[], None]) -> Callable[..., None]:
        def enter(_module: nn.Module, _args: Any) -> None:
            if not self.paths:
                begin()
            self.paths.append(name)

        return enter

    def _leaving(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self.paths:
            self.paths.pop()


class FunctionMode(TorchFunctionMode):
    """Hands the calls made by running modules to a handler."""

    def __init__(self, paths: list[str], handler: Handler) -> None:
        """``paths``: the running modules, innermost last, kept by hooks."""
        super().__init__()
        self._paths = paths
        self._handler = handler

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        paths = self._paths
        op = OPS.get(func) if paths else None
        if not paths or (op is None and not self._handler.every_function):
            return func(*args, **kwargs)
        return self._handler.handle(op, Call(func, args, kwargs), paths[-1])


@contextmanager
def intercepting(model: nn.Module, handler: Handler) -> Iterator[TorchFunctionMode]:
    """Install the hooks; inside, run the model under the yielded mode (``with mode: model(x)``)."""
    stack = ModuleStack()
    handles = stack.install(model, handler.begin)
    try:
        yield FunctionMode(stack.paths, handler)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Run in eval mode; give back each module's own training flag.

    ``model.train(saved)`` would forget a layer that was individually in eval mode.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def parameter_names(model: nn.Module) -> dict[int, str]:
    """Name of each parameter by the id of the tensor (the first name of a shared one)."""
    return {id(parameter): name for name, parameter in model.named_parameters()}
