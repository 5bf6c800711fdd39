"""ONNX files: what stands in them, that onnxruntime agrees with torch, and what is refused."""

from __future__ import annotations

from collections import Counter
from functools import partial
from math import floor
from typing import Any

import numpy as np
import pytest
import torch
from export_fixture import MIXED, fixed_model, logits
from small_models import images

from vitsense.errors import InputMissingError, UserInputError
from vitsense.export.fixed import FixedModel, FixedWeight
from vitsense.export.onnx_types import stored_types
from vitsense.export.parity import both_logits, double_logits, parity_of
from vitsense.numerics.fake_quant import fake_quantize
from vitsense.numerics.grid import Format, Grid
from vitsense.observe import observing

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from vitsense.export import onnx_graph  # noqa: E402
from vitsense.export.session import Session, latencies  # noqa: E402
from vitsense.export.site_parity import (  # noqa: E402
    Apart,
    apart_of,
    compare_sites,
    explained,
    summary,
)

VIT_WEIGHT = "blocks.0.mlp.fc1:weight"


def _every_kind() -> FixedModel:
    """What a trained model may have: ranges per head, an affine weight with one scale."""
    fixed, _ = fixed_model("vit", MIXED)
    heads, key = "blocks.0.attn.qk_product:query", "head:weight"
    scale = fixed.activations[heads].scale * torch.tensor([0.5, 1.0, 2.0]).reshape(1, 3, 1, 1)
    zero = torch.tensor([25.0, 32.0, 35.0]).reshape(1, 3, 1, 1)
    grids = fixed.activations | {heads: Grid(Format(6, signed=False), scale, zero)}
    weight = fixed.weights[key]
    affine = Grid(weight.grid.format, torch.tensor(0.01), torch.tensor(3.0))
    weights = fixed.weights | {key: FixedWeight(weight.codes, affine)}
    return FixedModel(fixed.model, fixed.catalog, weights, grids)


@pytest.fixture(scope="module", params=[18, 25])
def exported(request: pytest.FixtureRequest) -> tuple[FixedModel, Any, bytes, Any]:
    """A ResNet in the oldest operator set, and a ViT of every width and kind in the newest."""
    opset = request.param
    fixed = fixed_model("resnet", (8,))[0] if opset == 18 else _every_kind()
    stored = stored_types(fixed, opset, fallback=False)
    graph = onnx_graph.quantized_graph(fixed, images(1), stored, opset)
    raw = onnx_graph.write_graph(graph)
    return fixed, graph, raw, onnx.load_from_string(raw)


def test_onnxruntime_gives_the_logits_of_torch_for_any_batch(exported: Any) -> None:
    fixed, _, raw, _ = exported
    session = Session(raw)
    for count in (1, 5):
        mine, theirs = logits(fixed, count).numpy(), session.logits(images(count).numpy())
        difference = np.abs(theirs - mine).max(1)
        # a value in the middle between two codes may fall to either side; that is rare
        assert np.median(difference) < 1e-5
        assert difference.max() < 0.05 * np.ptp(mine)


def test_weights_are_integers_of_their_own_width(exported: Any) -> None:
    fixed, _, _, model = exported
    tensors = {t.name: t for t in model.graph.initializer}
    for key, weight in fixed.weights.items():
        bits = weight.grid.format.bits
        tensor = tensors[f"{key}.codes"]
        held = {2: "INT2", 3: "INT4", 4: "INT4"}.get(bits, "INT8")
        assert onnx.TensorProto.DataType.Name(tensor.data_type) == held
        codes = onnx.numpy_helper.to_array(tensor).astype(np.int32)
        np.testing.assert_array_equal(codes, weight.codes.numpy())
    # and nothing of a planned weight is left in float
    planned = {m.weight for m in fixed.catalog if m.weight}
    assert not {name.removeprefix("model.") for name in tensors} & planned


