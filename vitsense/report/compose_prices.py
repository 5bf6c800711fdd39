"""Why a module has no more bits: what they would take, and what they would save."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitsense.formats import NumberFormat, format_of
from vitsense.plan.budget import BudgetKind
from vitsense.plan.cost import weight_bits
from vitsense.plan.plan import Plan
from vitsense.report.formatters import short
from vitsense.schemas import RATED

if TYPE_CHECKING:
    import pandas as pd

_BYTES_OF_KB = 1000


def more_bits(
    modules: pd.DataFrame, sensitivity: pd.DataFrame, plan: Plan | None
) -> dict[str, str]:
    """What the next wider format of each module would take and save, as the end of a sentence.

    Only where the budget is one of memory, so that this is what the module had to pay; modules that
    are pinned, have no weights or the widest format have nothing to say.

    Args:
        modules: ``modules.csv`` of a model.
        sensitivity: ``sensitivity.csv`` of the model.
        plan: The model's; None has nothing to say either.
    """
    memory = (BudgetKind.AVG_BITS.value, BudgetKind.SIZE_MB.value)
    if plan is None or (plan.budget or "").partition("=")[0] not in memory:
        return {}
    rated = sensitivity[sensitivity["status"].isin(RATED)]
    costs: dict[str, dict[str, float]] = {}
    for name, form, kl in zip(rated["module"], rated["format"], rated["kl"], strict=True):
        costs.setdefault(str(name), {})[str(form)] = float(kl)
    chosen = {module.name: format_of(module.format) for module in plan.modules if not module.pinned}
    found = {}
    for row in modules.to_dict("records"):
        name = str(row["module"])
        if not row["params"] or name not in chosen or chosen[name].name not in costs.get(name, {}):
            continue
        wider = _next_wider(costs[name], chosen[name])
        if wider is None:
            continue
        saved = costs[name][chosen[name].name] - costs[name][wider.name]
        size = int(row["params"]), str(row["weight_shape"])
        more = (weight_bits(wider, *size) - weight_bits(chosen[name], *size)) / 8 / _BYTES_OF_KB
        if more > 0 and saved > 0:
            found[name] = (
                f"; {wider.words} would take {short(more)} kB more and save {short(saved)} nats "
                f"({short(saved / more)} per kB)"
            )
    return found


def _next_wider(costs: dict[str, float], chosen: NumberFormat) -> NumberFormat | None:
    """Of the formats of the same kind the next wider one."""
    wider = [
        form
        for form in map(format_of, costs)
        if form.effective_bits > chosen.effective_bits and form.is_integer == chosen.is_integer
    ]
    return min(wider, key=lambda form: form.effective_bits, default=None)
