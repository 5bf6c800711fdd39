"""The plan as other tools see a model: layers with one width each, and what that loses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import nn

from vitsense.errors import UserInputError
from vitsense.export.fixed import FixedModel
from vitsense.sites import Kind, SiteModule


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A linear layer or convolution of the torch model."""

    path: str
    modules: tuple[str, ...]
    """The plan's modules in it: one, or the parts of a fused projection."""
    weight_bits: int | None
    """None: the weight stays in float."""
    input_bits: int | None
    is_conv: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something the plan says and the tool cannot."""

    module: str
    what: str


@dataclass(slots=True, kw_only=True)
class Translation:
    """The layers a tool can have, and the changes that took."""

    layers: list[Layer] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def refuse_changes(self, tool: str, *, fallback: bool) -> None:
        """Refuse to lose something in silence.

        Raises:
            UserInputError: there are changes and ``fallback`` is off.
        """
        if self.changes and not fallback:
            first = self.changes[0]
            raise UserInputError(
                f"{tool} cannot express {len(self.changes)} parts of the plan, first "
                f"{first.module}: {first.what}. With --fallback the nearest wider format is taken "
                "and every change is listed in export.json."
            )


Allowed = Callable[[int], int | None]
"""Bits of the plan -> the bits a tool has for them, or None for float."""


def exactly(bits: int) -> int | None:
    """For tools that have every width."""
    return bits


def next_of(*widths: int) -> Allowed:
    """For tools with some widths only: the next wider one."""
    return lambda bits: next((width for width in sorted(widths) if width >= bits), None)


def translate(
    fixed: FixedModel,
    tool: str,
    *,
    weights: Allowed = exactly,
    inputs: Allowed | None = exactly,
    convolutions: bool = True,
    products: bool = False,
) -> Translation:
    """One width per layer, as a tool takes it.

    Args:
        fixed: The quantized model.
        tool: Its name, for the sentences.
        weights: The widths it has for weights.
        inputs: The widths it has for inputs; None where inputs stay in float.
        convolutions: Whether it quantizes convolutions.
        products: Whether the tool's file can name the operands of attention products (then they
            are left to the caller).
    """
    found = Translation()
    grouped: dict[str, list[SiteModule]] = {}
    for module in fixed.catalog:
        if not any(site.id in fixed.formats for site in module.sites):
            continue
        if module.kind is Kind.PRODUCT:
            if not products:
                what = f"{tool} quantizes layers; this product stays in float"
                found.changes.append(Change(module=module.name, what=what))
            continue
        torch_module = fixed.model.get_submodule(module.path)
        if not isinstance(torch_module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            what = f"{tool} knows no layer {type(torch_module).__name__}; it stays in float"
            found.changes.append(Change(module=module.name, what=what))
        elif module.kind is Kind.CONV and not convolutions:
            what = f"{tool} does not quantize convolutions; it stays in float"
            found.changes.append(Change(module=module.name, what=what))
        else:
            grouped.setdefault(module.path, []).append(module)
    for path, members in grouped.items():
        layer = _layer(fixed, path, members, tool, weights, inputs, found.changes)
        if layer is not None:
            found.layers.append(layer)
    return found


def _layer(
    fixed: FixedModel,
    path: str,
    members: list[SiteModule],
    tool: str,
    weights: Allowed,
    inputs: Allowed | None,
    changes: list[Change],
) -> Layer | None:
    planned = {m.name: _bits(fixed, m) for m in members}
    widest_weight = _widest(weight for weight, _ in planned.values())
    widest_input = _widest(inp for _, inp in planned.values())
    weight = None if widest_weight is None else weights(widest_weight)
    given = None if widest_input is None or inputs is None else inputs(widest_input)
    for name, (own_weight, own_input) in planned.items():
        if own_weight != weight:
            what = f"weight {_said(own_weight)} becomes {_said(weight)} in {tool}"
            changes.append(Change(module=name, what=what))
        if own_input != given:
            what = f"input {_said(own_input)} becomes {_said(given)} in {tool}"
            changes.append(Change(module=name, what=what))
    if weight is None and given is None:
        return None
    return Layer(
        path=path,
        modules=tuple(planned),
        weight_bits=weight,
        input_bits=given,
        is_conv=members[0].kind is Kind.CONV,
    )


def _bits(fixed: FixedModel, module: SiteModule) -> tuple[int | None, int | None]:
    """Planned bits of the weight and of the input; None is float."""
    formats = fixed.formats
    weight, taken = (formats.get(f"{module.name}:{role}") for role in ("weight", "input"))
    return (None if weight is None else weight.bits, None if taken is None else taken.bits)


def _widest(bits: Iterable[int | None]) -> int | None:
    """Float if any part is float: the widest of a fused projection must hold for all."""
    values = list(bits)
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def _said(bits: int | None) -> str:
    return "in float" if bits is None else f"of {bits} bits"
