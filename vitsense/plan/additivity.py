"""Whether the divergences of single modules add up to that of a whole plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vitsense.formats import FormatLike, format_of
from vitsense.plan.predict import loss_columns
from vitsense.plan.solve import Problem
from vitsense.schemas import RATED

if TYPE_CHECKING:
    import pandas as pd

RANDOM_PLANS = 3
"""Plans of random formats that are measured, so that not only uniform and solved ones are seen."""


def random_plans(problem: Problem, seed: int) -> dict[str, dict[str, str]]:
    """``random-1``, ...: every module in a format drawn evenly from its measured ones."""
    rng = np.random.default_rng([seed, 0xADD])
    return {
        f"random-{number}": {
            name: list(table)[int(rng.integers(len(table)))]
            for name, table in problem.divergence.items()
        }
        for number in range(1, RANDOM_PLANS + 1)
    }


def additivity_rows(
    sensitivity: pd.DataFrame,
    joint: pd.DataFrame,
    plans: Mapping[str, Mapping[str, FormatLike]],
) -> list[dict[str, Any]]:
    """``additivity.csv`` of one model: sums over modules against the plan measured as a whole.

    Args:
        sensitivity: Measured cells of one model and one part.
        joint: ``joint.csv`` of the model.
        plans: Plan -> module -> format, for the plans of ``joint``.

    The ends of a sum's interval are the sums of the modules' ends: all were measured on the same
    images, so their errors may all go the same way (Cauchy-Schwarz). The ratio is the measured
    divergence over the sum; its interval takes the ends that lie farthest apart, and is therefore
    wider than 95 %.
    """
    cells = sensitivity[sensitivity["status"].isin(RATED)].reset_index(drop=True)
    cells = cells[["module", "format", "kl", "kl_low", "kl_high"]].join(loss_columns(cells))
    known = cells.set_index(["module", "format"]).astype("float64")
    losses = loss_columns(joint).set_index(joint["plan"])
    rows = []
    for row in joint.to_dict("records"):
        chosen = plans.get(row["plan"])
        if chosen is None:
            continue
        picked = [(name, format_of(like).name) for name, like in chosen.items()]
        sums = known.reindex(picked).sum(skipna=False)  # unknown where a cell was not measured
        loss = losses.loc[row["plan"]]
        rows.append(
            {
                "plan": row["plan"],
                "avg_bits": row["avg_bits"],
                "n": row["n"],
                "sum_kl": sums["kl"],
                "sum_kl_low": sums["kl_low"],
                "sum_kl_high": sums["kl_high"],
                "kl": row["kl"],
                "kl_low": row["kl_low"],
                "kl_high": row["kl_high"],
                "ratio": _over(row["kl"], sums["kl"]),
                "ratio_low": _over(row["kl_low"], sums["kl_high"]),
                "ratio_high": _over(row["kl_high"], sums["kl_low"]),
                "sum_loss": sums["loss"],
                "loss": loss["loss"],
                "loss_low": loss["low"],
                "loss_high": loss["high"],
            }
        )
    return rows


def _over(top: float, bottom: float) -> float:
    return float(top / bottom) if bottom > 0 else float("inf" if top > 0 else "nan")
