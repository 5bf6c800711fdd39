"""The first screen's sentences follow the numbers of the measured plans."""

from __future__ import annotations

import pandas as pd
import pytest

from vitsense.plan.plan import ModulePlan, Plan
from vitsense.report.compose_verdict import headline_of, sentences_of, widest_of
from vitsense.schemas import SCHEMAS

NOTHING = pd.DataFrame(columns=list(SCHEMAS["sensitivity"]))


def joint_of(**plans: tuple[float, float, float, float]) -> pd.DataFrame:
    """Plans by name: bits on average, points lost, and the ends of its interval."""
    rows = [
        dict.fromkeys(SCHEMAS["joint"], 0.0)
        | {"plan": name.replace("_", "-"), "avg_bits": bits, "size_mb": bits / 10}
        | {"drop": drop, "drop_low": low, "drop_high": high, "kl": 0.1}
        for name, (bits, drop, low, high) in plans.items()
    ]
    return pd.DataFrame(rows)


BREAKS = (4.0, 60.0, 50.0, 70.0)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ((4.0, 0.2, -0.3, 0.7), "The recommended plan holds at 4.0 bits"),
        ((4.0, 0.8, -0.1, 1.7), "The recommended plan may or may not hold"),
        (BREAKS, "No plan that was found holds at 4.0 bits on average (0.40 MB): the best one"),
    ],
)
def test_a_plan_that_breaks_is_not_called_recommended(plan, words: str) -> None:
    assert headline_of(joint_of(recommended=plan)).startswith(words)


def test_the_smallest_plan_that_holds_is_named_and_no_random_one() -> None:
    joint = joint_of(
        recommended=BREAKS,
        pareto_6=(6.0, 0.1, -0.4, 0.7),
        pareto_5=(5.0, 0.2, -0.4, 0.8),
        random_1=(4.5, 0.0, -0.1, 0.1),
        uniform_3=(3.0, 0.0, -0.1, 0.1),
        uniform_8=(8.0, 0.0, -0.1, 0.1),
    )
    assert sentences_of(NOTHING, joint) == [
        "The smallest measured plan that holds: 5.0 bits on average, 0.50 MB, 0.2 points lost "
        "(\u22120.4 to 0.8)."
    ]


def test_where_none_is_known_to_hold_the_nearest_says_what_may_be_lost() -> None:
    joint = joint_of(recommended=BREAKS, pareto_5=(5.0, 3.0, 1.0, 7.0), pareto_6=(6, 0.8, -3.5, 5))
    (line,) = sentences_of(NOTHING, joint)
    assert line.startswith("No measured plan is known to hold. The nearest: 6.0 bits")
    assert "up to 5.0 may be lost" in line


@pytest.mark.parametrize("plan", [(4.0, 0.2, -0.3, 0.7), BREAKS])
def test_without_a_need_or_a_wider_plan_nothing_is_said(plan) -> None:
    assert sentences_of(NOTHING, joint_of(recommended=plan, uniform_3=(3, 0, 0, 0))) == []


def plan_of(*bits: int) -> Plan:
    modules = [
        ModulePlan(
            name=f"m{i}", bits=b, weight=f"int{b}", activation=f"uint{b}", pinned=i == 0, reason=""
        )
        for i, b in enumerate(bits)
    ]
    return Plan(model="m", modules=tuple(modules))


def test_modules_that_keep_the_most_bits_are_named() -> None:
    assert widest_of(plan_of(8, 4, 8)) == ["The plan keeps 8 bits for m0 (pinned), m2."]
    (many,) = widest_of(plan_of(*[8] * 11, 4))
    assert many.endswith("m7, and 3 more.")
    assert widest_of(plan_of(4, 4)) == widest_of(None) == []
