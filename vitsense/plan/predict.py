"""From summed single-module divergences to the drop of a whole plan, with its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vitsense.plan.monotone import rising

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    _Logs = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

_Z = 1.96
_NO_POINTS = (np.empty(0), np.empty(0), np.empty(0))
_LEAST_SCATTER = 0.2  # nobody's curve is known better than within 20 %
_UNKNOWN_SCATTER = 1.0  # with too few informative points: a factor of 7 either way
_FEW_PLANS_SCATTER = 0.5  # too few plans to see how far one lies from its neighbours
_ENOUGH = 2
_NEAR = math.log(2.0)  # between plans that are further apart, the curve may bend as it likes
_NARROW = 0.1  # points this close in log divergence say nothing about the slope
_MEANS = ("kl", "drop", "drop_low", "drop_high", "agreement", "agreement_low", "agreement_high")


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
    """Two steps: the divergence J of the whole plan from the sum K of its modules', then the drop.

    J(K) goes through the whole plans that were measured (``knots``), straight between them in the
    logarithms and with the nearest plan's ratio J/K beyond them: rounding errors that meet in one
    pass reinforce each other, so J exceeds K by far at few bits. Without measured plans J = K.

    drop = A·(1 - exp(-c·J^g / A)), where A is what can be lost (full-precision accuracy minus
    chance). c and g are fitted in the logarithm to the measured plans and to the most sensitive
    single modules; with fewer than two informative points, g = 1.

    The interval (95 %) is the scatter of measured plans about both steps, not only the error of
    the fit.
    """

    ceiling: float
    log_c: float
    exponent: float
    scatter: float
    """Standard deviation of the log rate about the second step."""
    points: int
    basis: str
    """``plans`` or ``modules``: what the second step was fitted to."""
    knots: tuple[tuple[float, float], ...] = ()
    """log K and log J of the first step, both rising."""
    joint_scatter: float = 0.0
    """Standard deviation of log J about the first step."""

    def __post_init__(self) -> None:
        """Take the lists of a JSON file as well."""
        object.__setattr__(self, "knots", tuple((float(k), float(j)) for k, j in self.knots))

    def predict(self, kl: float) -> Prediction:
        """The drop at a summed divergence."""
        if kl <= 0:
            return Prediction(kl=0.0, drop=0.0, low=0.0, high=self._at(1e-6, _Z))
        return Prediction(
            kl=kl, drop=self._at(kl, 0.0), low=self._at(kl, -_Z), high=self._at(kl, _Z)
        )

    def _at(self, kl: float, sigmas: float) -> float:
        spread = math.hypot(self.scatter, self.exponent * self.joint_scatter)
        joint = through(self.knots, math.log(kl))
        rate = math.exp(self.log_c + sigmas * spread + self.exponent * joint)
        return self.ceiling * -math.expm1(-rate / self.ceiling)

    def near_measured(self, kl: float) -> bool:
        """Whether a plan was measured whose modules' divergences have about this sum."""
        return any(abs(math.log(max(kl, 1e-12)) - k) <= _NEAR for k, _ in self.knots)

    def kl_at(self, drop: float) -> float:
        """The summed divergence at which the predicted drop is ``drop`` (infinite if never)."""
        if drop >= self.ceiling:
            return math.inf
        joint = math.log(self.whole_kl_at(drop))
        return math.exp(through([(j, k) for k, j in self.knots], joint))

    def whole_kl_at(self, drop: float) -> float:
        """The divergence of a whole plan at which the predicted drop is ``drop``, nats."""
        if drop >= self.ceiling:
            return math.inf
        rate = -self.ceiling * math.log1p(-max(drop, 1e-9) / self.ceiling)
        return math.exp((math.log(rate) - self.log_c) / self.exponent)


def through(knots: Sequence[tuple[float, float]], x: float) -> float:
    """The line through rising ``knots``, with slope 1 beyond them (everywhere, if none)."""
    if not knots:
        return x
    xs, ys = [knot[0] for knot in knots], [knot[1] for knot in knots]
    inside = min(max(x, xs[0]), xs[-1])
    return float(np.interp(inside, xs, ys)) + x - inside


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
    """Fit both steps.

    Args:
        sensitivity: Measured cells of one model (part ``both``).
        joint: Whole plans of the model that were measured.
        sums: Sum of single divergences of each plan in ``joint``, nats.
        ceiling: What can be lost, percentage points.
    """
    together = joint["kl"].to_numpy(dtype=np.float64)
    knots, joint_scatter = _first_step(sums, together)
    points = _logs(together, loss_columns(joint), ceiling) if len(joint) else _NO_POINTS
    basis = "plans" if len(points[0]) else "modules"
    modules = _most_sensitive(sensitivity) if len(points[0]) else sensitivity
    alone = _logs(modules["kl"].to_numpy(dtype=np.float64), loss_columns(modules), ceiling)
    x, y, weight = (np.append(a, b) for a, b in zip(points, alone, strict=True))
    exponent = 1.0
    if basis == "plans" and len(x) >= _ENOUGH and np.ptp(x) > _NARROW:
        design = np.stack([np.ones_like(x), x])
        normal = (design * weight) @ design.T
        exponent = float(np.clip(np.linalg.solve(normal, (design * weight) @ y)[1], 0.5, 2.0))
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
        knots=knots,
        joint_scatter=joint_scatter,
    )


def _first_step(
    sums: NDArray[np.float64], together: NDArray[np.float64]
) -> tuple[tuple[tuple[float, float], ...], float]:
    """Rising knots through the measured plans, and how far one plan lies from its neighbours'."""
    good = (sums > 0) & (together > 0)
    order = np.argsort(sums[good])
    x, y = np.log(sums[good][order]), np.log(together[good][order])
    if not len(x):
        return (), _UNKNOWN_SCATTER
    pairs = list(zip(x.tolist(), y.tolist(), strict=True))
    misses = [
        pairs[i][1] - through([*pairs[:i], *pairs[i + 1 :]], pairs[i][0])
        for i in range(1, len(pairs) - 1)
    ]
    scatter = _FEW_PLANS_SCATTER
    if len(misses) >= _ENOUGH:
        scatter = max(float(np.sqrt(np.mean(np.square(misses)))), _LEAST_SCATTER)
    ordered = np.array(rising(y.tolist())) + 1e-9 * np.arange(len(y))
    apart = np.append(np.diff(x) > 0, True)  # of plans of equal sum, the last
    return tuple(zip(x[apart].tolist(), ordered[apart].tolist(), strict=True)), scatter


def _most_sensitive(sensitivity: pd.DataFrame) -> pd.DataFrame:
    """The mean of the quarter of cells with the largest divergence, as one row.

    The cells saw the same images, so their errors do not average out: the mean keeps a cell's.
    """
    top = sensitivity.nlargest(max(1, len(sensitivity) // 4), "kl")
    return top[[c for c in _MEANS if c in top]].astype("float64").mean().to_frame().T


def _logs(kl: NDArray[np.float64], loss: pd.DataFrame, ceiling: float) -> _Logs:
    """Log divergence, log rate and weight of the points whose loss is known to be above zero."""
    value = loss["loss"].to_numpy()
    half = (loss["high"] - loss["low"]).to_numpy() / 2
    informative = (kl > 0) & (loss["low"].to_numpy() > 0) & (value < 0.98 * ceiling)
    value, half, kl = value[informative], half[informative], kl[informative]
    rate = -ceiling * np.log1p(-value / ceiling)
    relative = np.maximum(half / _Z / value, 0.02)
    return np.log(kl), np.log(rate), 1 / (relative**2 + 0.1**2)
