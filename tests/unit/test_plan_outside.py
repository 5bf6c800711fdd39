"""Bits from other tools, and plans under a budget of latency."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from plan_tables import modules_table, sensitivity_table

from vitsense.errors import InputMissingError, SiteMismatchError, UserInputError
from vitsense.plan.budget import Budget, BudgetKind
from vitsense.plan.latency import PROFILE_SCHEMA, LatencyProfile
from vitsense.plan.outside import import_plan
from vitsense.plan.plan import Plan
from vitsense.plan.predict import DropModel
from vitsense.plan.solve import make_problem, solve, summed_divergence
from vitsense.runfolder import RunFolder
from vitsense.schemas import SCHEMAS

MODULES = ("stem", "b.qkv.q", "b.qkv.k", "b.qkv.v", "b.qk_product", "head")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with a table of modules and nothing else."""
    run = RunFolder(tmp_path)
    run.write_run({"models": [{"key": "m", "name": "m", "params": 700, "weights_digest": "d"}]})
    rows = [
        {
            "model": "m",
            "module": name,
            "index": i,
            "kind": "linear",
            "role": "",
            "block": "",
            "stage": "",
            "depth": 0.0,
            "heads": None,
            "params": 0 if "product" in name else 100,
            "macs": 1000,
            "weight_shape": "" if "product" in name else "10x10",
            "sites": "",
        }
        for i, name in enumerate(MODULES)
    ]
    frame = pd.DataFrame(rows)
    for column in SCHEMAS["modules"]:
        if column not in frame:
            frame[column] = None
    run.write_table("modules", frame)
    return run


def _file(run: RunFolder, value: Any) -> Path:
    path = run.path / "given.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_modelopt_rows_are_applied_in_order(run: RunFolder) -> None:
    rows = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*_quantizer", "cfg": {"num_bits": 8, "axis": None}},
        {"quantizer_name": "*qkv.weight_quantizer", "cfg": {"num_bits": 4, "axis": 0}},
        {"quantizer_name": "head*", "enable": False},
        {"quantizer_name": "*", "parent_class": "nn.BatchNorm2d", "enable": False},
    ]
    plan, path = import_plan(run, _file(run, {"quant_cfg": rows}), "modelopt")
    assert {m.name: (m.weight, m.activation) for m in plan.modules} == {
        "stem": ("int8", "uint8"),
        "b.qkv.q": ("int4", "uint8"),
        "b.qkv.k": ("int4", "uint8"),
        "b.qkv.v": ("int4", "uint8"),
    }
    assert plan.cost is not None
    assert plan.cost["avg_bits"] == pytest.approx((8 + 3 * 4) / 4)
    assert Plan.load(path).bits == plan.bits
    older = {"*weight_quantizer": {"num_bits": 8}, "stem.weight_quantizer": {"enable": False}}
    plan, _ = import_plan(run, _file(run, {"quant_cfg": older}), "modelopt")
    assert "stem" not in plan.bits
    assert plan.quantization == {"part": "weights"}


def test_aimet_encodings_become_bits(run: RunFolder) -> None:
    given = {
        "param_encodings": {
            "b.qkv.weight": [{"bitwidth": 4}] * 30,
            "head.weight": [{"bitwidth": 8}],
        },
        "activation_encodings": {
            "b.qkv": {"input": {"0": {"bitwidth": 6}}},
            "head": {"input": {"0": {"bitwidth": 8}}},
        },
    }
    plan, _ = import_plan(run, _file(run, given), "aimet")
    assert {m.name: (m.weight, m.activation) for m in plan.modules} == {
        **{f"b.qkv.{part}": ("int4", "uint6") for part in "qkv"},
        "head": ("int8", "uint8"),
    }


def test_a_table_of_bits_names_products_too(run: RunFolder) -> None:
    plan, _ = import_plan(run, _file(run, "module,bits\nstem,8\nb.qk_product,6\n"), "csv")
    assert plan.bits == {"stem": 8, "b.qk_product": 6}


