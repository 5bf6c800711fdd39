"""Which of two models is harder to quantize, said only as far as the intervals allow."""

from __future__ import annotations

import pandas as pd
import pytest
from report_fixture import make_run

from vitsense.compare import Comparison, compare_models
from vitsense.compare.harder import harder

NAMES = ("vit", "resnet")
Tables = tuple[Comparison, pd.DataFrame]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    run = make_run(tmp_path_factory.mktemp("harder") / "run", 9, NAMES)
    comparison = compare_models(*map(run.table, ("modules", "statistics", "sensitivity")))
    assert comparison is not None
    return comparison, run.table("joint")


def losing(joint: pd.DataFrame, model: str, drop: float, low: float, high: float) -> pd.DataFrame:
    """The plan of 4 bits everywhere loses so much."""
    changed = joint.copy()
    rows = (changed["model"] == model) & (changed["plan"] == "uniform-4")
    changed.loc[rows, ["drop", "drop_low", "drop_high"]] = [drop, low, high]
    return changed


@pytest.mark.parametrize(
    ("first", "second", "head"),
    [
        ((9, 8, 10), (5, 4, 6), "vit is harder to quantize to 4 bits than resnet"),
        ((5, 4, 6), (9, 8, 10), "resnet is harder to quantize to 4 bits than vit"),
        ((9, 6, 12), (8, 5, 11), "Whether vit or resnet is harder to quantize to 4 bits cannot"),
    ],
)
def test_the_headline_follows_the_difference(
    tables: Tables, first: tuple[float, ...], second: tuple[float, ...], head: str
) -> None:
    comparison, joint = tables
    joint = losing(losing(joint, "vit", *first), "resnet", *second)
    (found,) = harder(*NAMES, comparison, joint)
    assert found.headline.startswith(head)


def test_it_names_where_most_is_lost(tables: Tables) -> None:
    comparison, joint = tables
    (found,) = harder(*NAMES, comparison, joint)
    mine = comparison.per_module.query("model == 'resnet'")
    late = 100 * mine.loc[mine["depth"] > 0.5, "kl"].sum() / mine["kl"].sum()
    half, share = ("second", late) if late > 50 else ("first", 100 - late)
    assert "In resnet, conv modules cause 100 % of the summed divergence" in found.sentence
    assert f"and the {half} half of the depth {share:.0f} %" in found.sentence


def test_nothing_is_said_of_a_plan_that_was_not_measured(tables: Tables) -> None:
    comparison, joint = tables
    assert harder(*NAMES, comparison, joint[joint["model"] == "vit"]) == []
