"""Models side by side: matched tables, and findings that never claim more than the data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from plan_tables import modules_table, sensitivity_table, statistics_table

from vitsense.compare import compare_models, findings
from vitsense.compare.groups import ratio_of_means
from vitsense.compare.tables import group_of
from vitsense.schemas import SCHEMAS
from vitsense.sensitivity.interval import mean
from vitsense.sensitivity.recovery import Recovery
from vitsense.sensitivity.result import Outcome


def two_models(tail_a: float = 5.0, tail_b: float = 5.0):
    tables = []
    for name, n, tail, seed in (("vit", 24, tail_a, 1), ("net", 20, tail_b, 2)):
        modules = modules_table(n, model=name, products=3, seed=seed)
        tables.append(
            (modules, statistics_table(modules, seed, tail), sensitivity_table(modules, seed=seed))
        )
    return tuple(pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))


def group_row(name: str, kl: float, spread: float, lost: int = 20, **more) -> dict:
    n = 500
    outcome = Outcome(
        n=n,
        labelled=n,
        fp_correct=450,
        lost=lost,
        gained=2,
        agree=n - lost,
        kl=n * kl,
        kl2=n * (kl**2 + spread**2),
        signal=1.0,
        noise=0.1,
        signal2=1.0,
        noise2=0.01,
        cross=0.1,
    )
    known = {
        "model": "vit",
        "by": "role",
        "group": name,
        "members": 2,
        "params": 1000,
        "direction": "one-at-a-time",
        "part": "both",
        "bits": 4,
        "format": "int4",
        "status": "measured",
        "reason": "",
    }
    return dict.fromkeys(SCHEMAS["groups"]) | known | outcome.row() | more


def spared_row(name: str, kl: float, spread: float) -> dict:
    n = 500
    back = Recovery(n=n, labelled=n, regained=30, relost=3, kl=n * kl, kl2=n * (kl**2 + spread**2))
    return group_row(name, 0.3, 0.1, direction="leave-one-out", **back.row())


def groups(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(SCHEMAS["groups"])).astype(SCHEMAS["groups"])


NO_SUMS = pd.DataFrame(columns=list(SCHEMAS["additivity"])).astype(SCHEMAS["additivity"])


def test_tables_hold_every_module_once() -> None:
    modules, statistics, sensitivity = two_models()
    found = compare_models(modules, statistics, sensitivity)
    assert found is not None
    assert found.format.words == "4 bits"
    assert len(found.per_module) == len(modules)
    assert found.by_role.groupby("model")["kl_share"].sum().tolist() == pytest.approx([100, 100])
    by_hand = sensitivity[(sensitivity["model"] == "vit") & (sensitivity["bits"] == 4)]["kl"].sum()
    rows = found.by_role[found.by_role["model"] == "vit"]
    assert rows["kl_sum"].sum() == pytest.approx(by_hand)


def test_groups_are_the_papers() -> None:
    assert [group_of(r) for r in ("q", "pv_product", "projection", "ffn", "conv")] == [
        "MHSA",
        "MHSA",
        "MHSA",
        "FFN",
        "other",
    ]


def test_nothing_measured_gives_nothing() -> None:
    modules, statistics, sensitivity = two_models()
    assert compare_models(modules, statistics, sensitivity.iloc[:0]) is None


def test_a_clear_difference_between_groups_is_stated() -> None:
    comparison = compare_models(*two_models())
    rows = [group_row("mhsa", 0.5, 0.2), group_row("ffn", 0.1, 0.1)]
    found = findings(comparison, groups(rows), NO_SUMS, {"vit": "vit"})
    first = next(f for f in found if f.key == "vit-mhsa-ffn-4")
    said = "attention (MHSA) is more sensitive than feed-forward (FFN)"
    assert first.headline == f"vit at 4 bits: {said}"
    assert first.value == pytest.approx(5.0)
    assert first.low > 1
    assert "500 images" in first.sentence
    assert "5.0 (4.5 to 5.5) times that of feed-forward (FFN)" in first.sentence


def test_intervals_that_overlap_a_little_still_tell_groups_apart() -> None:
    """Two intervals may overlap although the interval of the ratio leaves out 1."""
    comparison = compare_models(*two_models())
    rows = [group_row("mhsa", 0.13, 0.2), group_row("ffn", 0.1, 0.15)]
    table = groups(rows).set_index("group")
    assert table.loc["mhsa", "kl_low"] < table.loc["ffn", "kl_high"]
    found = findings(comparison, groups(rows), NO_SUMS, {"vit": "vit"})
    first = next(f for f in found if f.key == "vit-mhsa-ffn-4")
    said = "attention (MHSA) is more sensitive than feed-forward (FFN)"
    assert first.headline == f"vit at 4 bits: {said}"
    assert 1 < first.low < 1.3 < first.high


@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_the_ratio_of_two_groups_covers_the_truth(shared: float) -> None:
    """On the same images divergences go up and down together; the interval is then too wide."""
    rng, hits, repeats, n = np.random.default_rng(0), 0, 1000, 200
    for _ in range(repeats):
        both = rng.gamma(1.0, 1.0, n)
        sums = []
        for scale in (0.3, 0.2):
            x = scale * (shared * both + (1 - shared) * rng.gamma(1.0, 1.0, n))
            sums.append(mean(n, float(x.sum()), float((x * x).sum())))
        low, high = ratio_of_means(*sums)[1:]
        hits += low <= 1.5 <= high
    assert hits / repeats >= 0.94


@pytest.mark.parametrize("members", [3, 7])
def test_nothing_is_said_about_groups_of_very_few_modules(members: int) -> None:
    """Resampling so few says nothing about others."""
    modules, statistics, sensitivity = two_models()
    few = modules.groupby("model").head(members)
    keep = few["module"]
    found = findings(
        compare_models(
            few,
            statistics[statistics["module"].isin(keep)],
            sensitivity[sensitivity["module"].isin(keep)],
        ),
        groups([]),
        NO_SUMS,
        {"vit": "vit", "net": "convnet"},
    )
    assert found == ()


def test_overlapping_intervals_are_not_distinguishable() -> None:
    comparison = compare_models(*two_models())
    rows = [group_row("mhsa", 0.12, 0.9), group_row("ffn", 0.1, 0.9)]
    found = findings(comparison, groups(rows), NO_SUMS, {"vit": "vit"})
    first = next(f for f in found if f.key == "vit-mhsa-ffn-4")
    assert "are not distinguishable" in first.headline
    assert first.low < 1 < first.high


def test_the_group_that_gives_back_most_is_named_with_everything_quantized() -> None:
    comparison = compare_models(*two_models())
    rows = [
        group_row("all", 0.9, 0.3, lost=200, by="model"),
        spared_row("mhsa", 0.5, 0.2),
        spared_row("ffn", 0.2, 0.2),
    ]
    found = findings(comparison, groups(rows), NO_SUMS, {"vit": "vit"})
    first = next(f for f in found if f.key == "vit-spared-mhsa-ffn-4")
    assert first.headline == (
        "vit at 4 bits: attention (MHSA) gives back more than feed-forward (FFN) when it is spared"
    )
    assert "Everything quantized loses 39.6 points" in first.sentence
    assert "sparing attention (MHSA) (1,000 weights) gives back 5.40 (" in first.sentence
    assert first.low > 0
    close = [rows[0], spared_row("mhsa", 0.5, 2.0), spared_row("ffn", 0.45, 2.0)]
    found = findings(comparison, groups(close), NO_SUMS, {"vit": "vit"})
    first = next(f for f in found if f.key == "vit-spared-mhsa-ffn-4")
    assert "are not distinguishable when they are spared" in first.headline


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ([(2.0, 1.5, 3.0), (1.4, 1.1, 2.0)], "under-estimates what whole plans do"),
        ([(0.5, 0.3, 0.8), (1.4, 0.9, 2.0)], "over-estimates what whole plans do"),
        ([(0.5, 0.3, 0.8), (1.4, 1.1, 2.0)], "under-estimates some whole plans and"),
        ([(0.9, 0.3, 1.8), (1.4, 0.8, 2.0)], "agrees with whole plans"),
    ],
)
def test_sums_are_compared_with_whole_plans(ratios, words: str) -> None:
    rows = [
        dict.fromkeys(SCHEMAS["additivity"], 1.0)
        | {"model": "vit", "plan": f"uniform-{i + 3}", "n": 500}
        | dict(zip(("ratio", "ratio_low", "ratio_high"), ratio, strict=True))
        for i, ratio in enumerate(ratios)
    ]
    sums = pd.DataFrame(rows).astype(SCHEMAS["additivity"])
    found = findings(compare_models(*two_models()), groups([]), sums, {"vit": "vit"})
    finding = next(f for f in found if f.key == "vit-additivity")
    assert words in finding.headline
    assert "1.40 (" in finding.sentence or "2.00 (" in finding.sentence


def test_heavier_tails_of_one_model_are_found_and_equal_ones_are_not() -> None:
    families = {"vit": "vit", "net": "convnet"}
    none = groups([])
    heavy = findings(compare_models(*two_models(50.0, 2.0)), none, NO_SUMS, families)
    found = {f.key: f for f in heavy}["vit-net-kurtosis"]
    assert "more heavy-tailed" in found.headline
    assert found.low > 1
    equal = findings(compare_models(*two_models(5.0, 5.0)), none, NO_SUMS, families)
    same = {f.key: f for f in equal}["vit-net-kurtosis"]
    assert "cannot be told" in same.headline


def test_findings_are_the_same_every_time() -> None:
    tables = two_models()
    families = {"vit": "vit", "net": "convnet"}
    none = groups([])
    one, two = (findings(compare_models(*tables), none, NO_SUMS, families) for _ in range(2))
    assert one == two
