"""Latency profiles: shapes are those of the model, times are kept, and other machines' refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from export_fixture import plan_of
from small_models import BUILDERS, images
from torch import nn

from vitsense import cli
from vitsense.discover import find_sites
from vitsense.errors import UserInputError
from vitsense.export.profile import ProfileOptions, module_shapes
from vitsense.plan.latency import LatencyProfile
from vitsense.sites import Kind

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from vitsense.export import profile as profile_module  # noqa: E402
from vitsense.export.module_graph import FLOAT, ModuleShape, module_graph  # noqa: E402
from vitsense.export.onnx_types import Prefer  # noqa: E402
from vitsense.export.session import Session  # noqa: E402


def small_model() -> nn.Module:
    """A factory: two layers of one shape, a strided convolution."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 8),
    )


COMMAND = ["profile", "--model", "test_profile:small_model", "--runs", "2", "-q", "--out", "p.json"]


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_shapes_multiply_as_often_as_the_catalog_counts(name: str) -> None:
    model = BUILDERS[name]()
    catalog = find_sites(model, images(1))
    shapes = module_shapes(model, catalog, images(1))
    assert list(shapes) == [m.name for m in catalog]
    for module in catalog:
        found = shapes[module.name]
        left, right = found.operands
        if found.kind is Kind.CONV:
            session = Session(module_graph(found, FLOAT, 21), ["output"])
            (output,) = session.run(found.feeds())
            macs = output.size * int(np.prod(right[1:]))
        else:
            columns = right[0] if found.kind is Kind.LINEAR else right[-1]
            macs = int(np.prod(left)) * columns
        assert macs == module.macs, found.key


def test_a_module_alone_computes_on_integers_as_in_a_file() -> None:
    shape = ModuleShape(Kind.LINEAR, ((1, 5, 16), (4, 16)))
    (full,) = Session(module_graph(shape, FLOAT, 21), ["output"]).run(shape.feeds())
    assert full.shape == (1, 5, 4)
    for prefer, held in ((Prefer.SIZE, "INT4"), (Prefer.SPEED, "INT8")):
        model = onnx.load_from_string(module_graph(shape, "int4", 21, prefer))
        codes = next(t for t in model.graph.initializer if t.name == "weight.codes")
        assert onnx.TensorProto.DataType.Name(codes.data_type) == held
        operators = [node.op_type for node in model.graph.node]
        assert operators.count("DequantizeLinear") == 2
        assert "Clip" in operators  # 4 bits in a type of 8
    eight = onnx.load_from_string(module_graph(shape, "int8", 21))
    assert "Clip" not in [node.op_type for node in eight.graph.node]


def test_a_profile_is_measured_continued_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    timed: list[str] = []
    measure = profile_module._timed

    def counting(shape: ModuleShape, *rest: object) -> object:
        timed.append(shape.key)
        if len(timed) == 2:
            raise KeyboardInterrupt
        return measure(shape, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(profile_module, "_timed", counting)
    assert cli.run(COMMAND) == 130
    assert "The same command continues" in capsys.readouterr().err
    with pytest.raises(UserInputError, match="is not finished"):
        LatencyProfile.load(Path("p.json"))
    assert cli.run(COMMAND) == 0
    said = capsys.readouterr().out
    assert "3 modules in int4" in said
    # two layers of equal shape are one; what was known before the interruption was not repeated
    assert timed[0] != timed[1] == timed[2]
    assert len(timed) == 3
    data = json.loads(Path("p.json").read_text())
    assert data["machine"]["processors"]
    assert data["measured"]["3"] == data["measured"]["5"]
    assert set(data["measured"]["0"]) == {"float", "int8", "int4"}
    profile = LatencyProfile.load(Path("p.json"))
    plan = plan_of(find_sites(small_model(), images(1)), (8, 4))
    rows = [{"module": m.name, "params": 1, "macs": 1} for m in plan.modules]
    expected = sum(data["measured"][m.name][m.format] for m in plan.modules) + data["rest_ms"]
    assert profile.total(rows, plan.formats) == pytest.approx(expected)
    assert not profile.is_estimate

    # numbers of another machine are not mixed in
    data["machine"]["processor"] = "another"
    Path("p.json").write_text(json.dumps(data))
    assert cli.run(COMMAND) == 2
    assert "measured otherwise; different are: machine" in capsys.readouterr().err
    Path("p.json").write_text("{")
    assert cli.run(COMMAND) == 2
    assert "p.json" in capsys.readouterr().err


def test_what_cannot_be_profiled_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run([*COMMAND, "--formats", "int8,mxfp4"]) == 2
    assert "onnxruntime cannot run mxfp4" in capsys.readouterr().err
    with pytest.raises(UserInputError, match="nothing to time"):
        ProfileOptions(runs=0)
    from vitsense.export import onnx_graph

    monkeypatch.setattr(onnx_graph, "find_spec", lambda _name: None)
    assert cli.run(COMMAND) == 3
    assert "pip install" in capsys.readouterr().err


def test_analysis_needs_a_profile_for_a_budget_of_latency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["analyze", "--model", "zoo/glyph_resnet", "--budget", "latency-ms=3"]
    assert cli.run(command) == 2
    assert "measure one with vitsense profile" in capsys.readouterr().err
    Path("p.json").write_text("[]")
    assert cli.run([*command, "--profile", "p.json"]) == 2
    assert "p.json" in capsys.readouterr().err
    assert cli.run([*command, "--profile", "none.json"]) == 3
    assert not Path("vitsense-runs").exists()
