"""Which cells could still change a plan, given how well their divergence is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

DRAWS = 64
"""How often the divergences are drawn from what is known of them."""

PRICES = 24
"""Prices of a bit, from one where every module is narrow to one where every module is wide."""

RIVAL = 0.1
"""Widths that bring less than this share of a module's regret are not worth images."""

REGRET = 0.02
"""Share of a plan's summed divergence that may be lost by not knowing better."""


def deciding(kl: Array, error: Array, bits: Array, size: Array, seed: int) -> Array:
    """How much each cell contributes to the regret of plans made now, for the plans in doubt.

    A plan under a budget is, but for rounding, the choice of the width of least divergence plus
    price times bits in each module (Lagrangian of the knapsack; Everett 1963). Divergences are
    drawn from log-normal distributions with the known errors; where another width would have been
    better, the plan made from the means has regret (value of information: Frazier 2018, 4.2).
    Prices whose plan has a regret below `REGRET` of its divergence need no more images.

    Args:
        kl: Mean divergence, `(modules, widths)`; infinite where it is not known.
        error: Standard error of its logarithm, `(modules, widths)`.
        bits: `(widths,)`.
        size: What one bit of the module costs, `(modules,)`, any unit.
        seed: Of the draws.

    Returns:
        `(modules, widths)`, zero where more images could not change a plan.
    """
    rng = np.random.default_rng(seed)
    noise = np.clip(error, 0.0, 3.0) * rng.standard_normal((DRAWS, *kl.shape))
    drawn = kl * np.exp(noise - np.clip(error, 0.0, 3.0) ** 2 / 2)
    cost = size[:, None] * bits[None, :]
    found = np.zeros(kl.shape)
    rows = np.arange(len(kl))
    for price in _prices(kl, cost):
        now = np.argmin(kl + price * cost, axis=1)
        values = drawn + price * cost
        best = np.argmin(values, axis=2)
        taken = np.take_along_axis(values, best[..., None], axis=2)[..., 0]
        regret = values[:, rows, now] - taken
        mean = regret.mean(axis=0)
        total = kl[rows, now].sum()
        if mean.sum() <= REGRET * total:
            continue
        share = np.zeros(kl.shape)
        for width in range(kl.shape[1]):
            share[:, width] = (regret * (best == width)).mean(axis=0)
        share[rows, now] = np.maximum(share[rows, now], mean)
        share[share < RIVAL * mean[:, None]] = 0.0
        share[_negligible(mean, REGRET / 2 * total)] = 0.0
        found = np.maximum(found, share / max(total, 1e-300))
    return found


def _negligible(regret: Array, limit: float) -> NDArray[np.bool_]:
    """The modules of least regret that together stay below a limit."""
    order = np.argsort(regret, kind="stable")
    small = np.zeros(len(regret), dtype=bool)
    small[order[np.cumsum(regret[order]) <= limit]] = True
    return small


def _prices(kl: Array, cost: Array) -> Array:
    """Prices between the flattest and the steepest exchange of bits for divergence."""
    order = np.argsort(cost[0])
    steps = np.diff(cost[:, order], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        slopes = (-np.diff(kl[:, order], axis=1) / steps).ravel()
    slopes = slopes[np.isfinite(slopes) & (slopes > 0)]
    if not len(slopes):
        return np.zeros(0)
    return np.asarray(np.exp(np.linspace(np.log(slopes.min()), np.log(slopes.max()), PRICES)))
