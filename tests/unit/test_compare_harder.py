"""Which of two models is harder to quantize, said only as far as the intervals allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import pytest
from report_fixture import make_run

from vitsense.compare import Comparison, compare_models
from vitsense.compare.harder import harder, plan_rows

NAMES = ("vit", "resnet")
NAMED = "layer3.downsample"
Tables = tuple[Comparison, pd.DataFrame, pd.DataFrame]
WIDTHS = (8, 4, 3)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    run = make_run(tmp_path_factory.mktemp("harder") / "run", 9, NAMES)
    comparison = compare_models(*map(run.table, ("modules", "statistics", "sensitivity")))
    assert comparison is not None
    return comparison, run.table("joint"), run.table("additivity")


Measured = tuple[float, float, float]


def joint_of(
    kls: Mapping[str, Sequence[Measured]], drops: Mapping[str, Sequence[Measured]]
) -> pd.DataFrame:
    """Whole plans of both models: at every width, and as recommended."""
    rows = []
    for model in NAMES:
        plans = [*(f"uniform-{bits}" for bits in WIDTHS), "recommended"]
        for plan, kl, drop in zip(plans, kls[model], drops[model], strict=True):
            ends = ("", "_low", "_high")
            row = {"model": model, "plan": plan, "avg_bits": 4.0, "agreement": 90.0}
            row |= {f"kl{end}": value for end, value in zip(ends, kl, strict=True)}
            row |= {f"drop{end}": value for end, value in zip(ends, drop, strict=True)}
            rows.append(row)
    return pd.DataFrame(rows)


def near(value: float) -> Measured:
    """Known to a tenth."""
    return value, 0.9 * value, 1.1 * value


ALIKE = [near(0.01), near(0.1), near(1.0), near(0.05)]
NOTHING = [(0.0, -1.0, 1.0)] * 4


def head(kls: Mapping[str, Sequence[Measured]], tables: Tables, **drops: Sequence[Measured]) -> str:
    joint = joint_of(kls, {name: drops.get(name, NOTHING) for name in NAMES})
    (found,) = harder(*NAMES, tables[0], joint, tables[2])
    return found.headline


def test_every_width_is_compared(tables: Tables) -> None:
    other = [near(0.01), near(0.2), near(0.5), near(0.05)]
    said = head({"vit": ALIKE, "resnet": other}, tables)
    assert said == (
        "Neither is harder throughout: vit is harder to quantize than resnet at 3 bits; "
        "resnet is harder to quantize than vit at 4 bits; "
        "at 8 bits and with their best plans within the budget it cannot be told"
    )


def test_nothing_is_called_harder_where_no_interval_tells(tables: Tables) -> None:
    said = head({"vit": ALIKE, "resnet": ALIKE}, tables)
    assert said == "Whether vit or resnet is harder to quantize cannot be told with any plan"


def test_one_of_many_looks_is_not_enough(tables: Tables) -> None:
    # alone the interval of the ratio, 1.01 to 1.34, would exclude 1; of four such looks it does not
    other = [near(0.01), near(0.1), near(1.0), near(0.05 * 1.16)]
    joint = joint_of({"vit": ALIKE, "resnet": other}, dict.fromkeys(NAMES, NOTHING))
    (found,) = harder(*NAMES, tables[0], joint, tables[2])
    rows = plan_rows(*NAMES, joint)
    assert [row[:2] for row in rows] == [
        *((f"{width} bits", "cannot be told") for width in WIDTHS),
        ("best plans within the budget (4.0 bits)", "cannot be told"),
    ]
    assert rows[-1][2:4] == ("1.2 (1.0 to 1.3)", "0.058 against 0.050")
    assert "cannot be told with any plan" in found.headline


def test_losses_that_say_the_contrary_leave_it_open(tables: Tables) -> None:
    kls = {"vit": ALIKE, "resnet": [near(0.01), near(0.1), near(1.3), near(0.05)]}
    lost = {"vit": [*NOTHING[:2], (83, 77, 88), NOTHING[0]]}
    lost["resnet"] = [*NOTHING[:2], (77, 71, 82), NOTHING[0]]
    assert "cannot be told with any plan" in head(kls, tables, **lost)
    assert head(kls, tables, vit=lost["resnet"], resnet=lost["vit"]).startswith(
        "resnet is harder to quantize than vit at 3 bits"
    )


@pytest.mark.parametrize(
    ("sums", "why"),
    [
        ((0.05, 0.05), "errors of different modules of resnet reinforce each other more"),
        ((0.05, 0.1), "single modules of resnet are more sensitive."),
        ((0.05, 0.07), "single modules of resnet are more sensitive, and their errors reinforce"),
    ],
)
def test_the_reason_is_sums_or_how_they_add_up(
    tables: Tables, sums: tuple[float, float], why: str
) -> None:
    kls = {"vit": ALIKE, "resnet": [near(0.01), near(0.2), near(1.0), near(0.05)]}
    joint = joint_of(kls, dict.fromkeys(NAMES, NOTHING))
    added = pd.DataFrame(
        {"model": model, "plan": "uniform-4", "sum_kl": total, "ratio": whole / total}
        | {"ratio_low": 0.8 * whole / total, "ratio_high": 1.25 * whole / total}
        for model, total, whole in zip(NAMES, sums, (0.1, 0.2), strict=True)
    )
    (found,) = harder(*NAMES, tables[0], joint, added)
    assert f"Why, at 4 bits: {why}" in found.sentence


def test_it_names_where_most_is_lost(tables: Tables) -> None:
    comparison, joint, additivity = tables
    (found,) = harder(*NAMES, comparison, joint, additivity)
    mine = comparison.per_module.query("model == 'resnet'")
    early, late = (100 * mine.loc[side, "kl"].sum() / mine["kl"].sum() for side in halves(mine))
    half, share, other = ("second", late, early) if late > early else ("first", early, late)
    assert (
        "In resnet at 4 bits, conv modules cause 100 % of the summed divergence" in found.sentence
    )
    assert f"the {half} half of the depth causes {share:.0f} %, the other {other:.0f} %" in (
        found.sentence
    )


def halves(modules: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    return modules["depth"] < 0.5, modules["depth"] > 0.5


def test_the_module_at_the_middle_belongs_to_no_half_and_is_named(tables: Tables) -> None:
    comparison, joint, additivity = tables
    mine = comparison.per_module.query("model == 'resnet'")
    kl = pd.Series(1.0, index=mine.index)
    middle = mine.index[len(mine) // 2]
    kl[middle] = float(len(mine) - 1)
    depth = pd.Series([k / (len(mine) - 1) for k in range(len(mine))], index=mine.index)
    depth[middle] = 0.5
    changed = replace(comparison, per_module=mine.assign(kl=kl, depth=depth, module=NAMED))
    (found,) = harder(*NAMES, changed, joint, additivity)
    early, late = (50 * side.drop(middle).mean() for side in (depth < 0.5, depth > 0.5))
    assert f"half of the depth causes {max(early, late):.0f} %" in found.sentence
    assert f"; {NAMED} alone, at the middle 50 %." in found.sentence


def test_nothing_is_said_of_a_plan_that_was_not_measured(tables: Tables) -> None:
    comparison, joint, additivity = tables
    assert harder(*NAMES, comparison, joint[joint["model"] == "vit"], additivity) == []


def test_budgets_count_weights_and_a_reason_that_is_missing_is_said(tables: Tables) -> None:
    other = [near(0.01), near(0.1), near(1.0), near(0.1)]
    joint = joint_of({"vit": ALIKE, "resnet": other}, dict.fromkeys(NAMES, NOTHING))
    joint["bitops_g"] = [2.0 if plan == "uniform-8" else 0.5 for plan in joint["plan"]]
    (found,) = harder(*NAMES, tables[0], joint, tables[2].iloc[:0])
    assert "the plans within the budget take 0.25 in vit and 0.25 in resnet." in found.sentence
    assert "harder with their best plans within the budget: no reason was found" in found.sentence
