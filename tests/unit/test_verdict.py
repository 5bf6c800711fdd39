"""Which measured plans hold: never by the luck of the best of many."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from vitsense.schemas import SCHEMAS
from vitsense.sensitivity.interval import paired_drop, proportion
from vitsense.verdict import Judgement, images_to_tell, judged, smallest_holding, verdict

PLANS = 11


def joint_of(counts: np.ndarray, n: int, names: list[str] | None = None) -> pd.DataFrame:
    """Plans in the order of divergence, from images lost and gained, `[plans, 2]`."""
    rows = []
    for place, (lost, gained) in enumerate(counts):
        drop = paired_drop(n, int(lost), int(gained)).scaled(100)
        name = names[place] if names else f"pareto-{place}"
        rows.append(
            dict.fromkeys(SCHEMAS["joint"], 0.0)
            | {"plan": name, "n": n, "kl": 0.01 * (place + 1), "size_mb": 9.0 - place}
            | {"drop": drop.value, "drop_low": drop.low, "drop_high": drop.high}
        )
    return pd.DataFrame(rows)


def drawn(seed: int, lost: float, gained: float, n: int) -> np.ndarray:
    """Images lost and gained by every plan, drawn independently."""
    draw = np.random.default_rng(seed).multinomial(n, [lost, gained, 1 - lost - gained], PLANS)
    return draw[:, :2]


@pytest.mark.parametrize(("lost", "gained"), [(0.05, 0.03), (0.02, 0.0)])
def test_of_eleven_plans_that_lose_two_points_one_rarely_seems_to_hold(
    lost: float, gained: float
) -> None:
    """At 200 images, the best of the plain intervals would be taken for one that holds."""
    runs = [joint_of(drawn(seed, lost, gained, 200), 200) for seed in range(250)]
    naive = sum((joint["drop_high"] <= 1).any() for joint in runs)
    rarely = sum(smallest_holding(joint) is not None for joint in runs)
    assert naive > 12.5  # of 250: more than the 5 % that are promised
    assert rarely <= 12.5


def test_plans_that_lose_nothing_hold_on_enough_images() -> None:
    joint = joint_of(drawn(1, 0.005, 0.005, 5000), 5000)
    assert set(judged(joint).values()) == {Judgement.HOLDS}
    assert smallest_holding(joint)["plan"] == f"pareto-{PLANS - 1}"


def test_a_plan_that_diverges_more_than_an_uncertain_one_needs_an_interval_for_all() -> None:
    names = ["uniform-8", "pareto-6", "uniform-6"]
    lucky = joint_of(np.array([[2, 3], [3, 5], [2, 6]]), 200, names)
    assert lucky["drop_high"].iloc[2] <= 1 < lucky["drop_high"].iloc[0]
    assert set(judged(lucky).values()) == {Judgement.UNCERTAIN}
    far = joint_of(np.array([[12, 4], [30, 20], [1, 40]]), 1000, names)
    assert judged(far)["uniform-8"] is Judgement.UNCERTAIN
    assert judged(far)["uniform-6"] is Judgement.HOLDS


def test_plans_with_random_formats_are_neither_taken_nor_in_the_way() -> None:
    joint = joint_of(np.array([[0, 0], [300, 0], [0, 0]]), 1000, ["uniform-8", "random-1", "a"])
    assert judged(joint) == {
        "uniform-8": Judgement.HOLDS,
        "a": Judgement.HOLDS,
        "random-1": Judgement.BREAKS,
    }


def test_without_labels_the_share_that_changes_its_class_is_judged() -> None:
    agreeing = [(k, proportion(k, 1000).scaled(100)) for k in (1000, 994, 900)]
    joint = joint_of(np.zeros((3, 2)), 1000).assign(
        drop=math.nan,
        agreement=[found.value for _, found in agreeing],
        agreement_low=[found.low for _, found in agreeing],
        agreement_high=[found.high for _, found in agreeing],
    )
    assert list(judged(joint).values()) == [
        Judgement.HOLDS,
        Judgement.UNCERTAIN,
        Judgement.BREAKS,
    ]


@pytest.mark.parametrize(("lost", "gained"), [(2, 3), (3, 2)])
def test_so_many_images_tell_four_times_in_five(lost: int, gained: int) -> None:
    (row,) = joint_of(np.array([[lost, gained]]), 200).to_dict("records")
    images = images_to_tell(row)
    # as if it lost as much, or nothing where it gained, and changed as many (of 202, see there)
    kept, changed = max(lost - gained, 0) / 200, (lost + gained + 1) / 202
    told = []
    rng = np.random.default_rng(0)
    shares = [(changed + kept) / 2, (changed - kept) / 2, 1 - changed]
    for b, c, _ in rng.multinomial(images, shares, 2000):
        told.append(paired_drop(images, b, c).high <= 0.01)
    assert 0.76 <= np.mean(told) <= 0.84


def test_no_number_of_images_is_promised_where_more_than_a_point_was_lost() -> None:
    (row,) = joint_of(np.array([[4, 1]]), 200).to_dict("records")
    assert images_to_tell(row) is None


def test_the_console_names_what_to_deploy_and_recommends_nothing_that_breaks() -> None:
    names = ["uniform-8", "recommended"]
    empty = pd.DataFrame(columns=list(SCHEMAS["sensitivity"]))
    lines = verdict("m", None, empty, joint_of(np.array([[0, 0], [90, 0]]), 1000, names))
    assert "m: the best plan within the budget (0.00 bits on average, 8.00 MB) loses" in lines[1]
    assert lines[1].endswith(": breaks.")
    assert lines[2].startswith("m: to deploy: 8 bits everywhere (0.00 bits")
    lines = verdict("m", None, empty, joint_of(np.array([[0, 0], [0, 0]]), 1000, names))
    assert lines[2] == "m: to deploy: the recommended plan, the smallest measured one that holds."
    lines = verdict("m", None, empty, joint_of(np.array([[2, 3], [40, 2]]), 200, names))
    assert lines[2].startswith("m: no measured plan is known to hold; about 2,3")
