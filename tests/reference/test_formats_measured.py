"""Formats that are not integers through the sweep, the plan and a whole run."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from plan_tables import modules_table, sensitivity_table
from small_models import BUILDERS, images

from vitsense.analyze import run_analysis
from vitsense.discover import find_sites
from vitsense.errors import UserInputError
from vitsense.formats import FLOAT_FORMATS, format_of
from vitsense.numerics import BlockGrid, FloatGrid, Grid, Log2Grid
from vitsense.plan.again import plan_again
from vitsense.plan.budget import Budget
from vitsense.plan.cost import cost_of
from vitsense.plan.make import make_plan
from vitsense.plan.plan import Plan
from vitsense.plan.predict import DropModel
from vitsense.plan.solve import make_problem, solve, summed_divergence
from vitsense.report import compose, write_report
from vitsense.sensitivity.quantizers import Quantizers, summed_axis
from vitsense.sensitivity.result import Cell
from vitsense.sensitivity.sweep import measure_exact
from vitsense.settings import AnalyzeSettings, ModelRequest, Part, ProbsGrid, QuantSettings
from vitsense.sites import Kind
from vitsense.statistics.collect import collect_statistics

CURVE = DropModel(ceiling=80.0, log_c=3.0, exponent=1.0, scatter=0.2, points=4, basis="plans")


def setting(family: str, quant: QuantSettings | None = None):
    model = BUILDERS[family]()
    catalog = find_sites(model, images(1))
    statistics = collect_statistics(model, catalog, [images(8)])
    return model, catalog, Quantizers(catalog, statistics, quant or QuantSettings(), "cpu")


def shared_exponent_rounding(x: torch.Tensor) -> torch.Tensor:
    """mxfp4 along the last axis, element by element in numpy."""
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    out = np.zeros(x.shape, dtype=np.float64)
    rows = x.detach().double().numpy().reshape(-1, x.shape[-1])
    flat = out.reshape(rows.shape)
    for r, start in itertools.product(range(rows.shape[0]), range(0, rows.shape[1], 32)):
        block = rows[r, start : start + 32]
        top = np.abs(block).max()
        if top == 0:
            continue
        scale = 2.0 ** (np.floor(np.log2(top)) - 2)
        for i, value in enumerate(block):
            size = abs(value) / scale
            codes = np.abs(table - size)
            best = np.flatnonzero(codes == codes.min())
            code = best[0] if len(best) == 1 else best[best % 2 == 0][0]
            flat[r, start + i] = np.sign(value) * table[code] * scale
    return torch.from_numpy(out).float()


@pytest.mark.parametrize("part", Part)
def test_a_block_format_equals_the_naive_loop(part: Part) -> None:
    model, catalog, quantizers = setting("vit")
    batch = (images(2), torch.tensor([1, 2]))
    found = measure_exact(model, catalog, quantizers, [batch], bits=["mxfp4", 8], parts=(part,))
    outcomes = {(m.cell.module, m.cell.format): m.outcome for m in found}
    for name in ("patch_embed.proj", "blocks.1.mlp.fc2", "head"):
        twin = copy.deepcopy(model)
        layer = twin.get_submodule(name)
        if part is not Part.ACTIVATIONS:
            weight = layer.weight.detach()
            flat = shared_exponent_rounding(weight.reshape(weight.shape[0], -1))
            with torch.no_grad():
                layer.weight.copy_(flat.reshape(weight.shape))
        if part is not Part.WEIGHTS:
            axis = 1 if layer.weight.dim() == 4 else -1

            def pre(_m, args, axis=axis):
                moved = args[0].movedim(axis, -1)
                return (shared_exponent_rounding(moved).movedim(-1, axis),)

            layer.register_forward_pre_hook(pre)
        with torch.no_grad():
            noise = float((twin(batch[0]) - model(batch[0])).double().square().sum())
        assert outcomes[name, "mxfp4"].noise == pytest.approx(noise, rel=1e-3)
        assert outcomes[name, "int8"].noise < outcomes[name, "mxfp4"].noise


@pytest.mark.parametrize("family", BUILDERS)
def test_every_module_can_be_measured_in_every_format(family: str) -> None:
    model, catalog, quantizers = setting(family)
    names = [*FLOAT_FORMATS, "int8"]
    found = measure_exact(model, catalog, quantizers, [(images(1), torch.tensor([1]))], bits=names)
    rows = pd.DataFrame([m.row("exact") for m in found])
    assert len(rows) == len(names) * len(catalog)
    assert set(rows["status"]) == {"measured"}
    noise = {name: sum(m.outcome.noise for m in found if m.cell.format == name) for name in names}
    assert noise["mxfp6_e2m3"] < noise["mxfp6_e3m2"] < noise["mxfp4"]
    assert noise["fp8_e4m3"] < noise["fp8_e5m2"]
    assert noise["nvfp4"] < noise["mxfp4"]  # finer scales, smaller blocks


def test_blocks_lie_along_the_axis_that_is_summed_over() -> None:
    _, catalog, _ = setting("vit")
    axes = {
        s.id.rpartition(".")[2]: summed_axis(m, s)
        for m in catalog
        if m.block == "blocks.0" or m.kind is Kind.CONV
        for s in m.activation_sites
    }
    assert axes["proj:input"] in (-1, -3)
    assert axes["qk_product:query"] == axes["qk_product:key"] == -1
    assert axes["pv_product:attention_probs"] == -1
    assert axes["pv_product:value"] == -2


def test_grids_follow_the_format_and_the_settings() -> None:
    _, catalog, quantizers = setting("vit", QuantSettings(attention_probs=ProbsGrid.LOG2))
    product = next(m for m in catalog if m.name.endswith("pv_product"))
    probs, value = product.sites
    assert isinstance(quantizers.grid(probs, 4, torch.empty(0)), Log2Grid)
    assert isinstance(quantizers.grid(value, 4, torch.empty(0)), Grid)
    assert isinstance(quantizers.grid(probs, "mxfp4", torch.empty(0)), BlockGrid)
    assert isinstance(quantizers.grid(probs, "fp8_e4m3", torch.empty(0)), FloatGrid)


def test_a_cell_of_bits_alone_is_the_integer_one() -> None:
    assert Cell("m", 4, Part.BOTH) == Cell.of("m", 4, Part.BOTH) == Cell.of("m", "int4", Part.BOTH)
    assert Cell.of("m", "mxfp4", Part.BOTH) != Cell("m", 4, Part.BOTH)
    assert Cell.of("m", "mxfp4", Part.BOTH).bits == 4


def mixed_problem(seed: int):
    modules = modules_table(5, products=1, seed=seed)
    ints = sensitivity_table(modules, bits=(8, 4), seed=seed)
    rng = np.random.default_rng(seed)
    blocks = ints[ints["bits"] == 4].assign(format="mxfp4")
    blocks["kl"] *= rng.uniform(0.5, 1.5, len(blocks))
    return make_problem(modules, pd.concat([ints, blocks], ignore_index=True), 50_000, pins={})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("text", ["avg-bits=4.6", "size-mb=0.155", "bitops-g=0.002"])
def test_the_plan_chooses_among_formats_as_enumeration_does(seed: int, text: str) -> None:
    given, budget = mixed_problem(seed), Budget.parse(text)
    names = list(given.modules["module"])
    product = given.modules["params"] == 0
    best = np.inf
    for formats in itertools.product(("int8", "int4", "mxfp4"), repeat=len(names)):
        chosen = dict(zip(names, formats, strict=True))
        cost = cost_of(given.modules, chosen, 50_000)
        ops = [format_of(chosen[n]).effective_bits for n in given.modules[product]["module"]]
        fits = {
            "avg-bits": max(cost.avg_bits, *ops),
            "size-mb": cost.size_mb,
            "bitops-g": cost.bitops_g,
        }[budget.kind.value] <= budget.value + 1e-9
        if fits:
            best = min(best, summed_divergence(given, chosen))
    if not np.isfinite(best):
        with pytest.raises(UserInputError, match="least possible"):
            solve(given, budget, CURVE)
        return
    found = solve(given, budget, CURVE)
    assert summed_divergence(given, found.formats) == pytest.approx(best)
    assert {found.bits[n] for n in names} <= {4, 8}
    plan = make_plan(given, found, budget, model={}, quantization={}, provenance={})
    assert plan.formats == dict(found.formats)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_block_scales_count_in_the_size() -> None:
    modules = modules_table(3, products=0)
    bits = dict.fromkeys(modules["module"], "mxfp4")
    found = cost_of(modules, bits, 50_000)
    params = modules["params"].tolist()
    rows = [int(shape.split("x")[0]) for shape in modules["weight_shape"]]
    stored = sum(4 * p + r * 2 * 8 for p, r in zip(params, rows, strict=True))  # 50 is two blocks
    assert found.avg_bits == pytest.approx(stored / sum(params))
    assert found.size_mb == pytest.approx((stored + 32 * (50_000 - sum(params))) / 8e6)
    plain = cost_of(modules, dict.fromkeys(modules["module"], 4), 50_000)
    assert found.bitops_g == plain.bitops_g


def test_a_plan_whose_bits_and_format_disagree_is_refused() -> None:
    for row, match in (
        ({"name": "a", "bits": 8, "weight": "mxfp4"}, "mxfp4 has 4"),
        ({"name": "a", "bits": 4, "weight": "fp4"}, "no number format"),
    ):
        with pytest.raises(UserInputError, match=match):
            Plan.from_json({"modules": [row]})


def test_a_run_in_several_formats_ends_in_a_plan_and_a_report(tmp_path: Path) -> None:
    formats = ("int8", "int4", "mxfp6_e2m3", "mxfp4")
    run = run_analysis(
        AnalyzeSettings(
            model=ModelRequest(name="glyph_resnet"),
            images=16,
            calibration=8,
            formats=formats,
            refine=1,
        ),
        out=tmp_path / "run",
    )
    cells = run.table("sensitivity")
    assert tuple(dict.fromkeys(cells["format"])) == formats
    assert {"uniform-8", "uniform-mxfp4"} <= set(run.table("joint")["plan"])
    plan, _ = plan_again(run, "avg-bits=5", pins={"fc": "mxfp6_e2m3"})
    assert plan.formats["fc"] == "mxfp6_e2m3"
    assert plan.cost is not None
    assert plan.cost["avg_bits"] <= 5
    model = compose(run).models[0]
    assert [label for label, _ in model.columns] == ["8", "4", "mxfp6_e2m3", "mxfp4"]
    assert next(r for r in model.rows if r.name == "fc").label == "mxfp6_e2m3"
    assert any(p.name == "mxfp4 everywhere" for p in model.plans)
    page = next(path for path in write_report(run, pdf=True) if path.suffix == ".html")
    assert "mxfp6_e2m3 bits" not in page.read_text(encoding="utf-8")
