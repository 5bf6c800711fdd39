"""How the recommended plan was improved as a whole, and what that gained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitsense.compare.plan_names import plan_name
from vitsense.report.chapters.unfinished import completing, ended_early
from vitsense.report.formatters import loss_of, number, short, span
from vitsense.report.section import Finding, Section, Table, Words

if TYPE_CHECKING:
    import pandas as pd

    from vitsense.report.source import Source

_TITLE = "Can the plan be improved as a whole?"

_WAY = (
    "The solver adds up what single modules cost in an otherwise full-precision model. Rounding "
    "errors that meet reinforce or cancel each other, so a better plan was looked for as a whole, "
    "on calibration images: with the plan in force, every module was exchanged for the next "
    "narrower and the next wider format, and the best exchanges within the budget were tried "
    "together; only what was better on other calibration images would become the next plan."
)


def refinement_chapter(source: Source, model: str) -> Section | None:
    """Every step of the search, and the two plans on evaluation images, or why there was none.

    None without a recommended plan, and where the run does not say whether it was to search.
    """
    steps = source.table("refinement", model)
    joint = source.table("joint", model).set_index("plan")
    if steps.empty:
        settings = source.record["settings"]
        if "refine" not in settings or "recommended" not in joint.index:
            return None
        return Section(key="refinement", title=_TITLE, blocks=(_unsearched(source, settings),))
    found = [_gain(joint, source.labelled(model))] if "solved" in joint.index else []
    if not found:
        found = [
            Finding(
                headline="No plan that was searched for is clearly better than the solved one",
                numbers="The plan within the budget is the one that was solved from single modules"
                f"{_others(steps)}.",
            )
        ]
    return Section(
        key="refinement",
        title=_TITLE,
        blocks=(*found, Words(text=_WAY), _table(steps)),
    )


def _unsearched(source: Source, settings: Mapping[str, Any]) -> Words:
    """Why no search was made."""
    solved = "The plan within the budget is as it was solved from single modules"
    if not settings["refine"]:
        return Words(
            text=f"{solved}: the search was switched off (--refine 0). The same command without "
            "that option continues with it; what was measured is kept."
        )
    if ended_early(source):
        return completing(source, f"{solved}, not improved as a whole")
    return Words(text=f"{solved}: within the budget there was no other plan to try.")


def _gain(joint: pd.DataFrame, labelled: bool) -> Finding:
    before, after = joint.loc["solved"], joint.loc["recommended"]
    apart = after["kl_high"] < before["kl_low"]
    loss = "drop" if labelled else "loss of agreement"
    headline = (
        f"Exchanging formats in the whole plan lowers its divergence from {short(before['kl'])} "
        f"to {short(after['kl'])} nats"
        if apart
        else "On the evaluation images, the plan improved as a whole cannot be told from the "
        "solved one"
    )
    return Finding(
        headline=headline,
        numbers=(
            f"On evaluation images, which decided nothing: {_measured(before)} as "
            f"solved from single modules, {_measured(after)} after the exchanges "
            f"({loss} and divergence, {number(before['avg_bits'], 2)} and "
            f"{number(after['avg_bits'], 2)} bits on average)."
        ),
    )


def _measured(row: Any) -> str:
    value, low, high = loss_of(row)
    return (
        f"{number(value)} points ({span(low, high)}), {short(row['kl'])} nats "
        f"({short(row['kl_low'])} to {short(row['kl_high'])})"
    )


def _others(steps: pd.DataFrame) -> str:
    """Where searches from other plans ended, beside the solved one."""
    solved = steps[steps["start"] == "solved"]["before"]
    words = []
    for start, rows in steps[steps["start"] != "solved"].groupby("start", sort=False):
        taken = rows[rows["taken"]]
        if len(taken) and len(solved):
            end, there = float(taken["after"].iloc[-1]), float(solved.iloc[0])
            how = "lower, but not by two standard errors" if end < there else "not lower"
            words.append(
                f"; the search from {_start(str(start))} ended at {short(end)} nats, where the "
                f"solved plan has {short(there)} on the same calibration images: {how}"
            )
    return "".join(words)


def _start(name: str) -> str:
    """Where a search begins; uniform plans begin with pinned modules at their own widths."""
    words = plan_name(name)
    return words.replace("everywhere", "but for pinned modules") if "everywhere" in words else words


def _kept(row: Any) -> str:
    if not row["taken"]:
        return "no"
    return "yes" if row["after"] < row["before"] else "yes, to keep the budget"


def _table(steps: pd.DataFrame) -> Table:
    rows = [
        (
            f"{_start(row['start'])}, step {row['number']}",
            str(row["images"]),
            str(row["changed"]),
            short(row["before"]),
            short(row["after"]),
            _kept(row),
        )
        for row in steps.to_dict("records")
    ]
    return Table(
        title="The steps of the search",
        head=(
            "Start and step",
            "Images for exchanges",
            "Modules exchanged",
            "Divergence before (nats)",
            "After (nats)",
            "Kept",
        ),
        rows=tuple(rows),
        reading=(
            "Each step is the best of a few trials with different numbers of exchanges. It is kept "
            "when it is clearly better on calibration images on which no exchange was looked for "
            "(by two standard errors); if not, exchanges are measured on more images. A search "
            "also begins from the widest uniform plan with pinned modules (the first and the last "
            "weights) at their own bits: not the uniform plan that was measured as a whole. It may "
            "be beyond the budget, and the first step must then bring it back, whatever that costs."
        ),
    )
