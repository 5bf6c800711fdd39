"""Whether any plan keeps a budget, before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vitsense.plan.budget import Budget
from vitsense.plan.latency import LatencyProfile
from vitsense.plan.predict import DropModel
from vitsense.plan.solve import Problem, solve
from vitsense.settings import Part

if TYPE_CHECKING:
    import pandas as pd


def refuse_impossible(
    modules: pd.DataFrame,
    formats: Mapping[str, Sequence[str]],
    total_params: int,
    budget: Budget,
    *,
    part: Part = Part.BOTH,
    per_tensor: bool = False,
    profile: LatencyProfile | None = None,
) -> None:
    """Refuse a budget (not `BudgetKind.MAX_DROP`) that no choice among ``formats`` keeps.

    What the choices cost is known before any of them is measured.

    Args:
        modules: ``modules.csv`` of the model.
        formats: Module -> formats it may get.
        total_params: Of the whole model.
        budget: What is to be kept.
        part: What is quantized.
        per_tensor: Whether a weight has one scale.
        profile: For a budget of latency.

    Raises:
        UserInputError: the budget cannot be met; the least possible value is named.
    """
    unmeasured = Problem(
        modules=modules.reset_index(drop=True),
        divergence={name: dict.fromkeys(forms, 0.0) for name, forms in formats.items()},
        total_params=total_params,
        part=part,
        profile=profile,
        per_tensor=per_tensor,
    )
    nothing = DropModel(ceiling=1, log_c=0, exponent=1, scatter=1, points=0, basis="modules")
    solve(unmeasured, budget, nothing)
