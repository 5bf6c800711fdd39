"""The operations of a prepared model: each on tensors rounded by the quantizers of its sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vitsense.observe.attention import attention_output, attention_scores
from vitsense.observe.operations import Call
from vitsense.qat.quantizers import Quantizer
from vitsense.sites import SiteModule, SiteRole


class QuantizedOperations:
    """`vitsense.observe.lasting.Operations` with a quantizer in front of every planned operand."""

    def __init__(self, quantizers: Mapping[str, Quantizer]) -> None:
        self._quantizers = quantizers

    def layer(self, modules: Sequence[SiteModule], call: Call, channel_axis: int) -> Tensor:
        """A linear or convolution; slices of a fused one are computed apart."""
        if modules[0].channels is None:
            return self._layer(modules[0], call)
        parts = [self._layer(module, _slice(call, module)) for module in modules]
        order = [channel for module in modules for channel in module.channels or ()]
        rows = call.weight.shape[0]
        if order == list(range(rows)):
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
        left, right = (
            self._rounded(module, site.role, operand)
            for site, operand in zip(module.sites, call.operands(), strict=True)
        )
        result: Tensor = call.with_operands(left, right).run()
        return result

    def attention(self, modules: Sequence[SiteModule], call: Call) -> Tensor:
        """softmax(Q·Kᵀ) V with Q, K, the probabilities and V rounded."""
        for position, role in enumerate((SiteRole.QUERY, SiteRole.KEY, SiteRole.VALUE)):
            for module in modules:
                tensor = self._rounded(module, role, call.get(position, role.value))
                call = call.put(position, role.value, tensor)
        probs = attention_scores(call)
        for module in modules:
            probs = self._rounded(module, SiteRole.ATTENTION_PROBS, probs)
        return attention_output(call, probs, call.get(2, "value"))

    def _layer(self, module: SiteModule, call: Call) -> Tensor:
        x = self._rounded(module, SiteRole.INPUT, call.input)
        weight = self._rounded(module, SiteRole.WEIGHT, call.weight)
        result: Tensor = call.with_layer(x, weight, call.bias).run()
        return result

    def _rounded(self, module: SiteModule, role: SiteRole, tensor: Tensor) -> Tensor:
        quantizer = self._quantizers.get(f"{module.name}:{role.value}")
        return tensor if quantizer is None else quantizer(tensor)


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
