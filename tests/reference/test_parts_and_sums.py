"""Weights or activations alone through a whole run; sums over modules against whole plans."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from plan_tables import modules_table, sensitivity_table

from vitsense.analyze import run_analysis
from vitsense.formats import FLOAT_FORMATS
from vitsense.plan.additivity import RANDOM_PLANS, additivity_rows, random_plans
from vitsense.plan.again import plan_again
from vitsense.plan.cost import cost_of
from vitsense.plan.solve import make_problem
from vitsense.report import compose
from vitsense.settings import AnalyzeSettings, By, Direction, ModelRequest, Part, SweepMode


def test_weights_alone_are_planned_measured_and_reported(tmp_path: Path) -> None:
    first, other = Part.WEIGHTS, Part.ACTIVATIONS
    run = run_analysis(
        AnalyzeSettings(
            model=ModelRequest(name="glyph_swin"),
            images=8,
            calibration=8,
            bits=(8, 4),
            parts=(first, other),
            by=(By.STAGE,),
            mode=SweepMode.EXACT,
            refine=0,
        ),
        out=tmp_path / "run",
    )
    modules, cells = run.table("modules"), run.table("sensitivity")
    products = set(modules.loc[modules["params"] == 0, "module"])
    left_out = set(cells.loc[cells["status"] == "unmeasured", "module"])
    assert left_out == products
    assert set(cells.loc[cells["status"] == "unmeasured", "part"]) == {"weights"}
    # two ways to the same number: whole plans by full passes, groups by replay
    groups, joint = run.table("groups"), run.table("joint").set_index("plan")
    whole = groups[(groups["by"] == "model") & (groups["format"] == "int4")].set_index("part")
    assert set(whole.index) == {"weights", "activations"}
    assert whole.loc[first.value, "kl"] == joint.loc["uniform-4", "kl"]
    assert whole.loc[other.value, "kl"] != joint.loc["uniform-4", "kl"]
    spared = groups[groups["direction"] == "leave-one-out"]
    assert spared["recovery_kl"].notna().all()
    assert set(spared["by"]) == {"stage"}
    plan, _ = plan_again(run, "avg-bits=5")
    assert set(plan.bits) == set(modules["module"]) - products
    assert plan.quantization["part"] == first.value
    model = compose(run).models[0]
    titles = [t.title for s in model.chapters if s.key == "groups" for t in s.blocks[1:]]
    assert "By stage at 4 bits, weights only" in titles
    assert "By stage at 4 bits, activations only" in titles


def test_bit_operations_of_one_part_have_a_float_operand() -> None:
    modules = modules_table(4, products=1)
    bits = dict.fromkeys(modules["module"], 4)
    both, weights, activations = (cost_of(modules, bits, 20_000, part) for part in Part)
    macs = float(modules["macs"].sum())
    assert both.bitops_g == pytest.approx(16 * macs / 1e9)
    assert weights.bitops_g == activations.bitops_g == pytest.approx(4 * 32 * macs / 1e9)
    assert weights.size_mb == both.size_mb
    assert activations.size_mb == 32 * 20_000 / 8e6


def test_a_weight_with_one_scale_is_stored_with_one() -> None:
    modules = modules_table(4, products=1)
    bits = dict.fromkeys(modules["module"], 4)
    channels, one = (cost_of(modules, bits, 20_000, per_tensor=p) for p in (False, True))
    rows = [int(s.split("x")[0]) for s in modules["weight_shape"] if s]
    assert channels.size_mb - one.size_mb == pytest.approx(32 * (sum(rows) - len(rows)) / 8e6)


def test_sums_are_those_of_the_table_and_the_ratio_takes_the_farthest_ends() -> None:
    modules = modules_table(4, products=1)
    cells = sensitivity_table(modules, bits=(8, 4))
    names = list(modules["module"])
    plans = {
        "uniform-4": dict.fromkeys(names, 4),
        "mixed": dict(zip(names, ("int8", 4, "int4", 8), strict=True)),
    }
    joint = pd.concat([cells.iloc[:2]], ignore_index=True).assign(
        plan=list(plans), avg_bits=[4.0, 6.0]
    )
    found = {row["plan"]: row for row in additivity_rows(cells, joint, plans)}
    at = cells.set_index(["module", "bits"])
    for plan, widths in (("uniform-4", (4, 4, 4, 4)), ("mixed", (8, 4, 4, 8))):
        own = [at.loc[(name, width)] for name, width in zip(names, widths, strict=True)]
        row = found[plan]
        for column in ("kl", "kl_low", "kl_high"):
            assert row[f"sum_{column}"] == pytest.approx(sum(float(o[column]) for o in own))
        assert row["sum_loss"] == pytest.approx(sum(float(o["drop"]) for o in own))
        assert row["ratio"] == pytest.approx(row["kl"] / row["sum_kl"])
        assert row["ratio_low"] == pytest.approx(row["kl_low"] / row["sum_kl_high"])
        assert row["ratio_high"] == pytest.approx(row["kl_high"] / row["sum_kl_low"])
        assert row["ratio_low"] < row["ratio"] < row["ratio_high"]


def test_random_plans_are_drawn_from_what_was_measured_and_follow_the_seed() -> None:
    modules = modules_table(30)
    problem = make_problem(modules, sensitivity_table(modules), 50_000, pins={})
    plans = random_plans(problem, 3)
    assert len(plans) == RANDOM_PLANS
    assert plans == random_plans(problem, 3) != random_plans(problem, 4)
    seen = {form for plan in plans.values() for form in plan.values()}
    assert seen == set(problem.divergence["block.0"])
    assert all(set(plan) == set(modules["module"]) for plan in plans.values())


def test_the_settings_say_which_groups_and_formats_are_measured() -> None:
    def given(**more) -> AnalyzeSettings:
        return AnalyzeSettings(model=ModelRequest(name="vit"), **more)

    assert given().groupings == (By.ROLE,)
    assert given(by=()).groupings == ()
    assert given().group_format_names == ("int4", "int3")
    assert given(bits=(8, 6)).group_format_names == ()
    assert given(formats=("int8", "mxfp4", "int4")).group_format_names == ("int4", "mxfp4")
    assert given(group_formats=("fp8_e4m3",)).group_format_names == ("fp8_e4m3",)
    assert given().directions == (Direction.ALONE, Direction.SPARED)
    assert given(formats=tuple(FLOAT_FORMATS)).widths == ()
    assert given(parts=(Part.WEIGHTS, Part.BOTH)).planned_part is Part.BOTH
    assert given(parts=(Part.WEIGHTS, Part.ACTIVATIONS)).planned_part is Part.WEIGHTS
