"""Compute only what comes after a module, by giving back what ran before it.

The full-precision pass of a micro-batch remembers the output of every module that runs once. A
quantized pass returns those outputs from memory for the modules that had finished before the
quantized operation started, which cannot depend on it, and computes the rest. torch has no hook
that skips a forward, so ``forward`` is overridden on the instances for the length of the context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitsense.observe.stack import intercepting
from vitsense.observe.visiting import SiteHandler, Visit
from vitsense.sites import SiteCatalog, SiteModule


@dataclass(slots=True)
class _Unit:
    """A module whose output is remembered."""

    forward: Callable[..., Any]
    calls: int = 0
    end: int = -1
    output: Any = None
    versions: tuple[int, ...] = ()
    intact: bool = False


@dataclass(slots=True)
class _Clock:
    """Orders the ends of modules and the starts of operations within one forward."""

    now: int = 0
    recording: bool = False
    replay_before: int = -1
    starts: dict[str, int] = field(default_factory=dict)

    def tick(self) -> int:
        self.now += 1
        return self.now


class ReplaySession:
    """A model prepared for many passes over the same images; made by `ReplaySession.open`."""

    def __init__(
        self, model: nn.Module, handler: SiteHandler, mode: Any, units: dict[str, _Unit]
    ) -> None:
        self._model = model
        self._handler = handler
        self._mode = mode
        self._units = units
        self._clock = _Clock()
        self._images: Tensor | None = None

    @classmethod
    @contextmanager
    def open(cls, model: nn.Module, catalog: SiteCatalog) -> Iterator[ReplaySession]:
        """Install hooks and forward overrides; all are removed when the context ends."""
        handler = SiteHandler(model, catalog)
        modules = {name: module for name, module in model.named_modules() if name}
        units = {name: _Unit(module.forward) for name, module in modules.items()}
        had_own = {name: module.__dict__.get("forward") for name, module in modules.items()}
        with intercepting(model, handler) as mode:
            session = cls(model, handler, mode, units)
            handler.seen = session._started
            try:
                for name, module in modules.items():
                    module.__dict__["forward"] = session._remembering(units[name])
                yield session
            finally:
                for name, module in modules.items():
                    module.__dict__.pop("forward", None)
                    if had_own[name] is not None:
                        module.__dict__["forward"] = had_own[name]
                session.forget()

    def _started(self, module: SiteModule) -> None:
        if self._clock.recording:
            self._clock.starts.setdefault(module.name, self._clock.tick())

    def _remembering(self, unit: _Unit) -> Callable[..., Any]:
        clock = self._clock

        def forward(*args: Any, **kwargs: Any) -> Any:
            if clock.recording:
                output = unit.forward(*args, **kwargs)
                unit.calls += 1
                unit.end = clock.tick()
                unit.output = output
                unit.versions = tuple(t._version for t in tensors_in(output))
                return output
            if unit.intact and unit.end < clock.replay_before:
                return unit.output
            return unit.forward(*args, **kwargs)

        return forward

    def record(self, images: Tensor, visits: Mapping[str, Visit] | None = None) -> Tensor:
        """Logits `(B, classes)` of the images, remembering every module's output.

        Of the full-precision model, or of the one that ``visits`` make of it; a later `replay` must
        then differ from it in nothing that runs before its modules.
        """
        self.forget()
        self._images = images
        clock = self._clock
        clock.now, clock.recording, clock.starts = 0, True, {}
        try:
            logits = self._run(visits or {}, replay_before=-1)
        finally:
            clock.recording = False
        for unit in self._units.values():
            # an output that a later operation changed in place must be computed anew
            unit.intact = unit.calls == 1 and unit.versions == tuple(
                t._version for t in tensors_in(unit.output)
            )
            if not unit.intact:
                unit.output = None
        return logits

    def show(self, images: Tensor) -> Tensor:
        """Logits `(B, classes)` of the images, remembering only them; `full` passes may follow."""
        self.forget()
        self._images = images
        return self.full({})

    def replay(
        self, visits: Mapping[str, Visit], modules: SiteModule | Iterable[SiteModule]
    ) -> Tensor:
        """Logits of the recorded images with ``visits`` in force.

        They may differ from those of the recorded pass inside ``modules`` only.
        """
        some = (modules,) if isinstance(modules, SiteModule) else tuple(modules)
        starts = [self._clock.starts.get(module.name, -1) for module in some]
        return self._run(visits, replay_before=min(starts, default=-1))

    def full(self, visits: Mapping[str, Visit]) -> Tensor:
        """Logits of the recorded images with ``visits`` in force, everything computed."""
        return self._run(visits, replay_before=-1)

    def unharmed(self) -> bool:
        """Whether every remembered output is still as it was recorded."""
        return all(
            unit.versions == tuple(t._version for t in tensors_in(unit.output))
            for unit in self._units.values()
            if unit.intact
        )

    def remembered_bytes(self) -> int:
        """Memory held by the remembered outputs, shared storage counted once."""
        sizes: dict[int, int] = {}
        for unit in self._units.values():
            for tensor in tensors_in(unit.output):
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
        return sum(sizes.values())

    def forget(self) -> None:
        """Release the remembered outputs."""
        for unit in self._units.values():
            unit.calls, unit.end, unit.output, unit.versions, unit.intact = 0, -1, None, (), False

    def _run(self, visits: Mapping[str, Visit], *, replay_before: int) -> Tensor:
        self._handler.visits = visits
        self._clock.replay_before = replay_before
        try:
            # no_grad and not inference_mode: inference tensors have no version counter
            with torch.no_grad(), self._mode:
                logits: Tensor = self._model(self._images)
                return logits
        finally:
            self._handler.visits = {}
            self._clock.replay_before = -1


def tensors_in(value: Any) -> tuple[Tensor, ...]:
    """The tensors of an output, whatever it is nested in."""
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, dict):
        return tuple(t for item in value.values() for t in tensors_in(item))
    if isinstance(value, (list, tuple)):
        return tuple(t for item in value for t in tensors_in(item))
    return ()
