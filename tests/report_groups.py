"""Made-up groups and sums for the run folder of `report_fixture`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from vitsense.compare.tables import MHSA_ROLES
from vitsense.schemas import SCHEMAS
from vitsense.sensitivity.recovery import Recovery
from vitsense.sensitivity.result import Outcome

WIDTHS = (4, 3)


def groups_table(
    modules: pd.DataFrame,
    costs: dict[str, float],
    outcome_at: Callable[[float, bool], Outcome],
    labelled: bool,
) -> pd.DataFrame:
    """Roles in both directions at two widths, everything, and one group without weights."""
    roles = {"mhsa": modules["role"].isin(MHSA_ROLES)} | {
        role: modules["role"] == role for role in dict.fromkeys(modules["role"])
    }
    rows: list[dict[str, Any]] = []
    for width in WIDTHS:
        kl = {name: cost * 4.0 ** (4 - width) for name, cost in costs.items()}
        total = 1.3 * sum(kl.values())
        for direction in ("all", "one-at-a-time", "leave-one-out"):
            for role, inside in roles.items() if direction != "all" else (("all", None),):
                mine = modules if inside is None else modules[inside]
                if mine.empty:
                    continue
                own = 1.2 * sum(kl[name] for name in mine["module"])
                spared = direction == "leave-one-out"
                outcome = outcome_at(max(total - own, 0.0) if spared else own, labelled)
                back = _recovery(outcome_at(total, labelled), outcome) if spared else None
                empty = dict.fromkeys(Recovery(n=1).row())
                rows.append(
                    {
                        "model": modules["model"].iloc[0],
                        "by": "model" if inside is None else "role",
                        "group": role,
                        "members": len(mine),
                        "params": int(mine["params"].sum()),
                        "direction": "one-at-a-time" if inside is None else direction,
                        "part": "both",
                        "bits": width,
                        "format": f"int{width}",
                        "status": "measured",
                        "reason": "",
                        **outcome.row(),
                        **(empty if back is None else back.row()),
                    }
                )
    return pd.DataFrame(rows).astype(SCHEMAS["groups"])


def _recovery(whole: Outcome, spared: Outcome) -> Recovery:
    gain = whole.kl - spared.kl
    return Recovery(
        n=whole.n,
        labelled=whole.labelled,
        regained=max(whole.lost - spared.lost, 0) + 3 if whole.labelled else 0,
        relost=3 if whole.labelled else 0,
        kept=max(spared.agree - whole.agree, 0) + 3,
        unkept=3,
        kl=gain,
        kl2=2.0 * gain * gain / whole.n,
    )