@pytest.mark.parametrize(
    ("tool", "given", "error", "match"),
    [
        ("modelopt", {"quantizers": []}, UserInputError, "no quant_cfg"),
        ("modelopt", "{", UserInputError, "take that with --from csv"),
        (
            "modelopt",
            {"quant_cfg": {"*weight_quantizer": {"num_bits": [4, 3]}}},
            UserInputError,
            "only whole numbers",
        ),
        (
            "modelopt",
            {"quant_cfg": {"*weight_quantizer": {"num_bits": 9}}},
            UserInputError,
            "9 bits",
        ),
        ("modelopt", {"quant_cfg": {}}, UserInputError, "quantizes no layer"),
        (
            "modelopt",
            {
                "quant_cfg": {
                    "*weight_quantizer": {"num_bits": 8},
                    "stem.input_quantizer": {"num_bits": 8},
                }
            },
            UserInputError,
            "b.qkv.q has a quantized weight and an input in float",
        ),
        ("aimet", {"a": 1}, UserInputError, "no param_encodings"),
        (
            "aimet",
            {"param_encodings": {"x.weight": [{"bitwidth": 8}]}},
            SiteMismatchError,
            "another",
        ),
        ("csv", "name,width\n", UserInputError, "columns module and bits"),
        ("csv", "module,bits\nnobody,8\n", SiteMismatchError, "line 2: .*nobody"),
        ("csv", "module,bits\nstem,many\n", UserInputError, "line 2: bits is 'many'"),
    ],
)
def test_wrong_files_are_said(
    run: RunFolder, tool: str, given: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        import_plan(run, _file(run, given), tool)


def test_a_missing_file_and_an_unknown_model_are_said(run: RunFolder) -> None:
    with pytest.raises(InputMissingError, match="no file"):
        import_plan(run, run.path / "none", "csv")
    with pytest.raises(SiteMismatchError, match="has no model 'x'; it has m"):
        import_plan(run, run.path / "none", "csv", model="x")


def _profile(tmp_path: Path, **values: Any) -> LatencyProfile:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"schema": PROFILE_SCHEMA, "name": "chip", **values}))
    return LatencyProfile.load(path)


def test_the_roofline_is_the_slower_of_computing_and_reading(tmp_path: Path) -> None:
    profile = _profile(tmp_path, tera_macs={"8": 1.0, "4": 2.0}, bandwidth_gb=1.0, overhead_us=10.0)
    assert profile.is_estimate
    # 10^9 multiply-accumulates at 10^12 a second are 1 ms; 1,000 bytes at 10^9 a second 0.001 ms
    assert profile.milliseconds("a", 1000, 10**9, 8) == pytest.approx(1.01)
    assert profile.milliseconds("a", 1000, 10**9, 4) == pytest.approx(0.51)
    assert profile.milliseconds("a", 1000, 10**9, 6) == pytest.approx(1.01)  # the next wider
    assert profile.milliseconds("a", 10**7, 1, 4) == pytest.approx(5.01)
    with pytest.raises(UserInputError, match="says nothing about a in int16"):
        profile.milliseconds("a", 1, 1, 16)


