"""Trained models in files: bit for bit what `convert` gives, and nothing of another plan."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qat_jobs
import torch
from export_fixture import about, logits, plan_of
from small_models import BUILDERS, images
from torch import nn

from vitsense import cli
from vitsense.discover import find_sites
from vitsense.export.fixed import FixedModel
from vitsense.export.packed import read_packed, save_packed
from vitsense.export.trained import fixed_of
from vitsense.plan.plan import Plan
from vitsense.qat.prepare import QuantizedModel, convert, prepare_qat, restore_qat
from vitsense.qat.settings import Offsets, QatSettings, StepGradient, WeightMethod
from vitsense.qat.train import train
from vitsense.settings import Granule
from vitsense.trainings import TrainingFolder


def _standardized() -> nn.Module:
    """A ResNet whose weights are computed from their parameters before use."""
    from timm.layers import ScaledStdConv2d

    torch.manual_seed(0)
    body = nn.Sequential(ScaledStdConv2d(3, 8, 3, stride=4, padding=2), nn.ReLU(), nn.Flatten())
    return nn.Sequential(body, nn.Linear(8 * 9 * 9, 10)).eval()


MODELS = {**BUILDERS, "standardized": _standardized}
SETTINGS = {
    "lsq+": QatSettings(offsets=Offsets.ALWAYS, step_gradient=StepGradient.LSQ),
    "statsq": QatSettings(
        weights=WeightMethod.STATISTIC, step_gradient=StepGradient.LSQ, offsets=Offsets.ALWAYS
    ),
    "per head": QatSettings(
        per_head=True, weight_granularity=Granule.TENSOR, offsets=Offsets.ALWAYS, share_inputs=True
    ),
}
CASES = [
    ("vit", "lsq+"),
    ("vit", "per head"),
    ("resnet", "statsq"),
    ("standardized", "statsq"),
]


def _trained(name: str, settings: str) -> tuple[QuantizedModel, Plan]:
    """A model after some steps of a drunken optimizer: no offset is a multiple of its step."""
    model = MODELS[name]()
    plan = plan_of(find_sites(model, images(1)), (8, 4, 3))
    made = prepare_qat(model, plan, settings=SETTINGS[settings], calibration=[images(4)])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1 + 0.05 * torch.rand(parameter.shape, generator=generator))
    return made.eval(), plan


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, QuantizedModel, Plan, FixedModel]:
    name, settings = request.param
    made, plan = _trained(name, settings)
    said = {"name": "t", "share_inputs": SETTINGS[settings].share_inputs}
    return name, made, plan, fixed_of(made, images(1), said)


def test_the_fixed_model_is_the_converted_one_bit_for_bit(case: Any) -> None:
    _, made, _, fixed = case
    assert torch.equal(logits(fixed), logits(convert(made)))
    assert torch.equal(logits(fixed), logits(made))


def test_its_grids_alone_say_what_the_model_computes(case: Any) -> None:
    """Without the runner, the visits add in another order and must agree but for rare ties."""
    _, made, _, fixed = case
    plain = FixedModel(
        fixed.model, fixed.catalog, fixed.weights, fixed.activations, trained=fixed.trained
    )
    mine, theirs = logits(plain).numpy(), logits(made).numpy()
    assert np.median(np.abs(mine - theirs).max(1)) < 1e-4 * np.ptp(theirs)


def test_a_packed_file_restores_it_bit_for_bit(case: Any, tmp_path: Path) -> None:
    name, made, plan, fixed = case
    path = tmp_path / "m.safetensors"
    save_packed(path, fixed, plan, about())
    other = MODELS[name]()
    for parameter in other.parameters():
        nn.init.normal_(parameter)  # nothing may come from here
    back = read_packed(path).restore(other, find_sites(other, images(1)))
    assert torch.equal(logits(back), logits(convert(made)))


@pytest.mark.parametrize(("name", "settings"), CASES[3:], ids=["statsq"])
def test_onnxruntime_computes_on_the_trained_grids(name: str, settings: str) -> None:
    pytest.importorskip("onnxscript")
    from vitsense.export import onnx_graph
    from vitsense.export.onnx_types import stored_types
    from vitsense.export.session import Session
    from vitsense.export.site_parity import compare_sites

    made, _ = _trained(name, settings)
    fixed = fixed_of(made, images(1), {"name": "t", "share_inputs": False})
    stored = stored_types(fixed, 21, fallback=False)
    graph = onnx_graph.quantized_graph(fixed, images(1), stored, 21)
    session = Session(onnx_graph.write_graph(graph))
    mine, theirs = logits(made, 5).numpy(), session.logits(images(5).numpy())
    assert np.median(np.abs(mine - theirs).max(1)) < 1e-4 * np.ptp(mine)
    sites = compare_sites(fixed, graph, images(2))
    shifted = {key for key, grid in fixed.activations.items() if grid.shift is not None}
    assert shifted & {site.site for site in sites}
    assert all(weight.grid.shift is not None for weight in fixed.weights.values())
    assert not any(site.suspicious for site in sites)


@pytest.fixture(scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training of the shipped ResNet."""
    folder = TrainingFolder.at(tmp_path_factory.mktemp("trained") / "short")
    recipe = qat_jobs.recipe(offsets="always", epochs=1.0, evaluate=0.5)
    train(qat_jobs.request(qat_jobs.resnet_plan(), recipe=recipe), folder, qat_jobs.CPU)
    return folder.path


