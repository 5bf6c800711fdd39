"""The plan as the configuration of another tool: plain data in that tool's own schema.

None of the tools is imported; their files are written as documented, and the tests load them into
the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vitsense.export.fixed import FixedModel
from vitsense.export.layers import Translation, next_of, translate
from vitsense.export.onnx_types import DEFAULT_OPSET
from vitsense.export.record import entry_of, export_path, keep_export, record_path
from vitsense.export.source import ExportSource
from vitsense.numerics.grid import Grid
from vitsense.runfolder import atomic_write, json_text

Made = tuple[dict[str, Any], Translation]


def export_config(
    source: ExportSource, tool: str, out: Path | None = None, *, fallback: bool = False
) -> dict[str, Any]:
    """Write the plan as the configuration of ``tool``: one of `TOOLS`, or ``onnxruntime``.

    Returns:
        The entry of ``export.json``, with every change the tool made necessary.

    Raises:
        UserInputError: the tool cannot express something and ``fallback`` is off, or the file
            cannot be written.
    """
    if tool in TOOLS:
        made, translation = TOOLS[tool](source.fixed)
    else:
        made, translation = _onnxruntime(source, out)
    translation.refuse_changes(tool, fallback=fallback)
    path = export_path(source, f".{tool}.json", out)
    atomic_write(path, json_text(made))
    entry = {
        **entry_of(source, tool, path),
        "layers": [asdict(layer) for layer in translation.layers],
        "changes": [asdict(change) for change in translation.changes],
        "use": _USE[tool],
    }
    keep_export(record_path(source.run, path), entry)
    return entry


def refuse_config(tool: str, fixed: FixedModel) -> None:
    """Refuse what ``tool`` cannot express, whatever the ranges are (not for ``onnxruntime``).

    Raises:
        UserInputError: the tool cannot express something.
    """
    TOOLS[tool](fixed)[1].refuse_changes(tool, fallback=False)


def modelopt_config(fixed: FixedModel) -> Made:
    """The ``quant_cfg`` of NVIDIA ModelOpt 0.40 and later: a list, of which later rows win.

    Its integer quantizers are symmetric; it calibrates their ranges itself (``max``).
    """
    found = translate(fixed, "modelopt")
    rows: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for layer in found.layers:
        if layer.weight_bits is not None:
            rows.append(_modelopt(f"{layer.path}.weight_quantizer", layer.weight_bits, 0))
        if layer.input_bits is not None:
            rows.append(_modelopt(f"{layer.path}.input_quantizer", layer.input_bits, None))
    return {"quant_cfg": rows, "algorithm": "max"}, found


def _modelopt(name: str, bits: int, axis: int | None) -> dict[str, Any]:
    return {"quantizer_name": name, "cfg": {"num_bits": bits, "axis": axis}, "enable": True}


def torchao_config(fixed: FixedModel) -> Made:
    """A ``FqnToConfig`` of torchao, as ``config_to_dict`` writes it: weights of linear layers.

    torchao has no ranges from calibration, so inputs stay in float.
    """
    found = translate(
        fixed,
        "torchao",
        weights=next_of(2, 3, 4, 5, 6, 7, 8),
        inputs=None,
        convolutions=False,
    )
    rows = {
        layer.path: _intx(layer.weight_bits)
        for layer in found.layers
        if layer.weight_bits is not None
    }
    data = {"fqn_to_config": rows, "module_fqn_to_config": rows}
    return {"_type": "FqnToConfig", "_version": 1, "_data": data}, found


def _intx(bits: int) -> dict[str, Any]:
    return {
        "_type": "IntxWeightOnlyConfig",
        "_version": 2,
        "_data": {
            "weight_dtype": {"_type": "torch.dtype", "_data": f"int{bits}"},
            "granularity": {"_type": "PerAxis", "_version": 1, "_data": {"axis": 0}},
            "mapping_type": {"_type": "MappingType", "_data": "SYMMETRIC"},
            "scale_dtype": None,
        },
    }


def aimet_config(fixed: FixedModel) -> Made:
    """The encodings of AIMET (the layout of version 0.6.1): bits and ranges, as measured here.

    Fused projections whose parts differ keep the widest; the scales of the parts stand row by row.
    """
    found = translate(fixed, "aimet")
    parameters: dict[str, Any] = {}
    activations: dict[str, Any] = {}
    by_name = {module.name: module for module in fixed.catalog}
    for layer in found.layers:
        if layer.weight_bits is not None:
            rows: list[dict[str, Any]] = []
            for name in layer.modules:
                weight = fixed.weights[f"{name}:weight"]
                channels = by_name[name].weight_shape[0]
                rows += _encodings(weight.grid, channels, layer.weight_bits)
            parameters[f"{layer.path}.weight"] = rows
        if layer.input_bits is not None:
            widest = max(
                (fixed.activations[f"{name}:input"] for name in layer.modules),
                key=lambda grid: grid.format.bits,
            )
            (encoding,) = _encodings(widest, 1, layer.input_bits)
            activations[layer.path] = {"input": {"0": encoding}}
    made = {
        "version": "0.6.1",
        "param_encodings": parameters,
        "activation_encodings": activations,
    }
    return made, found


def _encodings(grid: Grid, count: int, bits: int) -> list[dict[str, Any]]:
    """One encoding per scale; a wider width keeps the range and gets a finer scale."""
    finer = 2.0 ** (bits - grid.format.bits)
    scales = grid.scale.reshape(-1).tolist()
    zeros = grid.zero_point.reshape(-1).tolist()
    if len(scales) != count:
        scales, zeros = scales[:1] * count, zeros[:1] * count
    low, high = -(1 << (bits - 1)) if grid.format.signed else 0, (1 << bits) - 1
    rows = []
    for scale, zero in zip(scales, zeros, strict=True):
        step, offset = scale / finer, int(low - zero * finer)
        rows.append(
            {
                "bitwidth": bits,
                "dtype": "int",
                "is_symmetric": str(grid.format.signed),
                "scale": step,
                "offset": offset,
                "min": step * offset,
                "max": step * (offset + high),
            }
        )
    return rows


def _onnxruntime(source: ExportSource, out: Path | None) -> Made:
    """Overrides by tensor, and beside them the float file they belong to."""
    from vitsense.export.onnx_graph import float_graph, need_onnx, write_graph
    from vitsense.export.onnx_overrides import onnxruntime_config

    need_onnx()
    size = source.preprocessing.input_size
    graph = float_graph(source.fixed.model, torch.zeros(1, *size), DEFAULT_OPSET)
    made, found = onnxruntime_config(source.fixed, graph)
    path = export_path(source, ".onnxruntime.json", out).with_suffix(".float.onnx")
    atomic_write(path, write_graph(graph))
    return {"model_input": path.name, **made}, found


TOOLS: dict[str, Callable[[FixedModel], Made]] = {
    "modelopt": modelopt_config,
    "torchao": torchao_config,
    "aimet": aimet_config,
}
"""Tools whose configuration needs the model only, by the name of their format."""

_USE = {
    "modelopt": (
        "mtq.quantize(model, json.load(open(FILE)), forward_loop)  "
        "# import modelopt.torch.quantization as mtq"
    ),
    "torchao": (
        "quantize_(model, config_from_dict(json.load(open(FILE))), filter_fn=None)  "
        "# from torchao.quantization import quantize_; "
        "from torchao.core.config import config_from_dict"
    ),
    "onnxruntime": (
        "quantize_static(model_input, OUT, reader, **the other keys)  "
        "# quant_type as onnxruntime.quantization.QuantType[name]"
    ),
    "aimet": ("sim.load_encodings(FILE, strict=False)  # a QuantizationSimModel of aimet_torch"),
}
