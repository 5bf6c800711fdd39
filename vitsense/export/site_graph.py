"""Graphs that show or take the tensors of sites: what a comparison site by site runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

GIVEN = "given:"
"""Before the name of a site: the input that takes its tensor."""


def named_sites(graph: Any, sites: Iterable[str]) -> list[str]:
    """Those of the sites whose tensor stands in the graph, in the given order.

    Sites that share a tensor and a range share one value, which has the name of one of them.
    """
    values = {value.name for node in graph.graph for value in node.outputs}
    return [site for site in sites if site in values]


def showing(graph: Any, sites: Iterable[str]) -> Any:
    """A copy of an ``onnx_ir.Model`` whose further outputs are the sites' rounded tensors."""
    model, values = _copy(graph)
    model.graph.outputs.extend(values[site] for site in sites)
    return model


def taking(graph: Any, sites: Iterable[str]) -> Any:
    """A copy in which what comes behind a site sees a given tensor in place of the computed one.

    The given tensor passes a second QuantizeLinear and DequantizeLinear with the site's own
    constants, so that onnxruntime chooses the kernels it chooses for the file. The outputs are as
    in `showing`: what each site computes from the given ones.
    """
    import onnx_ir as ir

    model, values = _copy(graph)
    for site in sites:
        computed = values[site]
        given = ir.Value(
            name=f"{GIVEN}{site}", shape=computed.shape, type=ir.TensorType(ir.DataType.FLOAT)
        )
        model.graph.inputs.append(given)
        ir.convenience.replace_all_uses_with(computed, _again(model.graph, computed, given))
        model.graph.outputs.append(computed)
    return model


def _copy(graph: Any) -> tuple[Any, dict[str, Any]]:
    """Another graph like it, with its values by name."""
    import onnx_ir as ir

    model = ir.from_proto(ir.to_proto(graph))
    return model, {value.name: value for node in model.graph for value in node.outputs}


def _again(graph: Any, computed: Any, given: Any) -> Any:
    """The nodes that round a site, once more, on a given tensor; a shift is undone before."""
    import onnx_ir as ir

    last = computed.producer()
    moved = last if last.op_type == "Add" else None
    restore = last if moved is None else moved.inputs[0].producer()
    quantize = restore.inputs[0].producer()
    nodes = [] if moved is None else [ir.node("Sub", [given, moved.inputs[1]])]
    x = nodes[-1].outputs[0] if nodes else given
    nodes.append(ir.node("QuantizeLinear", [x, *quantize.inputs[1:]], quantize.attributes))
    codes = nodes[-1].outputs[0]
    nodes.append(ir.node("DequantizeLinear", [codes, *restore.inputs[1:]], restore.attributes))
    if moved is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], moved.inputs[1]]))
    for number, node in enumerate(nodes):
        node.outputs[0].name = f"{given.name}.{number}"
    graph.insert_after(last, nodes)
    return nodes[-1].outputs[0]
