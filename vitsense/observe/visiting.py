"""Visit the tensors at the sites of a catalog while the model runs, and replace them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vitsense.errors import SiteMismatchError
from vitsense.observe.attention import (
    attention_output,
    attention_scores,
    can_expand,
    multi_head_attention,
)
from vitsense.observe.operations import Call, Op
from vitsense.observe.stack import intercepting, parameter_names
from vitsense.sites import Kind, SiteCatalog, SiteModule, SiteRole

Visit = Callable[[Tensor], "Tensor | None"]
"""Looks at a tensor; gives the tensor to use instead, or None to leave it."""

_NO_VISITS: Mapping[str, Visit] = {}


class SiteHandler:
    """Finds the modules of a catalog among intercepted calls and applies visits to their sites."""

    every_function = False

    def __init__(self, model: nn.Module, catalog: SiteCatalog) -> None:
        names = parameter_names(model)
        by_name: dict[str, list[SiteModule]] = defaultdict(list)
        for module in catalog:
            if module.kind is not Kind.PRODUCT and module.weight is not None:
                by_name[module.weight].append(module)
        known = set(names.values())
        missing = sorted(set(by_name) - known)
        if missing:
            raise SiteMismatchError(
                f"The model has no parameter {missing[0]!r} ({len(missing)} of the catalog's "
                "weights are missing): the catalog belongs to another model; find the sites again."
            )
        self._by_weight = {key: by_name[name] for key, name in names.items() if name in by_name}
        # weights that are computed before use (weight standardization) are known by their module
        self._by_path = {
            m.path: by_name[m.weight] for m in catalog if m.derived_weight and m.weight is not None
        }
        self._products: dict[tuple[str, int], list[SiteModule]] = defaultdict(list)
        for module in catalog:
            if module.kind is Kind.PRODUCT:
                self._products[module.path, module.call].append(module)
        self._calls: dict[str, int] = defaultdict(int)
        self.visits: Mapping[str, Visit] = _NO_VISITS
        self.seen: Callable[[SiteModule], None] | None = None

    def begin(self) -> None:
        """Count products from the start of every forward."""
        self._calls.clear()

    def handle(self, op: Op | None, call: Call, path: str) -> Any:
        """Run the call, with visited tensors exchanged."""
        if op is Op.LINEAR or op is Op.CONV:
            return self._layer(call, path, -1 if op is Op.LINEAR else -call.weight.dim() + 1)
        if op is Op.PRODUCT or op is Op.SDPA:
            modules = self.products_of(path)
            self._mark(modules)
            active = [m for m in modules if any(s.id in self.visits for s in m.sites)]
            if not active:
                return call.run()
            return self._attention(call, active) if op is Op.SDPA else self._product(call, active)
        if op is Op.MHA and can_expand(call):
            return multi_head_attention(call, lambda inner: self._expanded(inner, path))
        return call.run()

    def layers_of(self, call: Call, path: str) -> list[SiteModule]:
        """The catalog's modules of a linear or convolution call; several for a fused one."""
        return self._by_weight.get(id(call.weight)) or self._by_path.get(path, [])

    def products_of(self, path: str) -> list[SiteModule]:
        """The catalog's modules of the next product inside ``path``; two for fused attention."""
        number = self._calls[path]
        self._calls[path] += 1
        return self._products.get((path, number), [])

    def _expanded(self, call: Call, path: str) -> Any:
        op = Op.LINEAR if call.function is torch.nn.functional.linear else Op.SDPA
        return self.handle(op, call, path)

    def _mark(self, modules: list[SiteModule]) -> None:
        if self.seen is not None:
            for module in modules:
                self.seen(module)

    def _visit(self, module: SiteModule, role: SiteRole, tensor: Tensor) -> Tensor:
        visit = self.visits.get(f"{module.name}:{role.value}")
        if visit is None:
            return tensor
        replacement = visit(tensor)
        return tensor if replacement is None else replacement

    def _layer(self, call: Call, path: str, channel_axis: int) -> Any:
        modules = self.layers_of(call, path)
        self._mark(modules)
        active = [m for m in modules if any(s.id in self.visits for s in m.sites)]
        if not active:
            return call.run()
        if active[0].channels is None:
            (module,) = active
            return self._whole(call, module).run()
        return self._slices(call, active, channel_axis)

    def _whole(self, call: Call, module: SiteModule) -> Call:
        x = self._visit(module, SiteRole.INPUT, call.input)
        weight = self._visit(module, SiteRole.WEIGHT, call.weight)
        return call.with_layer(x, weight, call.bias)

    def _slices(self, call: Call, active: list[SiteModule], channel_axis: int) -> Tensor:
        """The fused output; channels of active slices are computed from visited tensors."""
        parts: dict[tuple[int, ...], Tensor] = {}
        for module in active:
            channels = module.channels or ()
            index = as_index(channels)
            bias = None if call.bias is None else call.bias[index]
            part: Call = call.with_layer(call.input, call.weight[index], bias)
            visited = self._whole(part, module)
            if visited.input is part.input and visited.weight is part.weight:
                continue  # only looked at: the fused output already holds these channels
            parts[channels] = visited.run()
        if sum(parts, ()) == tuple(range(call.weight.shape[0])):
            # every channel was computed anew, in order: the fused product is not needed
            return torch.cat(list(parts.values()), dim=channel_axis)
        output: Tensor = call.run()
        for channels, values in parts.items():
            output[(..., as_index(channels), *(slice(None),) * (-channel_axis - 1))] = values
        return output

    def _product(self, call: Call, active: list[SiteModule]) -> Any:
        left, right = call.operands()
        for module in active:
            left = self._visit(module, module.sites[0].role, left)
            right = self._visit(module, module.sites[1].role, right)
        return call.with_operands(left, right).run()

    def _attention(self, call: Call, active: list[SiteModule]) -> Any:
        for module in active:
            for position, role in enumerate((SiteRole.QUERY, SiteRole.KEY, SiteRole.VALUE)):
                tensor = call.get(position, role.value)
                call = call.put(position, role.value, self._visit(module, role, tensor))
        inside = [m for m in active if f"{m.name}:attention_probs" in self.visits]
        if not inside:
            return call.run()
        probs = attention_scores(call)
        for module in inside:
            probs = self._visit(module, SiteRole.ATTENTION_PROBS, probs)
        return attention_output(call, probs, call.get(2, "value"))