def test_every_planned_site_is_quantized_in_the_graph(exported: Any) -> None:
    fixed, _, _, model = exported
    operators = Counter(node.op_type for node in model.graph.node)
    made = {output for node in model.graph.node for output in node.output}
    shared = {s.tensor for s in fixed.catalog.sites if s.id in fixed.activations and s.id in made}
    missing = [s.id for s in fixed.catalog.sites if not s.is_weight and s.tensor not in shared]
    assert missing == []
    assert operators["QuantizeLinear"] + len(fixed.weights) == operators["DequantizeLinear"]
    assert [value.name for value in model.graph.input] == ["images"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_the_file_names_no_folder_of_this_machine(exported: Any) -> None:
    assert b"site-packages" not in exported[2]
    assert b"/vitsense/" not in exported[2]


def test_sites_agree_one_by_one_and_the_graph_stays_as_it_was(exported: Any) -> None:
    fixed, graph, raw, _ = exported
    sites = compare_sites(fixed, graph, images(5))
    assert {site.site for site in sites} <= set(fixed.activations)
    assert [site.site for site in sites if site.suspicious] == []
    assert all(site.double.by_ties for site in sites)
    seen = _elements(fixed, images(5))
    assert {site.site: site.values for site in sites} == {s.site: seen[s.site] for s in sites}
    assert onnx_graph.write_graph(graph) == raw


def _elements(fixed: FixedModel, batch: torch.Tensor) -> dict[str, int]:
    """Values of every activation site, counted by the model's own hooks."""
    found: dict[str, int] = {}

    def counted(site: str, tensor: torch.Tensor) -> torch.Tensor:
        found[site] = tensor.numel()
        return fake_quantize(tensor, fixed.activations[site], divide=True)

    visits = {key: partial(counted, key) for key in fixed.activations}
    with torch.no_grad(), observing(fixed.model, fixed.catalog, visits):
        fixed.model(batch)
    return found


def test_of_a_plan_of_weights_alone_there_are_no_sites_to_compare(exported: Any) -> None:
    fixed, graph, _, _ = exported
    weights = FixedModel(fixed.model, fixed.catalog, fixed.weights, {})
    assert compare_sites(weights, graph, images(1)) == []
    assert summary([])["conclusion"] == "the plan rounds weights alone"


def test_a_scale_that_is_one_percent_off_is_no_tie(exported: Any) -> None:
    fixed, graph, raw, _ = exported
    names = [site.site for site in compare_sites(fixed, graph, images(1))]
    late = names[-4]
    grid = fixed.activations[late]
    grids = fixed.activations | {late: Grid(grid.format, grid.scale * 1.01, grid.zero_point)}
    other = FixedModel(fixed.model, fixed.catalog, fixed.weights, grids)
    sites = compare_sites(other, graph, images(2))
    found = summary(sites)
    assert found["suspicious"][0] == late
    assert "another scale" in found["conclusion"]
    assert late in found["conclusion"]
    assert not [s.site for s in sites[: names.index(late)] if s.suspicious]
    mine, theirs = both_logits(other, Session(raw), [(images(4), torch.full((4,), -1))])
    assert np.abs(mine - theirs).max() > 0


def test_a_wrong_weight_is_found_though_everything_behind_it_inherits_the_difference(
    exported: Any,
) -> None:
    fixed, graph, _, _ = exported
    key = "layer1.0.conv1:weight" if "layer1.0.conv1:weight" in fixed.weights else VIT_WEIGHT
    weight = fixed.weights[key]
    grid = Grid(weight.grid.format, weight.grid.scale * 1.01, weight.grid.zero_point)
    other = FixedModel(
        fixed.model,
        fixed.catalog,
        fixed.weights | {key: FixedWeight(weight.codes, grid)},
        fixed.activations,
    )
    sites = compare_sites(other, graph, images(2))
    own = [site.site for site in sites].index(key.replace("weight", "input"))
    assert not [site.site for site in sites[: own + 1] if site.suspicious]
    (wrong,) = [site for site in sites if site.suspicious]
    assert wrong is sites[own + 1]
    assert wrong.alone.tie > 0.01
    assert sum(site.as_it_runs.differing > 0 for site in sites[own + 1 :]) > 3
    assert summary(sites)["suspicious"] == [wrong.site]
    assert "rounding does not explain it" in summary(sites)["conclusion"]


def test_files_are_timed_in_turn(exported: Any) -> None:
    session = Session(exported[2])
    first, second = latencies([session, session], images(1).numpy(), runs=5, warmup=1)
    assert first.runs == second.runs == 5
    assert 0 < first.low <= first.median <= first.high


def test_the_torch_model_in_double_precision_is_another_way_to_compute_it() -> None:
    fixed, _ = fixed_model("resnet", (8,))
    found = double_logits(fixed, [(images(4), torch.full((4,), -1))])
    mine = logits(fixed).numpy()
    assert 0 < np.abs(found - mine).max() < 0.05 * np.ptp(mine)
    assert next(fixed.model.parameters()).dtype is torch.float32


def test_parity_counts_classes_and_measures_logits() -> None:
    mine = np.array([[0.0, 2.55], [1.0, 0.5], [0.0, 0.1]], dtype=np.float32)
    theirs = mine + np.array([[0.0, 0.0], [0.0, 0.004], [0.2, 0.0]], dtype=np.float32)
    parity = parity_of(mine, theirs, np.array([1, 0, 1]))
    assert (parity.images, parity.same_top1, parity.worst[0]) == (3, 2, 2)
    assert parity.step == pytest.approx(0.01)
    assert parity.largest == pytest.approx(0.2)
    assert parity.top1_torch == 100
    assert parity.top1_file == pytest.approx(100 * 2 / 3)
    assert not parity.identical
    assert parity_of(mine, mine + 0.004, np.array([1, 0, 1])).identical


def test_a_tie_is_called_a_tie_and_nothing_else_is() -> None:
    assert explained(Apart(), 10) == ""
    tie = Apart(differing=1, steps=1.0, tie=1e-5)
    assert "middle between two codes" in explained(tie, 10)
    assert tie.by_ties
    for wrong in (
        Apart(differing=1, steps=1.0, tie=0.2),
        Apart(differing=1, steps=2.0, tie=1e-5),
        Apart(off=0.01),
    ):
        assert not wrong.by_ties
        assert not (tie + wrong).by_ties
        assert explained(wrong, 10)
        assert "last bit" not in explained(wrong, 10)


@pytest.mark.parametrize("bits", [4, 8])
def test_distances_are_those_of_a_slow_loop(bits: int) -> None:
    grid = Grid(Format(bits, signed=False), torch.tensor(0.1), torch.tensor(3.0))
    before = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 3
    before[7] = 0.25 + 1e-7  # 2.500001 steps
    mine = fake_quantize(before.float(), grid, divide=True)
    theirs = mine.clone()
    theirs[7] -= 0.1
    theirs[9] += 0.2
    found = apart_of(grid, mine, before, theirs)
    scale = float(grid.scale)
    middle = [abs(before[i].item() / scale - floor(before[i].item() / scale) - 0.5) for i in (7, 9)]
    assert found.differing == 2
    assert found.steps == pytest.approx(2, abs=1e-5)
    assert found.tie == pytest.approx(max(middle))
    assert middle[0] < 1e-5
    assert found.off < 1e-5
    only = apart_of(grid, mine[7:8], before[7:8], theirs[7:8])
    assert only.by_ties
    assert apart_of(grid, mine, before, mine) == Apart()
    assert apart_of(grid, mine, before, mine * 1.01).off > 0.01


@pytest.mark.parametrize(("opset", "match"), [(17, "too old; use 18 to 25"), (26, "newer than")])
def test_operator_sets_that_are_not_supported(opset: int, match: str) -> None:
    fixed, _ = fixed_model("vit", (8,))
    with pytest.raises(UserInputError, match=match):
        stored_types(fixed, opset, fallback=True)


def test_four_bits_before_operator_set_21_need_fallback() -> None:
    fixed, _ = fixed_model("vit", (4,))
    with pytest.raises(UserInputError, match="20 is too old for .* first patch_embed.proj:weight"):
        stored_types(fixed, 20, fallback=False)
    found = stored_types(fixed, 20, fallback=True)
    assert {s.type for s in found.values()} == {"int8", "uint8"}
    assert "operator set 21 has 4 bits" in found["patch_embed.proj:weight"].note


def test_signed_activations_of_few_bits_are_clipped_and_not_refused() -> None:
    fixed, _ = fixed_model("resnet", (8,))
    for bits in (3, 8):
        signed = Grid(Format(bits), torch.tensor(0.1), torch.tensor(0.0))
        other = FixedModel(fixed.model, fixed.catalog, {}, {"conv1:input": signed})
        found = stored_types(other, 21, fallback=False)["conv1:input"]
        assert (found.type, found.lift, found.clipped) == ("uint8", 128, bits == 3)
        assert found.note


def test_signed_activations_before_a_transpose_are_exact_in_onnxruntime() -> None:
    """Written as int8, onnxruntime 1.32 refuses them: its optimizer mixes up two types."""
    fixed, _ = fixed_model("vit", (8,))
    key = "blocks.0.attn.qk_product:key"
    signed = Grid(Format(4), fixed.activations[key].scale * 16, torch.tensor(0.0))
    other = FixedModel(fixed.model, fixed.catalog, {}, {key: signed})
    stored = stored_types(other, 21, fallback=False)
    raw = onnx_graph.write_graph(onnx_graph.quantized_graph(other, images(1), stored, 21))
    difference = np.abs(Session(raw).logits(images(5).numpy()) - logits(other, 5).numpy()).max(1)
    assert np.median(difference) < 1e-5
    assert difference.max() < 0.01


def test_widths_are_held_in_the_next_type_that_onnx_has() -> None:
    fixed, _ = fixed_model("vit", MIXED)
    for opset, two in ((21, "int4"), (25, "int2")):
        found = stored_types(fixed, opset, fallback=False)
        held = {s.format.name: s.type for s in found.values() if s.format.signed}
        expected = {"int8": "int8", "int6": "int8", "int5": "int8", "int4": "int4", "int3": "int4"}
        assert held == expected | {"int2": two}
        assert all(bool(s.note) == (s.type != s.format.name) for s in found.values())


def test_sixteen_bits_need_operator_set_21() -> None:
    fixed, _ = fixed_model("resnet", (8,))
    wide = Grid(Format(16, signed=False), torch.tensor(1e-3), torch.tensor(5.0))
    other = FixedModel(fixed.model, fixed.catalog, {}, {"conv1:input": wide})
    assert stored_types(other, 21, fallback=False)["conv1:input"].type == "uint16"
    with pytest.raises(UserInputError, match="cannot hold 1 sites, first conv1:input"):
        stored_types(other, 20, fallback=True)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None if name == "onnxscript" else 1)
    with pytest.raises(
        InputMissingError, match=r"needs onnxscript: pip install 'vitsense\[onnx\]'"
    ):
        onnx_graph.need_onnx()


def test_a_file_that_onnxruntime_refuses_is_said() -> None:
    with pytest.raises(UserInputError, match="refuses the file"):
        Session(b"no model")
