"""The first screen's sentences follow the numbers of the measured plans."""

from __future__ import annotations

import pandas as pd
import pytest

from vitsense.plan.plan import ModulePlan, Plan
from vitsense.report.compose_verdict import (
    bits_of_worst,
    headline_of,
    measured_worst,
    sentences_of,
    widest_of,
)
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
        "The smallest measured plan that holds: mixed, about 5 bits, 5.0 bits on average, 0.50 "
        "MB, 0.2 points lost (\u22120.4 to 0.8)."
    ]


def test_where_none_is_known_to_hold_the_nearest_says_what_may_be_lost() -> None:
    joint = joint_of(recommended=BREAKS, pareto_5=(5.0, 3.0, 1.0, 7.0), pareto_6=(6, 0.8, -3.5, 5))
    (line,) = sentences_of(NOTHING, joint)
    assert line.startswith(
        "No measured plan is known to hold. The nearest: mixed, about 6 bits, 6.0 bits"
    )
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


def test_where_every_plan_breaks_nobody_is_told_to_take_more_images() -> None:
    joint = joint_of(recommended=BREAKS, pareto_5=(5.0, 9.0, 7.0, 11.0), uniform_8=(8, 4.0, 2, 6))
    assert sentences_of(NOTHING, joint) == [
        "No measured plan holds. The one that loses least: 8 bits everywhere, 8.0 bits on "
        "average, 0.80 MB, 4.0 points lost (2.0 to 6.0)."
    ]


def test_a_plan_that_holds_though_one_of_less_divergence_may_not_is_said_to_be_lucky() -> None:
    joint = joint_of(
        recommended=BREAKS, pareto_6=(6.0, -2.0, -4.9, 0.9), uniform_8=(8.0, -0.5, -2.4, 1.4)
    )
    joint.loc[joint["plan"] == "uniform-8", "kl"] = 0.01
    (line,) = sentences_of(NOTHING, joint)
    assert line.startswith("The smallest measured plan that holds: mixed, about 6 bits")
    assert "Take this with care: a plan of less divergence cannot be told to hold" in line


def cells(status: str, **kl: float) -> pd.DataFrame:
    rows = [
        {"module": name, "part": "both", "format": "int4", "bits": 4, "status": status, "kl": value}
        for name, value in kl.items()
    ]
    return pd.DataFrame(rows)


def test_the_bits_of_the_most_sensitive_modules_stand_in_their_order() -> None:
    found = cells("measured", m0=0.1, m1=0.3, m2=0.2)
    assert bits_of_worst(plan_of(8, 6, 4), found) == [
        "The first alone causes 50 %. These 3 are the first to keep at more bits; within its "
        "budget the plan gives them, in this order, 6, 4, 8 (pinned) bits."
    ]
    assert bits_of_worst(None, found) == bits_of_worst(plan_of(8, 6), found) == []


def test_a_ranking_by_estimates_says_what_was_measured() -> None:
    found = cells("estimated", m0=0.1, m1=0.3)
    causes = pd.DataFrame([{"module": "m1", "kl_before": 0.0098}])
    (line,) = measured_worst(found, causes)
    assert "Measured alone, for their remedies: m1 0.0098 nats" in line
    (line,) = measured_worst(found, causes.iloc[:0])
    assert line.startswith("The ranking rests on estimates: modules that follow closely")
    assert measured_worst(cells("measured", m0=0.1), causes) == []
    known = pd.concat([cells("measured", m0=0.2), cells("estimated", m1=0.3)])
    (line,) = measured_worst(known, causes)
    assert line.startswith("The ranking rests on estimates but for m0, measured on all images")
