"""Packed files: what is in them, what comes back, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from export_fixture import about, fixed_model, logits, plan_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import BUILDERS, images

from vitsense.discover import find_sites
from vitsense.errors import (
    InputMissingError,
    SchemaVersionError,
    SiteMismatchError,
    UserInputError,
)
from vitsense.export.fixed import fix_model, site_formats
from vitsense.export.packed import read_packed, save_packed
from vitsense.export.source import restored
from vitsense.numerics.fake_quant import fake_quantize
from vitsense.numerics.grid import Format, PerChannel
from vitsense.numerics.ranges import RangeMethod, grid_from_tensor
from vitsense.plan.plan import Plan
from vitsense.settings import Granule, ProbsGrid, QuantSettings
from vitsense.statistics.collect import collect_statistics


@pytest.fixture(params=["vit", "swin", "resnet"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Any]:
    fixed, plan = fixed_model(request.param)
    path = tmp_path / "model.safetensors"
    size = save_packed(path, fixed, plan, about())
    assert size.total == path.stat().st_size
    return request.param, path, fixed


def test_a_restored_model_gives_the_very_logits(packed: tuple[str, Path, Any]) -> None:
    name, path, fixed = packed
    other = BUILDERS[name]()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)  # nothing may come from here
    back = read_packed(path).restore(other, find_sites(other, images(1)))
    torch.testing.assert_close(logits(back), logits(fixed), rtol=0, atol=0)


def test_the_quantized_weights_are_in_the_restored_model_itself(
    packed: tuple[str, Path, Any],
) -> None:
    name, path, fixed = packed
    other = BUILDERS[name]()
    read_packed(path).restore(other, find_sites(other, images(1)))
    first = next(m for m in fixed.catalog if m.params and m.channels is None)
    expected = fixed.weights[f"{first.name}:weight"].values
    torch.testing.assert_close(dict(other.named_parameters())[first.weight], expected)


def test_a_fixed_model_is_the_simulated_one() -> None:
    """Against the weight rounded by hand, and every activation visited as in a measurement."""
    fixed, plan = fixed_model("resnet", (4,))
    weight = BUILDERS["resnet"]().state_dict()["conv1.weight"]
    grid = grid_from_tensor(weight, Format(4), PerChannel(0), RangeMethod.MSE)
    assert torch.equal(fixed.weights["conv1:weight"].values, fake_quantize(weight, grid))
    assert set(fixed.formats) == {site.id for site in site_formats(plan, fixed.catalog)}


def test_codes_have_their_bits_in_the_file(packed: tuple[str, Path, Any]) -> None:
    _, path, fixed = packed
    stored = load_file(path)
    for key, weight in fixed.weights.items():
        name = key.removesuffix(":weight")
        bits = weight.grid.format.bits
        assert stored[f"{name}.codes"].numel() == -(-weight.codes.numel() * bits // 8)
    # what is quantized is not there a second time
    assert not any(
        k.startswith("float/") and k.endswith(("fc1.weight", "conv1.weight")) for k in stored
    )


def test_the_parts_of_the_size_are_the_file(tmp_path: Path) -> None:
    fixed, plan = fixed_model("resnet", (3,))
    plan = Plan(modules=plan.modules, cost={"size_mb": 0.01})
    size = save_packed(tmp_path / "m.safetensors", fixed, plan, about())
    parts = (size.codes, size.scales, size.parameters, size.buffers, size.header)
    assert sum(parts) == size.total
    weights = sum(w.codes.numel() for w in fixed.weights.values())
    channels = sum(len(w.codes) for w in fixed.weights.values())
    total = sum(p.numel() for p in fixed.model.parameters())
    assert size.codes == pytest.approx(weights * 3 / 8, rel=0.01)
    assert size.scales == 4 * channels
    assert size.parameters == 4 * (total - weights)
    assert size.weights_to_predicted == pytest.approx(sum(parts[:3]) / 1e4)


def test_per_tensor_weights_and_modules_left_in_float_come_back(tmp_path: Path) -> None:
    model = BUILDERS["vit"]()
    catalog = find_sites(model, images(1))
    whole = plan_of(catalog, (8,))
    # only the query part of the fused projection is planned: its parameter stays whole, in float
    kept = tuple(m for m in whole.modules if not m.name.endswith((".k", ".v", "fc1")))
    plan = Plan(modules=kept)
    settings = QuantSettings(weight_granularity=Granule.TENSOR)
    fixed = fix_model(model, catalog, plan, [images(4)], settings)
    path = tmp_path / "m.safetensors"
    save_packed(path, fixed, plan, about())
    assert "float/blocks.0.attn.qkv.weight" in load_file(path)
    other = BUILDERS["vit"]()
    back = read_packed(path).restore(other, catalog)
    torch.testing.assert_close(logits(back), logits(fixed), rtol=0, atol=0)


def _written(tmp_path: Path) -> Path:
    fixed, plan = fixed_model("resnet")
    path = tmp_path / "m.safetensors"
    save_packed(path, fixed, plan, about())
    return path


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.99])
def test_a_truncated_file_is_an_error(tmp_path: Path, share: float) -> None:
    path = _written(tmp_path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(UserInputError, match="not a whole safetensors file"):
        read_packed(path)


def test_a_changed_weight_is_an_error(tmp_path: Path) -> None:
    path = _written(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserInputError, match="was changed after it was written"):
        read_packed(path)


def test_changed_metadata_is_an_error(tmp_path: Path) -> None:
    path = _written(tmp_path)
    with safe_open(path, framework="pt") as stored:
        metadata = dict(stored.metadata())
    data = json.loads(metadata["vitsense"])
    key = next(iter(data["activations"]))
    data["activations"][key]["scale"] *= 2
    metadata["vitsense"] = json.dumps(data)
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(UserInputError, match="was changed after it was written"):
        read_packed(path)


@pytest.mark.parametrize(
    ("metadata", "error", "match"),
    [
        (None, UserInputError, "not a model packed by vitsense"),
        ({"vitsense": "{"}, UserInputError, "metadata is damaged"),
        ({"vitsense": '{"schema": "vitsense.packed/9"}'}, SchemaVersionError, "update vitsense"),
    ],
)
def test_other_safetensors_files_are_refused(
    tmp_path: Path, metadata: Any, error: type[Exception], match: str
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
    with pytest.raises(error, match=match):
        read_packed(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="no file"):
        read_packed(tmp_path / "none.safetensors")


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = _written(tmp_path)
    other = BUILDERS["vit"]()
    with pytest.raises(SiteMismatchError, match="belongs to another model"):
        read_packed(path).restore(other, find_sites(other, images(1)))


def test_code_is_never_run_because_a_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="code is never run because a file names it"):
        restored(read_packed(_written(tmp_path)))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    fixed, plan = fixed_model("resnet")
    with pytest.raises(UserInputError, match="cannot be written"):
        save_packed(tmp_path / "none" / "m.safetensors", fixed, plan, about())


def test_calibration_makes_the_grids_of_a_measurement() -> None:
    """The ranges are those `Quantizers` makes from the same images."""
    from vitsense.sensitivity.quantizers import Quantizers

    fixed, plan = fixed_model("swin")
    statistics = collect_statistics(fixed.model, fixed.catalog, [images(4)])
    quantizers = Quantizers(fixed.catalog, statistics, QuantSettings(), "cpu")
    for site, name in site_formats(plan, fixed.catalog).items():
        if not site.is_weight:
            grid = quantizers.grid(site, name, torch.empty(0))
            assert torch.equal(grid.scale, fixed.activations[site.id].scale)


def test_formats_without_integer_codes_are_refused_or_left_in_float() -> None:
    model = BUILDERS["vit"]()
    catalog = find_sites(model, images(1))
    rows = [replace(m, weight=None, activation=None) for m in plan_of(catalog, (8,)).modules]
    rows[3] = replace(rows[3], bits=4, weight="mxfp4", activation="mxfp4")
    plan = Plan(modules=tuple(rows))
    with pytest.raises(UserInputError, match=r"2 sites have .*\(2 mxfp4\), first .*--fallback"):
        fix_model(model, catalog, plan, [images(2)], QuantSettings())
    fixed = fix_model(model, catalog, plan, [images(2)], QuantSettings(), fallback=True)
    assert set(fixed.left) == {f"{rows[3].name}:weight", f"{rows[3].name}:input"}
    assert not set(fixed.left) & set(fixed.formats)
    powers = QuantSettings(attention_probs=ProbsGrid.LOG2)
    with pytest.raises(UserInputError, match=r"2 powers of two.*attention_probs"):
        fix_model(model, catalog, plan_of(catalog, (8,)), [images(2)], powers)
