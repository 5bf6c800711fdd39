"""Which output channels of which projection reach the query, key and value of an attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitsense.discover.trace import LayerEvent, ProductEvent, Trace
from vitsense.observe.operations import Op
from vitsense.sites import ModuleRole

_NEARBY = 16
"""How many layers before an attention are searched for its projections."""

_ROLES = (ModuleRole.QUERY, ModuleRole.KEY, ModuleRole.VALUE)


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """One softmax attention of the trace."""

    scores: ProductEvent
    """The product of query and key (the fused call itself where attention is fused)."""
    mix: ProductEvent
    """The product of probabilities and value (the same event where fused)."""
    query: Tensor
    key: Tensor
    value: Tensor

    @property
    def heads(self) -> int | None:
        """Number of heads, where the operands have an axis for them, `(B, H, N, D)`."""
        return int(self.query.shape[-3]) if self.query.dim() >= 4 else None


def attentions(trace: Trace) -> tuple[Attention, ...]:
    """Every softmax attention, in order."""
    found = []
    for event in trace.products:
        if event.fused:
            query, key, value = event.operands
            found.append(Attention(event, event, query, key, value))
        elif event.probs_operand is not None:
            value = event.operands[1 - event.probs_operand]
            for scores in event.scores[:1]:
                query, key = scores.operands
                found.append(Attention(scores, event, query, key, value))
    return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The part of a projection that makes one operand."""

    role: ModuleRole
    channels: tuple[int, ...] | None
    """Output channels, ascending; None means all."""
    heads: int | None


def projections(trace: Trace, found: Sequence[Attention]) -> dict[LayerEvent, tuple[Split, ...]]:
    """The layers that make queries, keys and values, each with its parts."""
    result: dict[LayerEvent, tuple[Split, ...]] = {}
    for attention in found:
        masks: dict[LayerEvent, dict[ModuleRole, Tensor]] = {}
        for role, operand in zip(
            _ROLES, (attention.query, attention.key, attention.value), strict=True
        ):
            source = _source(trace, attention.scores.tick, operand)
            if source is not None:
                masks.setdefault(source[0], {})[role] = source[1]
        for layer, by_role in masks.items():
            result.setdefault(layer, _splits(by_role, attention.heads))
    return result


def _source(trace: Trace, before: int, operand: Tensor) -> tuple[LayerEvent, Tensor] | None:
    """The nearest dense layer that ``operand`` is computed from, and the channels that reach it.

    The gradient of a random projection of the operand is zero exactly on channels that do not
    reach it. A plain sum would not do: the sum of a normalized vector has no gradient.
    """
    near = [e for e in trace.layers if e.tick < before and e.groups == 1][-_NEARBY:]
    if not near or not operand.requires_grad:
        return None
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(operand.shape, generator=generator).to(operand)
    gradients = torch.autograd.grad(
        (operand * weights).sum(),
        [event.output for event in near],
        retain_graph=True,
        allow_unused=True,
    )
    for event, gradient in zip(reversed(near), reversed(gradients), strict=True):
        if gradient is None or not bool(gradient.any()):
            continue
        axis = (
            gradient.dim() - 1 if event.op is Op.LINEAR else gradient.dim() - len(event.shape) + 1
        )
        others = [i for i in range(gradient.dim()) if i != axis]
        return event, gradient.abs().sum(others) > 0
    return None


def _splits(by_role: dict[ModuleRole, Tensor], heads: int | None) -> tuple[Split, ...]:
    if len(by_role) == 1:
        (role,) = by_role
        return (Split(role, None, heads),)
    owners = torch.stack([mask.long() for mask in by_role.values()]).sum(dim=0)
    if not bool((owners == 1).all()):
        return (Split(ModuleRole.QKV, None, heads),)
    return tuple(
        Split(role, tuple(mask.nonzero().flatten().tolist()), heads)
        for role, mask in by_role.items()
    )
