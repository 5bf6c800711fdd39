"""The solver against enumeration of every choice."""

from __future__ import annotations

import itertools

import pytest
from plan_tables import BITS, modules_table, sensitivity_table

from vitsense.errors import UserInputError
from vitsense.plan.budget import Budget
from vitsense.plan.cost import cost_of
from vitsense.plan.predict import DropModel
from vitsense.plan.solve import make_problem, narrowest, pareto, solve, summed_divergence, uniform

CURVE = DropModel(ceiling=80.0, log_c=3.0, exponent=1.0, scatter=0.2, points=4, basis="plans")
TOTAL = 50_000


def problem(seed: int, n: int = 5, products: int = 1, **kwargs):
    modules = modules_table(n, products=products, seed=seed)
    return make_problem(modules, sensitivity_table(modules, seed=seed), TOTAL, pins={}, **kwargs)


def product_bits(given, bits) -> float:
    rows = given.modules[given.modules["params"] == 0]
    total = float(rows["macs"].sum())
    return sum(bits[r["module"]] * r["macs"] for r in rows.to_dict("records")) / max(total, 1.0)


def fits(given, budget: Budget, bits) -> bool:
    cost = cost_of(given.modules, bits, TOTAL)
    if budget.kind.value == "avg-bits":
        return cost.avg_bits <= budget.value + 1e-9 and product_bits(given, bits) <= (
            budget.value + 1e-9
        )
    return {
        "size-mb": cost.size_mb,
        "bitops-g": cost.bitops_g,
        "max-drop": CURVE.predict(summed_divergence(given, bits)).drop,
    }[budget.kind.value] <= budget.value * (1 + 1e-9)


def enumerated(given, budget: Budget):
    names = list(given.modules["module"])
    for widths in itertools.product(BITS, repeat=len(names)):
        bits = dict(zip(names, widths, strict=True))
        if fits(given, budget, bits):
            yield bits


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("text", ["avg-bits=3.4", "avg-bits=5", "size-mb=0.163", "bitops-g=0.001"])
def test_least_divergence_within_the_budget(seed: int, text: str) -> None:
    given, budget = problem(seed), Budget.parse(text)
    choices = [summed_divergence(given, bits) for bits in enumerated(given, budget)]
    if not choices:
        with pytest.raises(UserInputError, match="least possible"):
            solve(given, budget, CURVE)
        return
    found = solve(given, budget, CURVE)
    assert fits(given, budget, found.bits)
    assert found.prediction.kl == pytest.approx(min(choices), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [0.5, 3.0])
def test_least_bits_within_a_drop(seed: int, limit: float) -> None:
    given, budget = problem(seed), Budget.parse(f"max-drop={limit}")

    def width(bits) -> float:
        return cost_of(given.modules, bits, TOTAL).avg_bits + product_bits(given, bits)

    found = solve(given, budget, CURVE)
    assert fits(given, budget, found.bits)
    assert width(found.bits) == pytest.approx(
        min(width(bits) for bits in enumerated(given, budget)), rel=1e-9
    )


def test_pins_and_ties_are_kept() -> None:
    given = problem(1, n=6, products=0, ties=[["block.1", "block.2"], ["block.3", "block.4"]])
    pinned = make_problem(
        given.modules,
        sensitivity_table(given.modules, seed=1),
        TOTAL,
        pins={"block.0": 8},
        ties=given.ties,
    )
    bits = solve(pinned, Budget.parse("avg-bits=4"), CURVE).bits
    assert bits["block.0"] == 8
    assert bits["block.1"] == bits["block.2"]
    assert bits["block.3"] == bits["block.4"]


def test_the_front_gets_better_with_size_and_is_never_dominated() -> None:
    front = pareto(problem(2, n=8), CURVE)
    assert len(front) > 4
    bits = [point.cost.avg_bits for point in front]
    kl = [point.prediction.kl for point in front]
    assert bits == sorted(bits)
    assert kl == sorted(kl, reverse=True)


def test_a_front_point_is_what_the_solver_gives_for_its_bits() -> None:
    given = problem(3, n=8)
    point = pareto(given, CURVE)[5]
    again = solve(given, Budget.parse(f"avg-bits={point.cost.avg_bits + 1e-6}"), CURVE)
    assert again.prediction.kl <= point.prediction.kl * (1 + 1e-9)


def test_nothing_is_printed_by_the_solver(capfd: pytest.CaptureFixture[str]) -> None:
    solve(problem(0), Budget.parse("avg-bits=4"), CURVE)
    assert capfd.readouterr().out == ""


def test_narrowest_and_uniform() -> None:
    given = problem(0)
    assert set(narrowest(given, CURVE).bits.values()) == {2}
    assert set(uniform(given, 4).values()) == {4}
