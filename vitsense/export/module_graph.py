"""One module alone as an ONNX graph, in the form in which it stands in an exported file.

Only for timing: weights are random, ranges are made up. The only file that writes with `onnx`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitsense.export.onnx_types import Prefer, held_bits
from vitsense.numerics.grid import Format
from vitsense.sites import Kind

Floats = NDArray[np.float32]

FLOAT = "float"
"""The format in which a module is timed without quantizers."""


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """Everything that decides how long a module takes, but for its format."""

    kind: Kind
    operands: tuple[tuple[int, ...], ...]
    """Of a layer: its input for one image and its weight; of a product: both operands."""
    geometry: tuple[int, ...] = ()
    """Of a convolution: strides, paddings (at each end), dilations, groups."""

    @property
    def key(self) -> str:
        """``linear 1x197x192 by 768x192``."""
        words = " by ".join("x".join(map(str, shape)) for shape in self.operands)
        rest = f" with {','.join(map(str, self.geometry))}" if self.geometry else ""
        return f"{self.kind.value} {words}{rest}"

    def feeds(self) -> dict[str, Floats]:
        """Random inputs of the graph."""
        random = np.random.default_rng(0)
        given = self.operands if self.kind is Kind.PRODUCT else self.operands[:1]
        return {
            name: random.standard_normal(shape, dtype=np.float32)
            for name, shape in zip(("left", "right"), given, strict=False)
        }


def module_graph(shape: ModuleShape, form: str, opset: int, prefer: Prefer = Prefer.SIZE) -> bytes:
    """The bytes of an ONNX model of one module.

    Args:
        shape: Which module.
        form: ``int8``, ``int4``, ... of weight and activations, or `FLOAT`.
        opset: Operator set.
        prefer: How weights are held.
    """
    from onnx import TensorProto, helper

    parts = _Parts(None if form == FLOAT else Format.parse(form), opset, prefer)
    names = list(shape.feeds())
    operands = [parts.activation(name) for name in names]
    if shape.kind is not Kind.PRODUCT:
        operands.append(parts.weight(shape.operands[1]))
    parts.operation(shape, operands)
    inputs = [
        # like the whole model's: with a fixed batch onnxruntime takes other kernels
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *operand[1:]])
        for name, operand in zip(names, shape.operands, strict=False)
    ]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph(parts.nodes, "module", inputs, [output], parts.tensors)
    return _bytes(graph, opset)


def _bytes(graph: Any, opset: int) -> bytes:
    from onnx import helper

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10  # the newest of operator set 21, which every supported onnxruntime reads
    raw: bytes = model.SerializeToString()
    return raw


class _Parts:
    """Collects the nodes and constants of a graph."""

    def __init__(self, form: Format | None, opset: int, prefer: Prefer) -> None:
        self._form = form
        self._opset = opset
        self._prefer = prefer
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def _add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def _keep(self, name: str, values: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(values, name))
        return name

    def activation(self, name: str) -> str:
        """Clipped where it has less than 8 bits, rounded, and read back."""
        if self._form is None:
            return name
        bits = self._form.bits
        held = held_bits(Format(bits, signed=False), self._opset, self._prefer)
        scale, middle = np.float32(6 / ((1 << bits) - 1)), 1 << (bits - 1)
        steps = self._keep(f"{name}.scale", np.array(scale))
        zero = self._keep(f"{name}.zero", np.array(middle, dtype=f"uint{held}"))
        x = name
        if held > bits:
            ends = scale * np.array([-middle, middle - 1], dtype=np.float32)
            low, high = (self._keep(f"{name}.end{i}", np.array(e)) for i, e in enumerate(ends))
            x = self._add("Clip", [x, low, high], f"{name}.clipped")
        codes = self._add("QuantizeLinear", [x, steps, zero], f"{name}.codes")
        return self._add("DequantizeLinear", [codes, steps, zero], f"{name}.rounded")

    def weight(self, shape: tuple[int, ...]) -> str:
        """Codes with a scale per output channel, read back."""
        from onnx import TensorProto, helper

        random = np.random.default_rng(1)
        if self._form is None:
            return self._keep("weight", random.standard_normal(shape, dtype=np.float32) / 8)
        form = self._form
        held = held_bits(form, self._opset, self._prefer)
        codes = random.integers(form.qmin, form.qmax + 1, size=shape)
        kind = getattr(TensorProto, f"INT{held}")
        self.tensors.append(helper.make_tensor("weight.codes", kind, shape, codes.ravel()))
        steps = self._keep("weight.scale", np.full(shape[0], 1 / form.qmax, dtype=np.float32))
        return self._add("DequantizeLinear", ["weight.codes", steps], "weight", axis=0)

    def operation(self, shape: ModuleShape, operands: list[str]) -> None:
        """The multiplication itself, with the bias that layers have."""
        if shape.kind is Kind.PRODUCT:
            self._add("MatMul", operands, "output")
            return
        bias = self._keep("bias", np.zeros(shape.operands[1][0], dtype=np.float32))
        if shape.kind is Kind.CONV:
            axes = (len(shape.geometry) - 1) // 3
            strides, pads, dilations = (shape.geometry[i * axes : (i + 1) * axes] for i in range(3))
            self._add(
                "Conv",
                [*operands, bias],
                "output",
                strides=strides,
                pads=(*pads, *pads),
                dilations=dilations,
                group=shape.geometry[-1],
            )
            return
        turned = self._add("Transpose", [operands[1]], "turned", perm=(1, 0))
        product = self._add("MatMul", [operands[0], turned], "product")
        self._add("Add", [product, bias], "output")


def empty_graph(opset: int) -> bytes:
    """A graph that does nothing: what a call costs by itself."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("left", "output")]
    node = helper.make_node("Identity", ["left"], ["output"])
    graph = helper.make_graph([node], "empty", ends[:1], ends[1:])
    return _bytes(graph, opset)
