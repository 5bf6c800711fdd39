"""From summed single-module divergences to the drop of a whole plan, with its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    _Logs = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

_Z = 1.96
_LEAST_SCATTER = 0.2  # nobody's curve is known better than within 20 %
_UNKNOWN_SCATTER = 1.0  # with too few informative points: a factor of 7 either way
_ENOUGH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The drop a plan is expected to have."""

    kl: float
    """Sum over modules of the one-at-a-time divergences, nats."""
    drop: float
    """Percentage points of top-1 (of agreement, where there are no labels)."""
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DropModel:
    """drop = A·(1 - exp(-c·K^g / A)), where K is the sum of the modules' divergences.

    A is what can be lost (full-precision accuracy minus chance). For small K the drop is c·K^g;
    divergences of single modules do not simply add up, which is what the exponent g is for. c and g
    are fitted in the logarithm to whole plans that were measured (uniform widths) and the mean of
    the single modules; with fewer than two informative plans, g = 1 and c is the modules'. The
    interval is the scatter of the fitted points about the curve (95 %), not only the error of the
    fit.
    """

    ceiling: float
    log_c: float
    exponent: float
    scatter: float
    points: int
    basis: str
    """``plans`` or ``modules``: what the curve was fitted to."""

    def predict(self, kl: float) -> Prediction:
        """The drop at a summed divergence."""
        if kl <= 0:
            return Prediction(kl=0.0, drop=0.0, low=0.0, high=self._at(1e-6, _Z))
        return Prediction(
            kl=kl, drop=self._at(kl, 0.0), low=self._at(kl, -_Z), high=self._at(kl, _Z)
        )

    def _at(self, kl: float, sigmas: float) -> float:
        rate = math.exp(self.log_c + sigmas * self.scatter) * kl**self.exponent
        return self.ceiling * -math.expm1(-rate / self.ceiling)

    def kl_at(self, drop: float) -> float:
        """The summed divergence at which the predicted drop is ``drop`` (infinite if never)."""
        if drop >= self.ceiling:
            return math.inf
        rate = -self.ceiling * math.log1p(-max(drop, 1e-9) / self.ceiling)
        return float((rate / math.exp(self.log_c)) ** (1 / self.exponent))


def loss_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns loss, low, high: the drop, or 100 minus agreement where there are no labels."""
    import pandas as pd

    if frame["drop"].notna().any():
        columns = ["drop", "drop_low", "drop_high"]
        found = frame[columns].set_axis(["loss", "low", "high"], axis=1)
        return found.astype("float64")
    return pd.DataFrame(
        {
            "loss": 100 - frame["agreement"],
            "low": 100 - frame["agreement_high"],
            "high": 100 - frame["agreement_low"],
        }
    ).astype("float64")


def fit_drop_model(
    sensitivity: pd.DataFrame, joint: pd.DataFrame, sums: NDArray[np.float64], ceiling: float
) -> DropModel:
    """Fit the curve.

    Args:
        sensitivity: Measured cells of one model (part ``both``).
        joint: Whole plans of the model that were measured.
        sums: Sum of single divergences of each plan in ``joint``, nats.
        ceiling: What can be lost, percentage points.
    """
    kl = sensitivity["kl"].to_numpy(dtype=np.float64)
    x, y, weight = _logs(kl, loss_columns(sensitivity), ceiling)
    plans = _logs(sums, loss_columns(joint), ceiling) if len(joint) else None
    if plans is not None and len(plans[0]) >= _ENOUGH:
        if len(x):
            # the modules' mean steadies the curve where single modules lie, at small divergence
            plans = _with_mean_of(plans, (x, y, weight))
        x, y, weight = plans
        design = np.stack([np.ones_like(x), x])
        normal = (design * weight) @ design.T
        exponent = float(np.clip(np.linalg.solve(normal, (design * weight) @ y)[1], 0.5, 2.0))
        basis = "plans"
    else:
        exponent, basis = 1.0, "modules"
    log_c = float(np.average(y - exponent * x, weights=weight)) if len(x) else math.log(10.0)
    residuals = y - log_c - exponent * x
    scatter = _UNKNOWN_SCATTER
    if len(residuals) > _ENOUGH:
        # the curve has taken up to two degrees of freedom
        freedom = len(residuals) / (len(residuals) - (2 if basis == "plans" else 1))
        spread = float(np.sqrt(np.average(residuals**2, weights=weight) * freedom))
        scatter = max(spread, _LEAST_SCATTER)
    return DropModel(
        ceiling=ceiling,
        log_c=log_c,
        exponent=exponent,
        scatter=scatter,
        points=len(x),
        basis=basis,
    )


def _with_mean_of(plans: _Logs, modules: _Logs) -> _Logs:
    """The plans' points and one for all modules, weighted like the average plan's quarter."""
    x, y, weight = modules
    mean = float(plans[2].mean()) / 4
    return (
        np.append(plans[0], np.average(x, weights=weight)),
        np.append(plans[1], np.average(y, weights=weight)),
        np.append(plans[2], mean),
    )


def _logs(
    kl: NDArray[np.float64], loss: pd.DataFrame, ceiling: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Log divergence, log rate and weight of the points whose loss is known to be above zero."""
    value = loss["loss"].to_numpy()
    half = (loss["high"] - loss["low"]).to_numpy() / 2
    informative = (kl > 0) & (loss["low"].to_numpy() > 0) & (value < 0.98 * ceiling)
    value, half, kl = value[informative], half[informative], kl[informative]
    rate = -ceiling * np.log1p(-value / ceiling)
    relative = np.maximum(half / _Z / value, 0.02)
    return np.log(kl), np.log(rate), 1 / (relative**2 + 0.1**2)
