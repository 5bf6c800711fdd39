"""How fast onnxruntime computes a convolution in the four forms in which a file could hold it.

    python benchmarks/conv_kernels.py

For `benchmarks/results/export.md`: whether integer convolutions are worth what they need. All forms
compute the same 3 by 3 convolution of one image (8-bit input, 8-bit weights, scale per channel);
times are processor time of one thread, medians of runs in turn.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from vitsense.export.session import Session, latencies

SHAPES = (  # input channels, output channels, width, stride
    (32, 32, 16, 1),
    (64, 64, 8, 1),
    (64, 64, 56, 1),
    (128, 128, 28, 1),
    (256, 256, 14, 1),
)


def forms(inputs: int, outputs: int, width: int, stride: int) -> tuple[dict[str, Session], Any]:
    """The sessions by name, and an image."""
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (outputs, inputs, 3, 3)).astype(np.int8)
    scale = random.uniform(0.001, 0.002, outputs).astype(np.float32)
    bias = random.standard_normal(outputs).astype(np.float32)
    step = np.float32(0.02)
    image = np.abs(random.standard_normal((1, inputs, width, width))).astype(np.float32)
    both = (scale * step).astype(np.float32)
    tensors = {
        "step": step,
        "zero": np.uint8(0),
        "codes": weight,
        "scale": scale,
        "bias": bias,
        "values": weight * scale[:, None, None, None],
        "both": both,
        "bias_codes": np.round(bias / both).astype(np.int32),
        "out_step": np.float32(0.05),
        "both_wide": both.reshape(1, -1, 1, 1),
        "bias_wide": bias.reshape(1, -1, 1, 1),
    }
    node = helper.make_node
    where = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [stride, stride]}
    quantize = node("QuantizeLinear", ["x", "step", "zero"], ["q"])
    read = [
        quantize,
        node("DequantizeLinear", ["q", "step", "zero"], ["d"]),
        node("DequantizeLinear", ["codes", "scale"], ["w"], axis=0),
    ]
    made = {
        "float": [node("Conv", ["x", "values", "bias"], ["y"], **where)],
        "as exported": [*read, node("Conv", ["d", "w", "bias"], ["y"], **where)],
        "output quantized": [
            *read,
            node("DequantizeLinear", ["bias_codes", "both"], ["b"], axis=0),
            node("Conv", ["d", "w", "b"], ["c"], **where),
            node("QuantizeLinear", ["c", "out_step", "zero"], ["o"]),
            node("DequantizeLinear", ["o", "out_step", "zero"], ["y"]),
        ],
        "ConvInteger": [
            quantize,
            node("ConvInteger", ["q", "codes", "zero"], ["i"], **where),
            node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            node("Mul", ["f", "both_wide"], ["m"]),
            node("Add", ["m", "bias_wide"], ["y"]),
        ],
    }
    return {
        name: Session(_file(nodes, tensors, image), ["y"]) for name, nodes in made.items()
    }, image


def _file(nodes: list[Any], tensors: dict[str, Any], image: Any) -> bytes:
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *image.shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items() if k in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    raw: bytes = model.SerializeToString()
    return raw


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    runs = parser.parse_args().runs
    for shape in SHAPES:
        sessions, image = forms(*shape)
        rows = latencies(list(sessions.values()), [{"x": image}] * len(sessions), runs=runs)
        timed = "  ".join(f"{k} {r.median:.3f}" for k, r in zip(sessions, rows, strict=True))
        print(f"{shape[0]} to {shape[1]} channels, {shape[2]} wide, ms:  {timed}")


if __name__ == "__main__":
    main()
