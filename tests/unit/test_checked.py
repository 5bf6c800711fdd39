"""Estimates of narrow formats are combined with a measurement on a few images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from small_models import images, tiny_resnet

from vitsense.discover import find_sites
from vitsense.numerics.distance import kl_nats
from vitsense.observe import ReplaySession
from vitsense.sensitivity.checked import (
    Checks,
    combined,
    images_to_check,
    measure_checks,
    narrow_cells,
    passes_of_an_image,
    said_of,
)
from vitsense.sensitivity.draws import Draws
from vitsense.sensitivity.estimate import Estimated, Rated
from vitsense.sensitivity.interval import Interval
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Cell
from vitsense.sensitivity.work import rests
from vitsense.settings import Part, QuantSettings
from vitsense.statistics.collect import collect_statistics


def _estimates(values: np.ndarray) -> list[Estimated]:
    return [
        Estimated(
            cell=Cell.of(f"m{i}", 2, Part.BOTH),
            estimate=Rated(100, Interval(float(v), float(v) / 2, float(v) * 2)),
        )
        for i, v in enumerate(values)
    ]


def _measured(truth: np.ndarray, noise: float, draws: int, rng: np.random.Generator):
    sigma = math.sqrt(math.log(1 + noise * noise * draws))
    values = truth[:, None] * rng.lognormal(-sigma * sigma / 2, sigma, (len(truth), draws))
    return {Cell.of(f"m{i}", 2, Part.BOTH): row for i, row in enumerate(values)}


@pytest.mark.parametrize(("spread", "above", "below"), [(0.0, -0.01, 0.35), (1.5, 0.85, 1.01)])
def test_the_measurement_weighs_as_much_as_the_estimate_is_wrong(
    spread: float, above: float, below: float
) -> None:
    rng = np.random.default_rng(1)
    truth = np.exp(rng.normal(-4, 1.5, 60))
    first = 3 * truth * np.exp(rng.normal(0, spread, 60))
    rows = combined(_estimates(first), _measured(truth, 0.3, 32, rng))
    (check, *_) = [row.checked for row in rows]
    assert check is not None
    assert above < check.weight < below
    assert check.factor == pytest.approx(1 / 3, rel=0.6)
    assert check.spread == pytest.approx(math.exp(spread), rel=0.25)
    values = np.array([row.estimate.kl_nats.value for row in rows if row.estimate])
    error = np.std(np.log(values / truth))
    assert error < 0.3  # the measurement's alone is 0.29, the estimate's is the spread
    assert f"more or less by a factor of {check.spread:.2g}" in said_of(rows)


def test_a_wider_format_is_not_estimated_above_what_was_checked_at_a_narrower_one() -> None:
    def rated(bits: int, value: float, module: str = "m0") -> Estimated:
        interval = Interval(value, value / 2, value * 2)
        return Estimated(cell=Cell.of(module, bits, Part.BOTH), estimate=Rated(100, interval))

    rows = [
        rated(8, 1e-4),
        rated(4, 0.06),
        rated(3, 0.09),
        rated(4, 0.01, "m1"),
        rated(3, 0.09, "m1"),
    ]
    found = {
        Cell.of("m0", 3, Part.BOTH): np.array([0.02, 0.04]),
        Cell.of("m1", 3, Part.BOTH): np.array([0.02, 0.04]),
    }
    done = {(row.cell.module, row.cell.bits): row.estimate.kl_nats for row in combined(rows, found)}
    narrow = done["m0", 3]
    assert done["m0", 8].value == 1e-4
    assert done["m0", 4] == Interval(narrow.value, min(0.03, narrow.low), narrow.high)
    assert narrow.value < 0.06
    assert done["m1", 4].value == 0.01  # below: left as it is


def test_it_ranks_better_than_either_and_its_intervals_hold() -> None:
    ranks, inside = [], []
    for seed in range(200):
        rng = np.random.default_rng([7, seed])
        truth = np.exp(rng.normal(-4, 0.8, 24))
        first = truth * np.exp(rng.normal(0, 0.45, 24))
        found = _measured(truth, 0.45, 16, rng)
        rows = combined(_estimates(first), found)
        rated = [row.estimate.kl_nats for row in rows if row.estimate]
        direct = [row.mean() for row in found.values()]
        ranks.append(
            [spearmanr(x, truth).statistic for x in ([r.value for r in rated], first, direct)]
        )
        inside += [r.low <= t <= r.high for r, t in zip(rated, truth, strict=True)]
    both, estimate, measurement = np.mean(ranks, axis=0)
    assert both > estimate + 0.02
    assert both > measurement + 0.02
    assert np.mean(inside) >= 0.95


def test_images_that_are_hard_for_all_modules_take_no_weight_from_the_measurement() -> None:
    rng = np.random.default_rng(3)
    truth = np.exp(rng.normal(-4, 1, 30))
    hard = rng.lognormal(-0.5, 1, 16)
    found = {row.cell: t * hard for row, t in zip(_estimates(truth), truth, strict=True)}
    rows = combined(_estimates(truth * np.exp(rng.normal(0, 0.3, 30))), found)
    values = np.array([row.estimate.kl_nats.value for row in rows if row.estimate])
    assert rows[0].checked is not None
    assert rows[0].checked.weight == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(values, truth * hard.mean())
    low = np.array([row.estimate.kl_nats.low for row in rows if row.estimate])
    assert (low < truth).all()  # the interval still knows that the images are few


def test_what_cannot_be_combined_stays_an_estimate() -> None:
    rows = _estimates(np.array([1.0, 2.0, 0.0, 4.0]))
    rows[3] = Estimated(cell=rows[3].cell, estimate=None, reason="not reached")
    found = {row.cell: np.array([0.5, 0.6]) for row in rows}
    found[rows[1].cell] = np.zeros(2)
    again = combined(rows, found)
    assert again[1:] == rows[1:]
    assert again[0].checked is not None
    assert again[0].checked.weight == 1.0  # of one module no variance is known
    assert said_of(rows) == ""


def test_the_cost_is_about_that_of_a_thousand_images_and_few_images_are_enough() -> None:
    assert images_to_check(0.0, 500) == 0  # nothing is narrow
    assert images_to_check(40.0, 1000) == 15
    assert images_to_check(40.0, 100) == 15
    assert images_to_check(4.0, 1000) == 32
    assert images_to_check(400.0, 1000) == 8
    assert images_to_check(4.0, 5) == 5
    catalog = find_sites(tiny_resnet(), images(1))
    assert narrow_cells(catalog, [8, 4, "mxfp4"], [Part.BOTH]) == {}
    cells = narrow_cells(catalog, [8, 3, 2], [Part.BOTH])
    assert {cell.bits for some in cells.values() for cell in some} == {3, 2}
    assert passes_of_an_image(catalog, cells) == pytest.approx(1 + 2 * sum(rests(catalog).values()))


def test_checks_are_weighted_divergences_of_the_drawn_images() -> None:
    model, pixels = tiny_resnet(), images(6)
    catalog = find_sites(model, pixels[:1])
    quantizers = Quantizers(
        catalog, collect_statistics(model, catalog, [pixels]), QuantSettings(), "cpu"
    )
    cells = dict(list(narrow_cells(catalog, [2], [Part.BOTH]).items())[:2])
    draws = Draws(6, np.array([1, 4, 4]), np.array([0.5, 2.0, 2.0]))

    def read(numbers):
        return pixels[list(numbers)], torch.zeros(len(numbers), dtype=torch.long)

    few = Checks(cells=cells, draws=draws, read=read, largest=2)
    found = measure_checks(model, catalog, quantizers, few)
    with ReplaySession.open(model, catalog) as session, torch.no_grad():
        reference = session.record(pixels)
        for name, (cell,) in cells.items():
            logits = session.full(quantizers.visits(catalog[name], 2, Part.BOTH))
            expected = kl_nats(reference, logits).numpy()[draws.numbers] * draws.weights
            np.testing.assert_allclose(found[cell], expected, rtol=2e-3)