@pytest.fixture
def folder(_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(_folder, tmp_path / "short"))


def _export(source: Path, *options: str, form: str = "safetensors") -> int:
    return cli.run(["export", str(source), "--format", form, "--out", f"m.{form}", "-q", *options])


@pytest.mark.parametrize("which", ["", "best.safetensors", "last.safetensors"])
def test_a_training_is_exported_by_its_folder_or_checkpoint(folder: Path, which: str) -> None:
    from safetensors.torch import load_file

    from vitsense import load_model, restored
    from vitsense.qat.recipes import recipe_from_json
    from vitsense.qat.steadying import qat_settings

    assert _export(folder / which if which else folder) == 0
    packed = read_packed(Path("m.safetensors"))
    assert packed.trained is not None
    assert packed.trained["checkpoint"] == (which or "best.safetensors")
    record = json.loads((folder / "qat.json").read_text())
    state = load_file(folder / (which or "best.safetensors"))
    trained = restore_qat(
        load_model(qat_jobs.RESNET, qat_jobs.CPU).module,
        Plan.load(folder / "plan.json"),
        state,
        settings=qat_settings(recipe_from_json(record["recipe"], "here")),
        image=images(1),
    ).eval()
    with torch.no_grad():
        assert torch.equal(restored(packed)(images(3)), trained(images(3)))


def test_a_checkpoint_of_another_plan_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Plan.load(folder / "plan.json")
    other = replace(own, modules=tuple(replace(m, bits=8) for m in own.modules))
    other.save(Path("other.json"))
    assert _export(folder, "--plan", "other.json") == 2
    err = capsys.readouterr().err
    assert "was for another plan" in err
    assert "4 bits trained, 8 in this plan" in err
    # a record that says so too: the checkpoint itself does not fit
    record = json.loads((folder / "qat.json").read_text())
    record["plan"]["bits"] = other.bits
    (folder / "qat.json").write_text(json.dumps(record))
    assert _export(folder, "--plan", "other.json") == 2
    assert "the state [-8, 7]" in capsys.readouterr().err
    wide = replace(
        own, modules=tuple(replace(m, weight="int4", activation="uint8") for m in own.modules)
    )
    record["plan"]["bits"] = wide.bits
    (folder / "qat.json").write_text(json.dumps(record))
    wide.save(Path("wide.json"))
    assert _export(folder, "--plan", "wide.json") == 2
    assert "has 4 bits at conv1:input, the plan 8" in capsys.readouterr().err


def test_what_is_missing_or_unfinished_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    assert _export(path) == 2
    assert "is not a whole safetensors file" in capsys.readouterr().err
    for name in ("best.safetensors", "last.safetensors"):
        (folder / name).unlink()
    assert _export(folder) == 3
    assert "holds no trained weights" in capsys.readouterr().err
    (folder / "plan.json").unlink()
    assert _export(folder) == 3
    assert "holds no plan.json" in capsys.readouterr().err
    assert _export(folder, "--model", "resnet") == 2
    assert "of one model" in capsys.readouterr().err
    record = json.loads((folder / "qat.json").read_text())
    (folder / "qat.json").write_text(json.dumps({**record, "status": "interrupted"}))
    assert _export(folder) == 2
    assert "finish it first" in capsys.readouterr().err
