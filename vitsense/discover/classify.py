"""Turn a trace into modules: the units of measurement, with their roles and sites."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from vitsense.discover.lineage import Attention, Split, attentions, projections
from vitsense.discover.roles import layer_role
from vitsense.discover.structure import Structure
from vitsense.discover.trace import LayerEvent, ProductEvent, Trace
from vitsense.observe.operations import Op
from vitsense.sites import Kind, ModuleRole, Site, SiteModule, SiteRole


@dataclass(slots=True)
class _Namer:
    """Gives every module a name of its own, and every tensor the name of its first site."""

    taken: set[str]
    tensors: dict[tuple[int, int], str]

    def name(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self.taken:
            number += 1
            name = f"{wanted}{number}"
        self.taken.add(name)
        return name


def classify(model: nn.Module, trace: Trace, *, classes: int) -> tuple[SiteModule, ...]:
    """All modules of a traced model in execution order."""
    found = attentions(trace)
    parts = projections(trace, found)
    structure = Structure(model, [e.path for e in trace.layers] + [e.path for e in trace.products])
    namer = _Namer(set(), {})
    first_layer = trace.layers[0] if trace.layers else None
    drafts: list[tuple[int, int, SiteModule]] = []
    for layer in _merged(trace.layers):
        role = layer_role(
            layer, trace, found, structure, classes=classes, is_first=layer is first_layer
        )
        splits = parts.get(layer, (Split(role, None, None),))
        modules = _layer_modules(layer, splits, namer)
        drafts += [(layer.tick, i, module) for i, module in enumerate(modules)]
    for product in trace.products:
        modules = _product_modules(product, found, namer)
        drafts += [(product.tick, i, module) for i, module in enumerate(modules)]
    drafts.sort(key=lambda draft: draft[:2])
    last = max(len(drafts) - 1, 1)
    finished = []
    for index, (_, _, module) in enumerate(drafts):
        block, stage = structure.block_and_stage(module.path)
        finished.append(replace(module, index=index, depth=index / last, block=block, stage=stage))
    return tuple(finished)


def _merged(layers: list[LayerEvent]) -> list[LayerEvent]:
    """One event per weight; the operations of later uses are added to the first."""
    first: dict[str, LayerEvent] = {}
    for layer in layers:
        if layer.weight in first:
            first[layer.weight].macs += layer.macs
        else:
            first[layer.weight] = layer
    return list(first.values())


def _layer_modules(layer: LayerEvent, splits: tuple[Split, ...], namer: _Namer) -> list[SiteModule]:
    base = layer.weight.removesuffix(".weight").removesuffix("_weight") or "weight"
    rank = len(layer.shape)
    modules = []
    for split in splits:
        name = namer.name(f"{base}.{split.role.value}" if split.channels is not None else base)
        rows = layer.shape[0] if split.channels is None else len(split.channels)
        shape = (rows, *layer.shape[1:])
        shared = namer.tensors.setdefault(layer.input_key, f"{name}:{SiteRole.INPUT.value}")
        modules.append(
            SiteModule(
                name=name,
                kind=Kind.LINEAR if layer.op is Op.LINEAR else Kind.CONV,
                role=split.role,
                path=layer.path,
                call=0,
                index=0,
                block="",
                stage="",
                depth=0.0,
                heads=split.heads,
                params=_size(shape),
                macs=layer.macs * rows // layer.shape[0],
                weight_shape=shape,
                weight=layer.weight,
                derived_weight=layer.derived,
                channels=split.channels,
                sites=(
                    Site(
                        module=name,
                        role=SiteRole.WEIGHT,
                        tensor=f"{name}:{SiteRole.WEIGHT.value}",
                        channel_axis=-rank,
                    ),
                    Site(
                        module=name,
                        role=SiteRole.INPUT,
                        tensor=shared,
                        channel_axis=-1 if layer.op is Op.LINEAR else -rank + 1,
                    ),
                ),
            )
        )
    return modules


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


_SCORES = (SiteRole.QUERY, SiteRole.KEY)


def _product_modules(
    event: ProductEvent, found: tuple[Attention, ...], namer: _Namer
) -> list[SiteModule]:
    heads = next((a.heads for a in found if event in (a.scores, a.mix)), None)
    if event.fused:
        query, key, value = (operand.dim() for operand in event.operands)
        mixed = (SiteRole.ATTENTION_PROBS, SiteRole.VALUE)
        return [
            _product(event, namer, heads, ModuleRole.QK_PRODUCT, _SCORES, (-1, -1), (query, key)),
            _product(event, namer, heads, ModuleRole.PV_PRODUCT, mixed, (None, -1), (4, value)),
        ]
    ranks = tuple(operand.dim() for operand in event.operands)
    inner: tuple[int | None, int | None] = (None, None) if event.einsum else (-1, -2)
    if event.probs_operand is not None:
        if event.probs_operand == 0:
            roles: tuple[SiteRole, SiteRole] = (SiteRole.ATTENTION_PROBS, SiteRole.VALUE)
            axes: tuple[int | None, int | None] = (None, -1)
        else:
            roles, axes = (SiteRole.VALUE, SiteRole.ATTENTION_PROBS), (-2, None)
        return [_product(event, namer, heads, ModuleRole.PV_PRODUCT, roles, axes, ranks)]
    if event.feeds_softmax:
        return [_product(event, namer, heads, ModuleRole.QK_PRODUCT, _SCORES, inner, ranks)]
    sides = (SiteRole.LEFT, SiteRole.RIGHT)
    return [_product(event, namer, heads, ModuleRole.PRODUCT, sides, (None, None), ranks)]


def _product(
    event: ProductEvent,
    namer: _Namer,
    heads: int | None,
    role: ModuleRole,
    roles: tuple[SiteRole, SiteRole],
    channel_axes: tuple[int | None, int | None],
    ranks: tuple[int, ...],
) -> SiteModule:
    name = namer.name(f"{event.path}.{role.value}" if event.path else role.value)
    # the letters of an einsum may put the heads anywhere
    has_heads = role is not ModuleRole.PRODUCT and not event.einsum
    sites = tuple(
        Site(
            module=name,
            role=site_role,
            tensor=f"{name}:{site_role.value}",
            channel_axis=axis,
            head_axis=-3 if has_heads and rank >= 4 else None,
        )
        for site_role, axis, rank in zip(roles, channel_axes, ranks, strict=True)
    )
    return SiteModule(
        name=name,
        kind=Kind.PRODUCT,
        role=role,
        path=event.path,
        call=event.call,
        index=0,
        block="",
        stage="",
        depth=0.0,
        heads=heads,
        params=0,
        macs=event.macs,
        weight_shape=(),
        sites=sites,
    )
