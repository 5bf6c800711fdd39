"""Isotonic regression, against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from vitsense.plan.monotone import falling, rising


@pytest.mark.parametrize("size", [0, 1, 2, 5, 40])
def test_it_is_what_scipy_finds(size: int) -> None:
    draw = np.random.default_rng(size)
    for _ in range(20):
        values = np.round(draw.normal(size=size), 1)  # with ties
        if size:
            assert rising(values) == pytest.approx(isotonic_regression(values).x)
            expected = isotonic_regression(values, increasing=False).x
            assert falling(values) == pytest.approx(expected)
        else:
            assert rising(values) == falling(values) == []