def as_index(channels: tuple[int, ...]) -> slice | list[int]:
    """A slice where the channels are contiguous (no copy of the weight), else a list."""
    first, last = channels[0], channels[-1]
    return slice(first, last + 1) if last - first + 1 == len(channels) else list(channels)


class Observer:
    """Runs a model with visits; made by `observer_of`, valid inside its context."""

    def __init__(self, model: nn.Module, handler: SiteHandler, mode: Any) -> None:
        self._model = model
        self._handler = handler
        self._mode = mode

    def run(self, images: Tensor, visits: Mapping[str, Visit] = _NO_VISITS) -> Any:
        """The model's output for ``images``, `(B, 3, H, W)`, with the visits in force."""
        self._handler.visits = visits
        try:
            with self._mode:
                return self._model(images)
        finally:
            self._handler.visits = _NO_VISITS


@contextmanager
def observer_of(model: nn.Module, catalog: SiteCatalog) -> Iterator[Observer]:
    """An `Observer` with its hooks installed for the length of the context."""
    handler = SiteHandler(model, catalog)
    with intercepting(model, handler) as mode:
        yield Observer(model, handler, mode)


@contextmanager
def observing(
    model: nn.Module, catalog: SiteCatalog, visits: Mapping[str, Visit]
) -> Iterator[None]:
    """Inside, every forward of ``model`` calls ``visits[site.id](tensor)`` at those sites.

    Sites with equal `Site.tensor` see the same tensor object: to look, visit one of them.

    Raises:
        SiteMismatchError: a visited id is not in the catalog, or the catalog is another model's.
    """
    known = {site.id for site in catalog.sites}
    unknown = sorted(set(visits) - known)
    if unknown:
        raise SiteMismatchError(f"No site {unknown[0]!r} among the {len(known)} of this model.")
    handler = SiteHandler(model, catalog)
    handler.visits = visits
    with intercepting(model, handler) as mode, mode:
        yield
