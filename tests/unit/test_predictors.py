"""Rank correlations of statistics with sensitivity, and the sentence about them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, spearmanr

from vitsense.schemas import SCHEMAS
from vitsense.sensitivity.predictors import predictor_rows, rank_correlation
from vitsense.verdict import best_predictor


def tables(n: int = 12) -> tuple[pd.DataFrame, ...]:
    """Modules whose divergence falls with the weight's SQNR and has nothing to do with variance."""
    rng = np.random.default_rng(0)
    names = [f"m{i}" for i in range(n)]
    modules = pd.DataFrame({"module": names, "role": ["ffn", "q"] * (n // 2)})
    kl = rng.lognormal(size=n)
    cells = pd.DataFrame(
        {
            "module": names,
            "part": "both",
            "bits": 4,
            "format": "int4",
            "status": ["measured"] * (n - 1) + ["unmeasured"],
            "kl": kl,
            "drop": np.nan,
        }
    )
    sites = [
        dict.fromkeys(SCHEMAS["statistics"], 0.0)
        | {"module": name, "site": f"{name}:{role}", "kurtosis": float(k), "variance": v}
        for name, v in zip(names, rng.normal(size=n), strict=True)
        for role, k in (("weight", 1), ("query", 2), ("key", 5))
    ]
    scores = {
        (name, "int4"): {"fisher_kl": 2 * v, "weight_sqnr_db": -v if i else 9.0}
        for i, (name, v) in enumerate(zip(names, kl, strict=True))
    }
    return modules, pd.DataFrame(sites), cells, scores


def test_a_statistic_that_orders_modules_like_the_measurement_has_correlation_one() -> None:
    rows = pd.DataFrame(predictor_rows(*tables()))
    whole = rows[rows["scope"] == "all"].set_index("statistic")
    assert whole.loc["fisher_kl", "spearman"] == pytest.approx(1)
    assert -1 < whole.loc["weight_sqnr_db", "spearman"] < -0.5
    assert abs(whole.loc["weight_variance", "spearman"]) < 0.8
    assert (whole["n"] == 11).all()  # an unmeasured cell does not count
    assert set(rows["target"]) == {"kl"}  # there are no drops
    assert set(rows["scope"]) == {"all", "ffn", "q"}
    assert "activation_kurtosis" not in whole.index  # all equal: nothing to order


def test_correlations_equal_scipy_and_their_interval_covers() -> None:
    rng = np.random.default_rng(1)
    truth, covered, repeats = 6 / np.pi * np.arcsin(0.6 / 2), 0, 250
    for _ in range(repeats):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=30).T
        r, low, high, tau = rank_correlation(x, y)
        covered += low <= truth <= high
    assert r == pytest.approx(spearmanr(x, y).statistic)
    assert tau == pytest.approx(kendalltau(x, y).statistic)
    assert covered / repeats > 0.92


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "rho"), [(5, 0.95), (8, 0.9), (12, 0.0)])
def test_intervals_of_few_modules_and_of_ties_cover(n: int, rho: float, ties: bool) -> None:
    """Also where the few modules happen to be in perfect order."""
    rng = np.random.default_rng(n)

    def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=size).T
        return (np.floor(2 * x) if ties else np.exp(x)), np.exp(2 * y)

    truth, covered, repeats = spearmanr(*draw(50_000)).statistic, 0, 150
    for _ in range(repeats):
        _, low, high, _ = rank_correlation(*draw(n))
        covered += low <= truth <= high
    assert covered / repeats >= 0.9


def test_the_sentence_names_the_best_estimate_and_the_best_cheap_statistic() -> None:
    rows = pd.DataFrame(predictor_rows(*tables()))
    line = best_predictor("net", rows)
    assert line is not None
    assert line.startswith("net: the sensitivity at 4 bits is ranked best by the Fisher estimate")
    assert "of the statistics of tensors, by the signal to rounding noise of weights" in line
    assert best_predictor("net", rows[:0]) is None


def test_nothing_is_said_of_a_few_modules() -> None:
    modules, sites, cells, scores = tables(4)
    assert predictor_rows(modules, sites, cells, scores) == []
