"""What gets no quantizer, and why: every parameter and operation that is not a site."""

from __future__ import annotations

from collections import defaultdict

from torch import nn

from vitsense.discover.trace import Trace
from vitsense.sites import SiteModule, Uncovered

_NORMS = ("Norm", "BatchNormAct2d", "GroupNormAct")


def uncovered(
    model: nn.Module, trace: Trace, modules: tuple[SiteModule, ...]
) -> tuple[Uncovered, ...]:
    """Parameters that are no site's weight, grouped by reason, then operations left in float."""
    weights = {module.weight for module in modules}
    owners = dict(model.named_modules())
    rows: list[Uncovered] = []
    grouped: dict[tuple[str, str], list[tuple[str, int]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if name in weights:
            continue
        owner = owners[name.rpartition(".")[0]]
        kind, reason, together = _reason(name, owner, parameter.dim())
        if together:
            grouped[kind, reason].append((name, parameter.numel()))
        else:
            rows.append(
                Uncovered(name=name, operation=kind, reason=reason, params=parameter.numel())
            )
    for (kind, reason), members in grouped.items():
        first, count = members[0][0], len(members)
        rows.append(
            Uncovered(
                name=first if count == 1 else f"{first} and {count - 1} more",
                operation=kind,
                reason=reason,
                params=sum(size for _, size in members),
            )
        )
    return (*rows, *trace.notes.values())


def _reason(name: str, owner: nn.Module, rank: int) -> tuple[str, str, bool]:
    """Operation, reason, and whether rows of this reason are put together."""
    leaf = name.rpartition(".")[2]
    if any(mark in type(owner).__name__ for mark in _NORMS) or (rank == 1 and "norm" in name):
        return "normalization", "scales and shifts in float; folded or fused on most devices", True
    if leaf.endswith("bias") and rank == 1:
        return "bias", "added to 32-bit accumulators", True
    if "rel" in leaf or "bias" in leaf or "bias" in type(owner).__name__.lower():
        return "attention bias", "added to attention scores in float", True
    if any(mark in leaf for mark in ("pos", "token", "embed")):
        return "embedding", "added to or put beside the tokens, not multiplied", False
    if rank <= 1 or any(mark in leaf for mark in ("gamma", "scale", "temperature", "alpha")):
        return "elementwise scale", "multiplies element by element, in float", True
    if list(owner.children()) == [] and rank >= 2:
        return "unused weight", "its operation did not run for this input", False
    return "parameter", "not the weight of a linear or convolution operation", False
