"""Which torch functions multiply, and where their operands stand in the call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Function = Callable[..., Any]


class Op(Enum):
    """The operations a quantizer can be put in front of."""

    LINEAR = "linear"
    CONV = "conv"
    PRODUCT = "product"
    SDPA = "scaled_dot_product_attention"
    MHA = "multi_head_attention"
    SOFTMAX = "softmax"
    UNSUPPORTED = "unsupported"


OPS: dict[Function, Op] = {
    F.linear: Op.LINEAR,
    torch.conv1d: Op.CONV,
    torch.conv2d: Op.CONV,
    torch.conv3d: Op.CONV,
    torch.matmul: Op.PRODUCT,
    torch.Tensor.matmul: Op.PRODUCT,
    torch.Tensor.__rmatmul__: Op.PRODUCT,
    torch.bmm: Op.PRODUCT,
    torch.Tensor.bmm: Op.PRODUCT,
    torch.mm: Op.PRODUCT,
    torch.Tensor.mm: Op.PRODUCT,
    torch.einsum: Op.PRODUCT,
    torch.baddbmm: Op.PRODUCT,
    torch.Tensor.baddbmm: Op.PRODUCT,
    F.scaled_dot_product_attention: Op.SDPA,
    F.multi_head_attention_forward: Op.MHA,
    F.softmax: Op.SOFTMAX,
    torch.softmax: Op.SOFTMAX,
    torch.Tensor.softmax: Op.SOFTMAX,
    torch.conv_transpose1d: Op.UNSUPPORTED,
    torch.conv_transpose2d: Op.UNSUPPORTED,
    torch.conv_transpose3d: Op.UNSUPPORTED,
    F.bilinear: Op.UNSUPPORTED,
    torch.addmm: Op.UNSUPPORTED,
    torch.tensordot: Op.UNSUPPORTED,
}
"""Every function that multiplies tensors along an axis, and softmax (which tells attention)."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """How a convolution moves over its input."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | None
    """None where it is given in words (``same``)."""
    dilation: tuple[int, ...]
    groups: int


def _spread(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one intercepted call, with named access to tensors in them."""

    function: Function
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at ``position`` or called ``name``."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def put(self, position: int, name: str, value: Any) -> Call:
        """The same call with that argument exchanged."""
        if position < len(self.args):
            args = (*self.args[:position], value, *self.args[position + 1 :])
            return Call(self.function, args, self.kwargs)
        return Call(self.function, self.args, {**self.kwargs, name: value})

    def run(self) -> Any:
        """Make the call."""
        return self.function(*self.args, **self.kwargs)

    # Linear and convolution: (input, weight, bias, ...) -------------------------------------
    @property
    def input(self) -> Tensor:
        """Activation of a linear or convolution call."""
        value: Tensor = self.get(0, "input")
        return value

    @property
    def weight(self) -> Tensor:
        """Weight of a linear or convolution call, `(O, I, ...)`."""
        value: Tensor = self.get(1, "weight")
        return value

    @property
    def bias(self) -> Tensor | None:
        """Bias of a linear or convolution call, `(O,)`."""
        value: Tensor | None = self.get(2, "bias")
        return value

    def with_layer(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Call:  # noqa: A002
        """The same linear or convolution with other tensors."""
        return self.put(0, "input", input).put(1, "weight", weight).put(2, "bias", bias)

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear call rather than a convolution."""
        return self.function is F.linear

    def convolution(self) -> Convolution:
        """Geometry of a convolution call, one number per spatial axis."""
        axes = self.weight.dim() - 2
        given = (self.get(3, "stride", 1), self.get(4, "padding", 0), self.get(5, "dilation", 1))
        stride, padding, dilation = (
            None if isinstance(value, str) else _spread(value, axes) for value in given
        )
        assert stride is not None
        assert dilation is not None
        return Convolution(stride, padding, dilation, int(self.get(6, "groups", 1)))

    # Products ---------------------------------------------------------------------------------
    def operands(self) -> tuple[Tensor, ...]:
        """The tensors that are multiplied, in the order of the mathematical product."""
        if self.function is torch.einsum:
            rest = self.args[1:]
            flat = rest[0] if len(rest) == 1 and isinstance(rest[0], (list, tuple)) else rest
            return tuple(flat)
        if self.function in _ADDED:
            return (self.get(1, "batch1"), self.get(2, "batch2"))
        if self.function is torch.Tensor.__rmatmul__:
            return (self.args[1], self.args[0])
        name = "other" if self.function in _OTHER else "mat2"
        return (self.get(0, "input"), self.get(1, name))

    def with_operands(self, left: Tensor, right: Tensor) -> Call:
        """The same product of two other tensors."""
        if self.function is torch.einsum:
            return Call(self.function, (self.args[0], left, right), self.kwargs)
        if self.function in _ADDED:
            return self.put(1, "batch1", left).put(2, "batch2", right)
        if self.function is torch.Tensor.__rmatmul__:
            return Call(self.function, (right, left), self.kwargs)
        name = "other" if self.function in _OTHER else "mat2"
        return self.put(0, "input", left).put(1, name, right)


_ADDED = {torch.baddbmm, torch.Tensor.baddbmm}
_OTHER = {torch.matmul, torch.Tensor.matmul}


def product_macs(call: Call, output: Tensor) -> int:
    """Multiply-accumulates of a product of two tensors."""
    left, right = call.operands()[:2]
    if call.function is not torch.einsum:
        return int(output.numel() * left.shape[-1])
    terms = call.args[0].replace(" ", "").split("->")[0].split(",")
    if "..." in call.args[0] or len(terms) != 2:
        # The contracted size: |A|·|B| = |out|·|contracted|² when no index is shared by all three.
        return int(math.sqrt(left.numel() * right.numel() * output.numel()))
    sizes = dict(zip(terms[0], left.shape, strict=True)) | dict(
        zip(terms[1], right.shape, strict=True)
    )
    return math.prod(sizes.values())


def layer_macs(call: Call, output: Tensor) -> int:
    """Multiply-accumulates of a linear or convolution call."""
    return int(output.numel() * math.prod(call.weight.shape[1:]))
