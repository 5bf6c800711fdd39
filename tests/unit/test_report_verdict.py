"""The first screen's sentences follow the numbers of the measured plans."""

from __future__ import annotations

import pandas as pd
import pytest

from vitsense.plan.plan import ModulePlan, Plan
from vitsense.report.compose_deploy import deployed, headline_of, instead, why_mixed
from vitsense.report.compose_verdict import cards_of, measured_worst, sentences_of, worst_of
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
        ((4.0, 0.8, -0.1, 1.7), "The best plan within the budget may or may not hold"),
        (BREAKS, "The best plan within the budget breaks at 4.0 bits on average over its weights"),
    ],
)
def test_only_a_plan_that_holds_is_called_recommended(plan, words: str) -> None:
    joint = joint_of(recommended=plan)
    assert headline_of(joint).startswith(words)
    called = [card.label.partition(",")[0] for card in cards_of({}, joint, NOTHING)]
    assert called == ["Recommended" if "recommended" in words else "Best within the budget"]


def ordered(joint: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The plans with divergences that rise in this order."""
    kl = {name: 0.01 * (place + 1) for place, name in enumerate(names)}
    joint["kl"] = joint["plan"].map(kl)
    return joint.assign(kl_low=0.9 * joint["kl"], kl_high=1.1 * joint["kl"], n=200)


def test_the_smallest_plan_that_holds_is_to_be_deployed_and_no_random_one() -> None:
    joint = joint_of(
        recommended=BREAKS,
        pareto_6=(6.0, 0.1, -0.4, 0.7),
        pareto_5=(5.0, -0.2, -0.8, 0.4),
        random_1=(4.5, 0.0, -0.1, 0.1),
        uniform_8=(8.0, 0.0, -0.1, 0.1),
    )
    joint = ordered(joint, "uniform-8", "pareto-6", "random-1", "pareto-5", "recommended")
    joint["bitops_g"] = joint["avg_bits"] ** 2
    assert deployed(joint) == [
        "To deploy, beyond the budget: mixed, about 5 bits (5.0 bits on average, 0.50 MB, 0.39 "
        "times the bit operations of 8 bits everywhere), the smallest measured plan that holds. It "
        "gains 0.2 points (\u22120.4 to 0.8)."
    ]
    card = cards_of({}, joint, NOTHING)[-1]
    assert card.label == "To deploy: mixed, 5.0 bits, 0.50 MB: gained"
    assert card.word == "holds"
    assert (card.value, card.detail[:11]) == ("0.2 points", "\u22120.4 to 0.8")


@pytest.mark.parametrize(
    ("other", "bits", "operations", "high", "words"),
    [
        ("uniform-6", 6.1, 0.8, 0.9, "6 bits everywhere, of nearly the same size (0.61 MB) with "),
        ("uniform-6", 6.1, 0.8, 0.9, " 0.80 times its bit operations, holds, too: it loses 0.3"),
        ("uniform-6", 6.29, 0.8, 1.1, "may or may not hold: it loses 0.3 points"),
        ("uniform-6", 6.4, 0.8, 0.9, ""),  # more than 5 % larger
        ("uniform-6", 5.6, 0.8, 1.1, ""),  # more than 5 % smaller, and not known to hold
        ("uniform-6", 6.1, 1.2, 0.9, ""),  # takes more operations
        ("pareto-7", 6.1, 0.8, 0.9, "Mixed, about 7 bits, of nearly the same size"),
        ("pareto-7", 6.1, 0.8, 1.1, ""),  # neither simple nor known to hold
        ("pareto-7", 6.2, 0.8, 0.9, ""),  # more than 2 % larger
    ],
)
def test_a_plan_of_nearly_the_same_size_with_fewer_operations_is_named(
    other: str, bits: float, operations: float, high: float, words: str
) -> None:
    plans = {other.replace("-", "_"): (bits, 0.3, -0.4, high)}
    joint = joint_of(recommended=BREAKS, pareto_6=(6.0, -0.1, -0.7, 0.5), **plans)
    joint = ordered(joint, "pareto-6", other, "recommended")
    joint["bitops_g"] = joint["plan"].map({"pareto-6": 1.0, other: operations, "recommended": 2.0})
    line = " ".join(instead(joint))
    assert words in line
    assert ("of nearly the same size" in line) is bool(words)


def test_where_none_is_known_to_hold_it_is_said_how_many_images_would_tell() -> None:
    joint = joint_of(recommended=BREAKS, uniform_8=(8.0, -0.5, -2.4, 1.4))
    (line,) = deployed(ordered(joint, "uniform-8", "recommended"))
    assert line == (
        "To deploy: no measured plan is known to hold. The nearest: 8 bits everywhere, 0.80 MB. It "
        "gains 0.5 points (\u22121.4 to 2.4). About 1,500 images instead of 200 would tell, four "
        "times in five, if it loses no more than it did here."
    )


def test_more_images_than_there_are_are_not_asked_for_without_saying_so() -> None:
    joint = joint_of(recommended=BREAKS, uniform_8=(8.0, -0.5, -2.4, 1.4))
    joint = ordered(joint, "uniform-8", "recommended")
    (few,), (enough,) = deployed(joint, 1000), deployed(joint, 2000)
    assert "About 1,500 images (more than the 1,000 there are) instead of 200 would tell" in few
    assert "About 1,500 images instead of 200 would tell" in enough


def test_where_every_plan_breaks_nobody_is_told_to_take_more_images() -> None:
    joint = joint_of(recommended=BREAKS, pareto_5=(5.0, 9.0, 7.0, 11.0), uniform_8=(8, 4.0, 2, 6))
    assert deployed(joint) == [
        "To deploy: none, every measured plan breaks. The one that loses least: 8 bits everywhere, "
        "0.80 MB. It loses 4.0 points (2.0 to 6.0)."
    ]


def test_a_recommended_plan_that_holds_is_the_one_to_deploy() -> None:
    joint = joint_of(recommended=(4.0, 0.2, -0.3, 0.7))
    assert deployed(joint) == [
        "To deploy: the recommended plan, 4.0 bits on average, 0.40 MB, the smallest measured plan "
        "that holds."
    ]


def test_why_a_mixed_plan_and_what_it_takes_beside_equal_bits() -> None:
    joint = joint_of(
        recommended=(4.0, 0.6, -0.3, 1.5), uniform_4=(4.0, 0.6, -0.3, 1.5), uniform_8=(8, 0, 0, 0)
    )
    joint = ordered(joint, "uniform-8", "recommended", "uniform-4")
    joint["bitops_g"] = [1.5, 1.0, 4.0]
    assert why_mixed(joint) == [
        "The best plan within the budget is preferred to 4 bits everywhere because it diverges "
        "less (0.020 against 0.030 nats), a finer measure than the loss; it takes 1.5 times the "
        "bit operations of 4 bits everywhere, 0.38 times those of 8 bits everywhere; bits on "
        "average count weights only."
    ]
    joint["bitops_g"] = [1.0, 1.0, 4.0]
    assert "it takes as many bit operations as 4 bits everywhere, 0.25 times" in why_mixed(joint)[0]
    joint["bitops_g"] = [1.5, 1.0, 4.0]
    joint["kl_high"] = 9.0
    assert "cannot be told" in why_mixed(joint)[0]
    joint.loc[0, ["drop", "drop_low", "drop_high"]] = [9.0, 8.0, 10.0]
    assert why_mixed(joint)[0].startswith("The best plan within the budget takes 1.5 times the bit")


def plan_of(*bits: int) -> Plan:
    modules = [
        ModulePlan(
            name=f"m{i}", bits=b, weight=f"int{b}", activation=f"uint{b}", pinned=i == 0, reason=""
        )
        for i, b in enumerate(bits)
    ]
    return Plan(model="m", modules=tuple(modules))


def cells(status: str, **kl: float) -> pd.DataFrame:
    rows = [
        {"module": name, "part": "both", "format": "int4", "bits": 4, "status": status, "kl": value}
        for name, value in kl.items()
    ]
    return pd.DataFrame(rows)


def test_the_most_sensitive_modules_stand_with_their_bits_in_their_order() -> None:
    found = cells("measured", m0=0.1, m1=0.3, m2=0.2)
    assert worst_of(plan_of(8, 6, 4), found) == [
        "m1 alone causes 50 % and the first 3 modules 100 % of the summed divergence at 4 bits, in "
        "parentheses their bits within the budget: m1 (6), m2 (4), m0 (8, pinned)."
    ]
    (line,) = worst_of(None, cells("measured", **{f"m{k}": 1.0 for k in range(4)}))
    assert line == ("4 modules cause 100 % of the summed divergence at 4 bits: m0, m1, m2, m3.")
    assert worst_of(None, NOTHING) == []


def test_where_intervals_overlap_it_is_said_which_modules_are_surely_among_the_first() -> None:
    found = cells("measured", **{f"m{k}": 0.1 for k in range(6)}, m6=0.5)
    found = found.assign(kl_low=0.5 * found["kl"], kl_high=2 * found["kl"])
    (line,) = worst_of(None, found)
    assert line.endswith(" Only m6 surely belongs there: intervals of others reach the rest.")
    (line,) = worst_of(None, found[found["module"] != "m6"])
    assert line.endswith(
        "None of them is surely among the first: intervals of others reach theirs."
    )


def test_other_modules_with_the_most_bits_are_named_unless_they_are_pinned() -> None:
    found = cells("measured", m1=0.3)
    assert sentences_of(found, joint_of(), plan_of(8, 4, 8))[1:] == [
        "The plan keeps 8 bits for m2 as well."
    ]
    (_, many) = sentences_of(found, joint_of(), plan_of(*[8] * 12, 4))
    assert many.endswith("m8, m9 and 2 more as well.")
    assert len(sentences_of(found, joint_of(), plan_of(8, 4, 4))) == 1


def test_a_ranking_by_estimates_says_what_was_measured() -> None:
    found = cells("estimated", m0=0.1, m1=0.3)
    causes = pd.DataFrame([{"module": "m1", "kl_before": 0.0098}])
    (line,) = measured_worst(found, causes)
    assert "at 4 bits: m1 0.0098, estimated 0.30 nats (0.033 times the estimates)" in line
    (line,) = measured_worst(found, causes.iloc[:0])
    assert line.startswith("The ranking rests on estimates: modules that follow closely")
    assert measured_worst(cells("measured", m0=0.1), causes) == []
    known = pd.concat([cells("measured", m0=0.2), cells("estimated", m1=0.3)])
    (line,) = measured_worst(known, causes)
    assert line.startswith("The ranking rests on estimates but for m0, measured on all images")