def test_a_plan_under_a_latency_budget_is_the_best_of_all(tmp_path: Path) -> None:
    """Against every combination of widths."""
    modules = modules_table(n=4, products=1)
    sensitivity = sensitivity_table(modules, bits=(8, 4, 3))
    profile = _profile(tmp_path, tera_macs={"8": 1e-3, "4": 2e-3}, bandwidth_gb=1e-3)
    problem = replace(make_problem(modules, sensitivity, 10**6, pins={}), profile=profile)
    curve = DropModel(ceiling=90, log_c=0.0, exponent=1.0, scatter=0.2, points=3, basis="plans")
    rows = modules[["module", "params", "macs"]].to_dict("records")

    def time_of(choice: tuple[str, ...]) -> float:
        pairs = zip(rows, choice, strict=True)
        return sum(profile.milliseconds(r["module"], r["params"], r["macs"], w) for r, w in pairs)

    every = list(product(("int8", "int4", "int3"), repeat=len(rows)))
    times = sorted(time_of(choice) for choice in every)
    limit = times[len(times) // 2]
    names = [r["module"] for r in rows]
    best = min(
        sum(problem.divergence[n][w] for n, w in zip(names, choice, strict=True))
        for choice in every
        if time_of(choice) <= limit
    )
    found = solve(problem, Budget(BudgetKind.LATENCY_MS, limit), curve)
    assert time_of(tuple(found.formats[n] for n in names)) <= limit + 1e-6
    assert summed_divergence(problem, found.formats) == pytest.approx(best)
    with pytest.raises(UserInputError, match=f"least possible is latency-ms={times[0]:.4g}"):
        solve(problem, Budget(BudgetKind.LATENCY_MS, times[0] * 0.9), curve)
    with pytest.raises(UserInputError, match="--profile FILE"):
        solve(replace(problem, profile=None), Budget(BudgetKind.LATENCY_MS, limit), curve)


def test_the_rest_of_the_model_counts_in_the_limit(tmp_path: Path) -> None:
    modules = modules_table(n=2, products=0)
    sensitivity = sensitivity_table(modules, bits=(8, 4))
    times = {name: {"int8": 2.0, "int4": 1.0} for name in modules["module"]}
    profile = _profile(tmp_path, measured=times, rest_ms=10.0)
    problem = replace(make_problem(modules, sensitivity, 10**6, pins={}), profile=profile)
    curve = DropModel(ceiling=90, log_c=0.0, exponent=1.0, scatter=0.2, points=3, basis="plans")
    for limit, expected in ((14.0, [8, 8]), (13.0, [4, 8]), (12.0, [4, 4])):
        found = solve(problem, Budget(BudgetKind.LATENCY_MS, limit), curve)
        assert sorted(found.bits.values()) == expected
        assert profile.total(modules.to_dict("records"), found.formats) == limit
    with pytest.raises(UserInputError, match="least possible is latency-ms=12"):
        solve(problem, Budget(BudgetKind.LATENCY_MS, 11.0), curve)


def test_a_profile_of_another_model_says_what_is_missing_and_what_to_do(tmp_path: Path) -> None:
    modules = modules_table(n=3, products=0)
    sensitivity = sensitivity_table(modules, bits=(8, 4))
    other = {"stem": {"int8": 1.0, "int4": 1.0}, "block.0": {"int8": 1.0, "int4": 1.0}}
    profile = _profile(tmp_path, measured=other, model={"key": "resnet50"})
    problem = replace(make_problem(modules, sensitivity, 10**6, pins={}), profile=profile)
    curve = DropModel(ceiling=90, log_c=0.0, exponent=1.0, scatter=0.2, points=3, basis="plans")
    match = r"measured for resnet50\) says nothing about block.1 in int4 and 3 others: measure them"
    with pytest.raises(UserInputError, match=match):
        solve(problem, Budget(BudgetKind.LATENCY_MS, 9.0), curve)


def test_what_was_measured_comes_first(tmp_path: Path) -> None:
    profile = _profile(tmp_path, measured={"a": {"int8": 3.5}})
    assert not profile.is_estimate
    assert profile.milliseconds("a", 1, 1, 8) == 3.5


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({}, "positive number"),
        ({"tera_macs": {"8": 1}}, "needs bandwidth_gb"),
        ({"tera_macs": {"8": -1}, "bandwidth_gb": 1}, "positive number"),
        ({"tera_macs": {"eight": 1}}, "no latency profile"),
        ({"measured": [1]}, "no latency profile"),
        ({"measured": {"a": {"int8": 1}}, "rest_ms": -1}, "must not be negative"),
        ({"shapes": {}, "status": "running"}, "is not finished"),
    ],
)
def test_wrong_profiles_are_said(tmp_path: Path, values: dict[str, Any], match: str) -> None:
    with pytest.raises(UserInputError, match=match):
        _profile(tmp_path, **values)
