"""Configurations of other tools: in their schema, and loaded into the real ones where they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from export_fixture import fixed_model
from small_models import BUILDERS, images
from torch import nn

from vitsense.errors import UserInputError
from vitsense.export.configs import TOOLS
from vitsense.export.layers import next_of, translate

BITS = (8, 4, 6, 3, 2, 5)


def _planned(name: str) -> dict[str, list[int]]:
    """Bits of the parts of every layer, from the plan."""
    fixed, plan = fixed_model(name, BITS)
    found: dict[str, list[int]] = {}
    for module in fixed.catalog:
        if module.params:
            found.setdefault(module.path, []).append(plan.bits[module.name])
    return found


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_a_configuration_is_plain_json(tool: str) -> None:
    made, _ = TOOLS[tool](fixed_model("vit", BITS)[0])
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_fused_projections_get_their_widest_part_and_every_change_is_listed() -> None:
    fixed, plan = fixed_model("vit", BITS)
    found = translate(fixed, "tool")
    layers = {layer.path: layer for layer in found.layers}
    assert {p: la.weight_bits for p, la in layers.items()} == {
        path: max(bits) for path, bits in _planned("vit").items()
    }
    listed = {(c.module, c.what.split()[0]) for c in found.changes}
    narrow = {
        m.name
        for m in fixed.catalog
        if m.params and plan.bits[m.name] != max(_planned("vit")[m.path])
    }
    products = {m.name for m in fixed.catalog if not m.params}
    assert listed == {(n, w) for n in narrow for w in ("weight", "input")} | {
        (n, "tool") for n in products
    }


def test_what_a_tool_cannot_express_is_refused_without_fallback() -> None:
    _, found = TOOLS["modelopt"](fixed_model("vit", BITS)[0])
    with pytest.raises(UserInputError, match=r"modelopt cannot express \d+ parts.*--fallback"):
        found.refuse_changes("modelopt", fallback=False)
    found.refuse_changes("modelopt", fallback=True)
    _, plain = TOOLS["modelopt"](fixed_model("resnet", (8,))[0])
    plain.refuse_changes("modelopt", fallback=False)


def test_the_next_wider_width_is_taken() -> None:
    allowed = next_of(8, 4)
    assert [allowed(bits) for bits in (2, 4, 5, 8, 16)] == [4, 4, 8, 8, None]


def test_aimet_encodings_hold_the_very_grids() -> None:
    """min, max and offset are those of the grid: real = scale * (code + offset)."""
    fixed, _ = fixed_model("resnet", BITS)
    made, _ = TOOLS["aimet"](fixed)
    for name, weight in fixed.weights.items():
        rows = made["param_encodings"][f"{name.removesuffix(':weight')}.weight"]
        np.testing.assert_allclose([r["min"] for r in rows], weight.grid.low.reshape(-1), rtol=1e-6)
        np.testing.assert_allclose(
            [r["max"] for r in rows], weight.grid.high.reshape(-1), rtol=1e-6
        )
    for name, grid in fixed.activations.items():
        row = made["activation_encodings"][name.removesuffix(":input")]["input"]["0"]
        assert row["min"] == pytest.approx(float(grid.low))
        assert row["max"] == pytest.approx(float(grid.high))
        assert row["bitwidth"] == grid.format.bits


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_torchao_gives_every_linear_layer_its_bits(name: str) -> None:
    pytest.importorskip("torchao")
    from torchao.core.config import config_from_dict
    from torchao.quantization import quantize_

    made, found = TOOLS["torchao"](fixed_model(name, BITS)[0])
    model = BUILDERS[name]()
    quantize_(model, config_from_dict(made), filter_fn=None)
    got = {
        path: str(module.weight.target_dtype)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and hasattr(module.weight, "target_dtype")
    }
    linear = {p for p, m in BUILDERS[name]().named_modules() if isinstance(m, nn.Linear)}
    assert got == {p: f"torch.int{max(b)}" for p, b in _planned(name).items() if p in linear}
    assert model(images(2)).shape == (2, 10)
    assert {layer.path for layer in found.layers} == linear


@pytest.mark.filterwarnings("ignore")  # of the tool's own imports
@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_modelopt_gives_every_layer_its_bits(name: str) -> None:
    mtq = pytest.importorskip("modelopt.torch.quantization")
    made, found = TOOLS["modelopt"](fixed_model(name, BITS)[0])
    model = mtq.quantize(BUILDERS[name](), made, lambda m: m(images(2)))
    modules = dict(model.named_modules())
    wanted = {p: max(b) for p, b in _planned(name).items()}
    for path, bits in wanted.items():
        quantizers = (modules[path].weight_quantizer, modules[path].input_quantizer)
        assert [(q.is_enabled, q.num_bits) for q in quantizers] == [(True, bits)] * 2
    enabled = [n for n, q in modules.items() if n.endswith("_quantizer") and q.is_enabled]
    assert len(enabled) == 2 * len(wanted) == 2 * len(found.layers)


@pytest.mark.filterwarnings("ignore")  # of the tool's own imports
@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_aimet_gives_every_weight_its_bits(name: str) -> None:
    """Inputs are loaded where AIMET quantizes inputs: elsewhere it quantizes outputs instead."""
    quantsim = pytest.importorskip("aimet_torch.quantsim")
    from aimet_torch.nn import QuantizationMixin

    model = BUILDERS[name]()
    for kind in {type(m) for m in model.modules()}:
        if kind.__module__.startswith("timm.layers"):
            QuantizationMixin.ignore(kind)
    made, _ = TOOLS["aimet"](fixed_model(name, BITS)[0])
    sim = quantsim.QuantizationSimModel(model, images(2))
    sim.load_encodings(made, strict=False)
    modules = dict(sim.model.named_modules())
    for path, bits in _planned(name).items():
        assert modules[path].param_quantizers["weight"].bitwidth == max(bits)
        taken = modules[path].input_quantizers[0]
        assert taken is None or taken.bitwidth == max(bits)


def test_onnxruntime_stores_every_layer_in_its_type(tmp_path: Any) -> None:
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    quantization = pytest.importorskip("onnxruntime.quantization")
    from vitsense.export.onnx_graph import float_graph, write_graph
    from vitsense.export.onnx_overrides import onnxruntime_config

    fixed, _ = fixed_model("vit", (8, 4))
    graph = float_graph(fixed.model, images(1), 21)
    made, found = onnxruntime_config(fixed, graph)
    source = tmp_path / "float.onnx"
    source.write_bytes(write_graph(graph))
    _quantize_static(quantization, source, tmp_path / "int.onnx", made)
    stored = onnx.load(tmp_path / "int.onnx")
    types = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in stored.graph.initializer}
    overrides = made["extra_options"]["TensorQuantOverrides"]
    weights = {k: v[0]["quant_type"] for k, v in overrides.items() if "axis" in v[0]}
    assert len(weights) == len(found.layers) == len(_planned("vit"))
    assert {k: types[f"{k}_quantized"] for k in weights} == {
        k: kind.removeprefix("Q").upper() for k, kind in weights.items()
    }
    assert set(weights.values()) == {"QInt8", "QInt4"}
    assert made["nodes_to_exclude"] == []
    asdict(found.layers[0])


def _quantize_static(quantization: Any, source: Any, target: Any, made: dict[str, Any]) -> None:
    """As the documentation says: names of types become `QuantType`."""

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = [{"images": torch.Tensor(images(2)).numpy()}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    options = json.loads(json.dumps(made))
    for rows in options["extra_options"]["TensorQuantOverrides"].values():
        for row in rows:
            row["quant_type"] = quantization.QuantType[row["quant_type"]]
    quantization.quantize_static(str(source), str(target), Reader(), **options)
