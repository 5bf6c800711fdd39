"""plan.json, cost, prediction and budgets; every wrong input gets its sentence."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_tables import modules_table, sensitivity_table

from vitsense.errors import (
    InputMissingError,
    MeasurementError,
    SchemaVersionError,
    SiteMismatchError,
    UserInputError,
)
from vitsense.plan.budget import Budget
from vitsense.plan.cost import cost_of
from vitsense.plan.make import make_plan, tie_groups
from vitsense.plan.plan import ModulePlan, Plan
from vitsense.plan.predict import DropModel, fit_drop_model, through
from vitsense.plan.solve import make_problem, solve
from vitsense.settings import ALLOWED_BITS

NAMES = st.text(min_size=1, max_size=12)


@given(
    st.lists(
        st.builds(
            ModulePlan,
            name=NAMES,
            bits=st.sampled_from(ALLOWED_BITS),
            role=NAMES,
            weight=st.none() | st.just("int4"),
            pinned=st.booleans(),
            reason=NAMES,
        ).map(lambda m: replace(m, weight=m.weight and f"int{m.bits}")),
        min_size=1,
        max_size=5,
        unique_by=lambda m: m.name,
    ),
    st.floats(0, 100),
)
def test_json_round_trip_is_identity(modules: list[ModulePlan], drop: float) -> None:
    plan = Plan(modules=tuple(modules), budget="avg-bits=4", predicted={"drop": drop})
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert again.to_json() == plan.to_json()


def test_a_plan_written_by_hand_needs_names_and_bits_only(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"schema": "vitsense.plan/1", "modules": [{"name": "head", "bits": 8}]}')
    assert Plan.load(path).bits == {"head": 8}


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("{", UserInputError, "not valid JSON"),
        ("[]", UserInputError, "has the schema None"),
        ('{"schema": "other/1"}', UserInputError, "has the schema 'other/1'"),
        ('{"schema": "vitsense.plan/2", "modules": []}', SchemaVersionError, "update vitsense"),
        ('{"schema": "vitsense.plan/1"}', UserInputError, "'modules' must be a list"),
        ('{"schema": "vitsense.plan/1", "modules": [3]}', UserInputError, r"modules\[0\] is 3"),
        (
            '{"schema": "vitsense.plan/1", "modules": [{"bits": 8}]}',
            UserInputError,
            r"modules\[0\]: name is null",
        ),
        (
            '{"schema": "vitsense.plan/1", "modules": [{"name": "a", "bits": 99}]}',
            UserInputError,
            r"modules\[0\] \(a\): bits is 99; allowed are 2, 3",
        ),
        (
            '{"schema": "vitsense.plan/1", "modules": [{"name": "a", "bits": true}]}',
            UserInputError,
            "bits is true",
        ),
        (
            '{"schema": "vitsense.plan/1", "modules": [{"name": "a", "bits": 8}, '
            '{"name": "a", "bits": 4}]}',
            UserInputError,
            "names the module 'a' twice",
        ),
    ],
)
def test_a_wrong_plan_is_refused_with_its_place(
    tmp_path: Path, text: str, error: type, words: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(error, match=words):
        Plan.load(path)


def test_a_missing_plan_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="no file"):
        Plan.load(tmp_path / "plan.json")


def test_a_plan_of_another_model_is_refused() -> None:
    plan = Plan(modules=(ModulePlan(name="blocks.0.mlp.fc1", bits=4),))
    with pytest.raises(SiteMismatchError, match="Near names: blocks.0.mlp.fc2"):
        plan.check_against(["blocks.0.mlp.fc2", "head"])
    other = Plan(modules=(ModulePlan(name="head", bits=4),), model={"weights_digest": "aa"})
    other.check_against(["head"], weights_digest="aa")
    with pytest.raises(SiteMismatchError, match="digest aa"):
        other.check_against(["head"], weights_digest="bb")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "avg-bits",
        "avg-bits=x",
        "bits=4",
        "avg-bits=-1",
        "avg-bits=nan",
        "size-mb=inf",
        "avg-bits=0",
    ],
)
def test_a_wrong_budget_is_refused(text: str) -> None:
    with pytest.raises(UserInputError, match="budget"):
        Budget.parse(text)


def test_budget_text_round_trips() -> None:
    for text in ("avg-bits=4", "size-mb=14.5", "bitops-g=20", "max-drop=1"):
        assert Budget.parse(text).text == text


def test_cost_by_hand() -> None:
    modules = pd.DataFrame(
        {
            "module": ["a", "b", "p"],
            "params": [100, 300, 0],
            "macs": [1000, 2000, 500],
            "weight_shape": ["10x10", "30x10", ""],
        }
    )
    cost = cost_of(modules, {"a": 8, "b": 4, "p": 4}, total_params=450)
    assert cost.avg_bits == pytest.approx((800 + 1200) / 400)
    # 400 weights at 8 and 4 bits, 40 scales and 50 other parameters at 32 bits
    assert cost.size_mb == pytest.approx((800 + 1200 + 32 * (40 + 50)) / 8e6)
    assert cost.bitops_g == pytest.approx((1000 * 64 + 2000 * 16 + 500 * 16) / 1e9)
    float_cost = cost_of(modules, {}, total_params=450)
    assert float_cost.size_mb == pytest.approx(450 * 32 / 8e6)


def test_the_curve_recovers_what_made_the_data() -> None:
    sums = np.array([0.01, 0.05, 0.2, 1.0])
    truth = 80 * (1 - np.exp(-30 * sums**1.3 / 80))
    joint = pd.DataFrame(
        {
            "kl": sums,
            "drop": truth,
            "drop_low": truth * 0.99,
            "drop_high": truth * 1.01,
        }
    )
    modules = modules_table()
    none = sensitivity_table(modules).iloc[:0]
    curve = fit_drop_model(none, joint, sums, ceiling=80.0)
    assert curve.basis == "plans"
    assert curve.exponent == pytest.approx(1.3, abs=1e-6)
    assert np.exp(curve.log_c) == pytest.approx(30, rel=1e-6)
    for kl, drop in zip(sums, truth, strict=True):
        found = curve.predict(kl)
        assert found.drop == pytest.approx(drop, rel=1e-6)
        assert found.low < found.drop < found.high
        assert curve.kl_at(found.drop) == pytest.approx(kl, rel=1e-6)
    assert curve.predict(0).drop == 0
    assert curve.predict(1e9).drop <= 80


def _measured_plans(together: Any, loss: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {"kl": together, "drop": loss, "drop_low": loss - 1.0, "drop_high": loss + 1.0}
    )


def test_errors_that_reinforce_each_other_are_learned_from_measured_plans() -> None:
    sums = np.array([0.01, 0.1, 0.5, 1.0])
    together = sums * (1 + 3 * sums)
    plans = _measured_plans(together, 60 * (1 - np.exp(-together)))
    none = sensitivity_table(modules_table()).iloc[:0]
    curve = fit_drop_model(none, plans, sums, ceiling=60.0)
    for kl, joint, loss in zip(sums, together, plans["drop"], strict=True):
        assert np.exp(through(curve.knots, np.log(kl))) == pytest.approx(joint, rel=1e-6)
        assert curve.predict(kl).drop == pytest.approx(loss, rel=0.05)
        assert curve.kl_at(curve.predict(kl).drop) == pytest.approx(kl, rel=1e-6)
    # between plans near the truth, and covered; beyond them with the nearest plan's ratio
    found = curve.predict(0.25)
    assert found.low < 60 * (1 - np.exp(-0.25 * 1.75)) < found.high
    assert np.exp(through(curve.knots, np.log(0.001))) == pytest.approx(0.00103, rel=1e-6)


def test_one_plan_that_broke_is_not_overlooked() -> None:
    """At four bits everything together lost 64 points where the modules alone lose next to none."""
    cells = sensitivity_table(modules_table())
    cells[["drop", "drop_low", "drop_high"]] = [0.4, -2.0, 2.8]
    plans = _measured_plans(np.array([0.007, 3.5, 5.4]), np.array([0.0, 64.0, 82.7]))
    sums = np.array([0.0075, 0.77, 1.83])
    curve = fit_drop_model(cells, plans, sums, ceiling=82.7)
    found = curve.predict(0.64)
    assert found.low < 65 < found.high
    assert found.drop > 40


def test_plans_in_the_wrong_order_still_give_a_rising_curve() -> None:
    sums = np.array([0.1, 0.2, 0.2, 0.4])
    plans = _measured_plans(np.array([0.3, 0.2, 0.5, 0.4]), np.array([9.0, 6.0, 15.0, 12.0]))
    none = sensitivity_table(modules_table()).iloc[:0]
    curve = fit_drop_model(none, plans, sums, ceiling=80.0)
    drops = [curve.predict(kl).drop for kl in np.geomspace(0.01, 4, 50)]
    assert drops == sorted(drops)
    assert curve.joint_scatter > 0.2
    assert DropModel(**json.loads(json.dumps(asdict(curve)))) == curve


def test_without_plans_the_curve_comes_from_modules() -> None:
    modules = modules_table()
    cells = sensitivity_table(modules)
    curve = fit_drop_model(cells, cells.iloc[:0], np.array([]), ceiling=80.0)
    assert curve.basis == "modules"
    assert curve.exponent == 1.0
    assert curve.predict(0.5).drop > curve.predict(0.1).drop > 0


def test_without_any_loss_the_curve_is_said_to_be_unknown() -> None:
    modules = modules_table()
    cells = sensitivity_table(modules)
    cells[["drop", "drop_low", "drop_high"]] = [0.0, -0.5, 0.5]
    curve = fit_drop_model(cells, cells.iloc[:0], np.array([]), ceiling=80.0)
    assert curve.points == 0
    found = curve.predict(0.1)
    assert found.high > 3 * found.drop


def test_unlabelled_runs_predict_the_loss_of_agreement() -> None:
    modules = modules_table()
    cells = sensitivity_table(modules, labelled=False)
    assert cells["drop"].isna().all()
    curve = fit_drop_model(cells, cells.iloc[:0], np.array([]), ceiling=100.0)
    assert curve.points > 0


def test_unmeasured_modules_are_refused() -> None:
    modules = modules_table()
    cells = sensitivity_table(modules)
    with pytest.raises(MeasurementError, match="first 'block.3'"):
        make_problem(modules, cells[cells["module"] != "block.3"], 10_000)


def test_unknown_pins_are_refused() -> None:
    modules = modules_table()
    cells = sensitivity_table(modules)
    with pytest.raises(SiteMismatchError, match="'nothere'"):
        make_problem(modules, cells, 10_000, pins={"nothere": 8})
    with pytest.raises(UserInputError, match="measured are 2, 3, 4, 8"):
        make_problem(modules, cells, 10_000, pins={"block.1": 6})


def test_first_and_last_weights_are_pinned_by_default() -> None:
    modules = modules_table()
    problem = make_problem(modules, sensitivity_table(modules), 10_000)
    assert problem.pins == {"block.0": "int8", "block.5": "int8"}


def test_divergence_never_rises_with_bits() -> None:
    modules = modules_table()
    cells = sensitivity_table(modules)
    noisy = cells.copy()
    swap = (noisy["bits"] == 8) & (noisy["module"] == "block.1")
    noisy.loc[swap, "kl"] = 10.0  # noise made the widest look worst
    problem = make_problem(modules, noisy, 10_000)
    widths = problem.divergence["block.1"]
    assert [widths[f"int{b}"] for b in (2, 3, 4, 8)] == sorted(widths.values(), reverse=True)


def test_every_module_of_a_plan_has_a_reason() -> None:
    modules = modules_table()
    problem = make_problem(modules, sensitivity_table(modules), 10_000)
    curve = fit_drop_model(
        sensitivity_table(modules), sensitivity_table(modules).iloc[:0], np.array([]), 80.0
    )
    budget = Budget.parse("avg-bits=7")
    plan = make_plan(
        problem,
        solve(problem, budget, curve),
        budget,
        model={"key": "m"},
        quantization={},
        provenance={},
    )
    assert all(str(m.bits) in m.reason for m in plan.modules)
    assert plan.modules[2].weight is None  # a product
    assert plan.modules[2].activation == f"uint{plan.modules[2].bits}"


def test_tie_groups() -> None:
    modules = pd.DataFrame(
        {
            "module": ["a.qkv.q", "a.qkv.k", "a.qkv.v", "b.fc"],
            "role": ["q", "k", "v", "ffn"],
            "block": ["a", "a", "a", "b"],
        }
    )
    assert tie_groups(modules, "qkv") == [["a.qkv.q", "a.qkv.k", "a.qkv.v"]]
    assert tie_groups(modules, "block") == [["a.qkv.q", "a.qkv.k", "a.qkv.v"]]


def test_a_large_classifier_is_unpinned_where_8_bits_for_it_leave_too_little() -> None:
    """Half of a small model may be its classifier: the rest at 2 bits would destroy it."""
    from vitsense.analyze_plans import recommend

    modules = modules_table(6)
    modules.loc[5, "params"] = 4 * int(modules["params"].iloc[:5].sum())
    problem = make_problem(modules, sensitivity_table(modules), 10**6)
    curve = DropModel(ceiling=90, log_c=3.0, exponent=1.0, scatter=0.2, points=5, basis="plans")
    budget = Budget.parse("avg-bits=4")
    with pytest.raises(UserInputError, match="cannot be met"):
        solve(problem, budget, curve)
    solved, plan, note = recommend(problem, budget, curve)
    assert solved.pins == {}
    assert plan.cost.avg_bits <= 4 + 1e-6
    assert "first and the last weights" in note

    hopeless = Budget.parse("avg-bits=1.5")
    solved, plan, note = recommend(problem, hopeless, curve)
    assert solved is problem
    assert "narrowest" in note
    assert recommend(problem, Budget.parse("avg-bits=7.9"), curve)[2] == ""


def test_a_plan_with_a_part_in_full_precision_is_read_as_it_was_written(tmp_path: Path) -> None:
    modules = (
        ModulePlan(name="a", bits=4, activation="float"),
        ModulePlan(name="b", bits=8, weight="float", activation="uint8"),
        ModulePlan(name="c", bits=3, weight="float", activation="float"),
    )
    plan = Plan(modules=modules)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.formats == {"a": "int4", "b": "int8", "c": "int3"}
