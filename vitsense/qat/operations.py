"""The operations of a prepared model: each on tensors rounded by the quantizers of its sites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vitsense.observe.attention import attention_output, attention_scores
from vitsense.observe.operations import Call
from vitsense.qat import attention, functions
from vitsense.qat.quantizers import Quantizer
from vitsense.qat.rounding import LearnedGrid
from vitsense.sites import SiteModule, SiteRole

_MATMULS = {
    torch.matmul,
    torch.Tensor.matmul,
    torch.bmm,
    torch.Tensor.bmm,
    torch.mm,
    torch.Tensor.mm,
    torch.Tensor.__rmatmul__,
}
_ROLES = (SiteRole.QUERY, SiteRole.KEY, SiteRole.ATTENTION_PROBS, SiteRole.VALUE)


class QuantizedOperations:
    """`vitsense.observe.lasting.Operations` with a quantizer in front of every planned operand.

    Linear layers, convolutions, matrix products and fused attention run in `functions`, which
    keep little for the backward pass; what those do not know (einsum, attention with dropout)
    runs as it is on operands that were rounded before.
    """

    def __init__(self, quantizers: Mapping[str, Quantizer]) -> None:
        self._quantizers = quantizers

    def layer(self, modules: Sequence[SiteModule], call: Call, channel_axis: int) -> Tensor:
        """A linear or convolution; slices of a fused one are computed apart."""
        if modules[0].channels is None:
            return self._layer(modules[0], call)
        order = [channel for module in modules for channel in module.channels or ()]
        rows = call.weight.shape[0]
        whole = order == list(range(rows))
        if whole and self._one_input(modules):
            return self._joined(modules, call)
        parts = [self._layer(module, _slice(call, module)) for module in modules]
        if whole:
            return torch.cat(parts, dim=channel_axis)
        if len(order) == rows:
            joined = torch.cat(parts, dim=channel_axis)
            back = torch.tensor(order, device=joined.device).argsort()
            return joined.index_select(channel_axis, back)
        output: Tensor = call.run()  # some channels have no quantizer
        for module, part in zip(modules, parts, strict=True):
            index = torch.tensor(module.channels, device=part.device)
            output = output.index_copy(channel_axis % output.dim(), index, part)
        return output

    def product(self, module: SiteModule, call: Call) -> Tensor:
        """A product of two activations."""
        left, right = call.operands()
        first, second = (site.role for site in module.sites)
        if call.function in _MATMULS and left.dim() > 1 and right.dim() > 1:
            grids = (self._grid(module, first, left), self._grid(module, second, right))
            result: Tensor = functions.product(left, right, *grids)
            return result
        left, right = self._rounded(module, first, left), self._rounded(module, second, right)
        rounded: Tensor = call.with_operands(left, right).run()
        return rounded

    def attention(self, modules: Sequence[SiteModule], call: Call) -> Tensor:
        """softmax(Q·Kᵀ) V with Q, K, the probabilities and V rounded."""
        by_role = {site.role: module for module in modules for site in module.sites}
        query, key, value = (call.get(i, name) for i, name in enumerate(("query", "key", "value")))
        plain = query.dim() == 4 and not (
            call.get(4, "dropout_p", 0.0)
            or call.get(5, "is_causal", False)
            or call.kwargs.get("enable_gqa")
        )
        inside = by_role.get(SiteRole.ATTENTION_PROBS)
        rounds_inside = inside is not None and self._has(inside, SiteRole.ATTENTION_PROBS)
        if plain and rounds_inside:
            scale = call.kwargs.get("scale")
            scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
            tensors = (query, key, query, value)
            grids = tuple(
                self._grid(by_role[role], role, tensor) if role in by_role else None
                for role, tensor in zip(_ROLES, tensors, strict=True)
            )
            mask = _additive(call.get(3, "attn_mask"), query)
            result: Tensor = attention.attention(query, key, value, mask, scale, grids)
            return result
        for position, role in enumerate((SiteRole.QUERY, SiteRole.KEY, SiteRole.VALUE)):
            if role in by_role:
                tensor = self._rounded(by_role[role], role, call.get(position, role.value))
                call = call.put(position, role.value, tensor)
        if inside is None or not rounds_inside:
            fused: Tensor = call.run()
            return fused
        probs = self._rounded(inside, SiteRole.ATTENTION_PROBS, attention_scores(call))
        return attention_output(call, probs, call.get(2, "value"))

    def _layer(self, module: SiteModule, call: Call) -> Tensor:
        x, weight = call.input, call.weight
        xg = self._grid(module, SiteRole.INPUT, x)
        wg = self._grid(module, SiteRole.WEIGHT, weight)
        result: Tensor
        if call.function is F.linear:
            result = functions.linear(x, weight, call.bias, xg, wg)
            return result
        geometry = _geometry(call)
        if geometry is not None and x.dim() == weight.dim():
            result = functions.convolution(x, weight, call.bias, xg, wg, geometry)
            return result
        x = self._rounded(module, SiteRole.INPUT, x)
        weight = self._rounded(module, SiteRole.WEIGHT, weight)
        result = call.with_layer(x, weight, call.bias).run()
        return result

    def _one_input(self, modules: Sequence[SiteModule]) -> bool:
        """Whether the slices round their common input alike and their weights to one format."""
        inputs = [self._quantizers.get(f"{m.name}:input") for m in modules]
        weights = [self._quantizers.get(f"{m.name}:weight") for m in modules]
        rules = {None if w is None else w.rounding for w in weights}
        return all(x is inputs[0] for x in inputs) and len(rules) == 1 and None not in weights

    def _joined(self, modules: Sequence[SiteModule], call: Call) -> Tensor:
        """A fused linear or convolution at once, the steps of its slices side by side."""
        weight = call.weight
        grids = [self._quantizers[f"{m.name}:weight"].grid(weight[rows_of(m)]) for m in modules]
        shape = (1,) * (weight.dim() - 1)

        def side_by_side(parts: list[Tensor]) -> Tensor:
            rows = (len(m.channels or ()) for m in modules)
            return torch.cat([p.expand(n, *shape) for p, n in zip(parts, rows, strict=True)])

        step = side_by_side([grid.step for grid in grids])
        offsets = [grid.offset for grid in grids if grid.offset is not None]
        offset = side_by_side(offsets) if offsets else None
        wg = LearnedGrid(step, offset, grids[0].rounding)
        xg = self._grid(modules[0], SiteRole.INPUT, call.input)
        result: Tensor
        geometry = None if call.function is F.linear else _geometry(call)
        if geometry is None:
            result = functions.linear(call.input, weight, call.bias, xg, wg)
        else:
            result = functions.convolution(call.input, weight, call.bias, xg, wg, geometry)
        return result

    def _has(self, module: SiteModule, role: SiteRole) -> bool:
        return f"{module.name}:{role.value}" in self._quantizers

    def _grid(self, module: SiteModule, role: SiteRole, tensor: Tensor) -> LearnedGrid | None:
        quantizer = self._quantizers.get(f"{module.name}:{role.value}")
        return None if quantizer is None else quantizer.grid(tensor)

    def _rounded(self, module: SiteModule, role: SiteRole, tensor: Tensor) -> Tensor:
        quantizer = self._quantizers.get(f"{module.name}:{role.value}")
        return tensor if quantizer is None else quantizer(tensor)


def _additive(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """A mask that is added to the scores; a boolean one says what may be attended to."""
    if mask is None or mask.dtype is not torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))


def _geometry(call: Call) -> tuple[list[int], list[int], list[int], int] | None:
    """Stride, padding, dilation and groups of a convolution; None if padding is a word."""
    axes = call.weight.dim() - 2
    padding = call.get(4, "padding", 0)
    if isinstance(padding, str):
        return None
    stride, dilation = call.get(3, "stride", 1), call.get(5, "dilation", 1)
    return (
        _spread(stride, axes),
        _spread(padding, axes),
        _spread(dilation, axes),
        int(call.get(6, "groups", 1)),
    )


def _spread(numbers: int | Sequence[int], axes: int) -> list[int]:
    given = [numbers] if isinstance(numbers, int) else list(numbers)
    return given if len(given) == axes else given * axes


def _slice(call: Call, module: SiteModule) -> Call:
    """The rows of a fused linear or convolution that belong to ``module``."""
    rows = rows_of(module)
    bias = None if call.bias is None else call.bias[rows]
    return call.with_layer(call.input, call.weight[rows], bias)


def rows_of(module: SiteModule) -> slice | list[int]:
    """The rows of the weight that belong to a module: a slice where they are contiguous."""
    if module.channels is None:
        return slice(None)
    first, last = module.channels[0], module.channels[-1]
    if module.channels == tuple(range(first, last + 1)):
        return slice(first, last + 1)
    return list(module.channels)
