"""The plan for onnxruntime's ``quantize_static``: overrides by tensor of a float file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitsense.errors import VitsenseError
from vitsense.export.fixed import FixedModel
from vitsense.export.layers import Change, Layer, Translation, next_of, translate
from vitsense.sites import Kind

_LAYERS = ("Conv", "Gemm", "MatMul")


def onnxruntime_config(fixed: FixedModel, graph: Any) -> tuple[dict[str, Any], Translation]:
    """Overrides for the tensors of ``graph``, and the nodes that stay in float.

    The weight of a layer is found by its values (the exporter renames and transposes weights), and
    products by their order. onnxruntime calibrates the ranges itself.

    Args:
        fixed: The quantized model; its inner model is the one ``graph`` was exported from.
        graph: An ``onnx_ir.Model`` of the model in float.

    Raises:
        VitsenseError: a layer cannot be found in the graph.
    """
    found = translate(
        fixed, "onnxruntime", weights=next_of(4, 8, 16), inputs=next_of(8, 16), products=True
    )
    overrides: dict[str, list[dict[str, Any]]] = {}
    planned: set[str] = set()
    nodes = [node for node in graph.graph if node.op_type in _LAYERS]
    by_weight = {id(node): _constant(node) for node in nodes}
    for layer in found.layers:
        weight = fixed.model.get_parameter(f"{layer.path}.weight").detach().numpy()
        node, axis = _node_of(layer, weight, nodes, by_weight)
        planned.add(node.name)
        if layer.weight_bits is not None:
            kind = {"quant_type": f"QInt{layer.weight_bits}", "symmetric": True, "axis": axis}
            overrides[node.inputs[1].name] = [kind]
        if layer.input_bits is not None:
            overrides[node.inputs[0].name] = [{"quant_type": f"QUInt{layer.input_bits}"}]
    products = [node for node in nodes if by_weight[id(node)] is None and node.op_type == "MatMul"]
    _products(fixed, products, found, overrides, planned)
    excluded = [node.name for node in nodes if node.name not in planned]
    made = {
        "op_types_to_quantize": list(_LAYERS),
        "nodes_to_exclude": excluded,
        "per_channel": True,
        "extra_options": {"TensorQuantOverrides": overrides},
    }
    return made, found


def _constant(node: Any) -> NDArray[Any] | None:
    value = node.inputs[1].const_value
    return None if value is None else np.asarray(value.numpy())


def _node_of(
    layer: Layer,
    weight: NDArray[Any],
    nodes: list[Any],
    constants: dict[int, NDArray[Any] | None],
) -> tuple[Any, int]:
    """The node that multiplies with a weight, and the axis of its output channels."""
    for node in nodes:
        stored = constants[id(node)]
        if stored is None:
            continue
        if stored.shape == weight.shape and np.array_equal(stored, weight):
            return node, 0
        if stored.ndim == 2 and np.array_equal(stored, weight.T):
            return node, 1
    raise VitsenseError(
        f"The weight of {layer.path} is not in the exported graph as it is in the model; "
        "use --format onnx, which quantizes the graph itself."
    )


def _products(
    fixed: FixedModel,
    nodes: list[Any],
    found: Translation,
    overrides: dict[str, list[dict[str, Any]]],
    planned: set[str],
) -> None:
    products = [module for module in fixed.catalog if module.kind is Kind.PRODUCT]
    matched = len(products) == len(nodes)
    for number, module in enumerate(products):
        bits = [fixed.formats[s.id].bits if s.id in fixed.formats else None for s in module.sites]
        if None in bits:
            continue
        if not matched:
            what = "the exported graph has other products than the model; it stays in float"
            found.changes.append(Change(module=module.name, what=what))
            continue
        planned.add(nodes[number].name)
        for site, width, value in zip(module.sites, bits, nodes[number].inputs, strict=True):
            held = next_of(8, 16)(width or 8)
            overrides[value.name] = [{"quant_type": f"QUInt{held}"}]
            if held != width:
                what = f"{site.role.value} of {width} bits becomes of {held} bits in onnxruntime"
                found.changes.append(Change(module=module.name, what=what))
