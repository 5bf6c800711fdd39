"""Sensitive modules of which no tensor gives a reason: what is known of them instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vitsense.compare.groups import group_label
from vitsense.formats import NumberFormat, format_of
from vitsense.plan.plan import Plan
from vitsense.report.formatters import number, short
from vitsense.report.section import Block, Table
from vitsense.schemas import RATED
from vitsense.verdict import EXPLAINED, decisive_format, worst_modules

if TYPE_CHECKING:
    import pandas as pd

    from vitsense.report.source import Source

_FEWEST = 3
"""Modules of a role from which a median means something; else all modules are compared with."""

_MUCH = 1.2  # times the median, from which a statistic is worth a word
_NAMED = 2  # statistics that are named for a module

_STATISTICS = {
    "kurtosis": "excess kurtosis",
    "channel_max_to_median": "largest over median channel",
    "outliers_6": "share beyond 6\u03c3",
}
"""Columns of ``statistics.csv`` in which modules are compared."""


def unexplained(source: Source, model: str, explained: frozenset[str]) -> list[Block]:
    """The most sensitive modules without a reason, beside the others of their role.

    Args:
        source: The run.
        model: Key of a model.
        explained: Modules with a reason.
    """
    sensitivity = source.table("sensitivity", model)
    worst, form = worst_modules(sensitivity, EXPLAINED), decisive_format(sensitivity)
    if worst is None or form is None:
        return []
    names = [name for name in worst[0] if name not in explained]
    if not names:
        return []
    facts = source.table("modules", model).set_index("module")
    statistics = source.table("statistics", model)
    planned = _planned(source, model)
    return [
        Table(
            title=(
                f"{len(names)} sensitive module{'s' * (len(names) != 1)} at {form.words} without "
                "a reason in the tensors: what is known"
            ),
            head=("Module", "What stands out most", "What to do"),
            rows=tuple(
                (
                    name,
                    _standing_out(name, facts, statistics),
                    "; ".join(_advice(name, form, sensitivity, planned.get(name))),
                )
                for name in names
            ),
            reading=(
                "No tensor of these modules has channels that stand out or differ much, a heavy "
                "tail, a one-sided or a mostly unused range, so no remedy was tried. Statistics "
                "are compared with the median of the other modules of the same role, or of all "
                "modules where there are fewer than three. An ordinary tensor may still be "
                "sensitive because of its place: what it changes passes through everything after "
                "it. More bits help always; vitsense analyze --by site measures each tensor of a "
                "module (its weight, its input) alone."
            ),
            code=True,
        )
    ]


def _standing_out(name: str, facts: pd.DataFrame, statistics: pd.DataFrame) -> str:
    """The statistics in which a module exceeds the others most."""
    role = facts.loc[name, "role"]
    same = set(facts.index[facts["role"] == role]) - {name}
    among = f"{len(same)} other {group_label(str(role))} modules"
    if len(same) < _FEWEST:
        same, among = set(facts.index) - {name}, f"{len(facts) - 1} other modules"
    others = statistics[statistics["module"].isin(same)]
    found = sorted(
        (
            item
            for row in statistics[statistics["module"] == name].to_dict("records")
            for item in _ratios(row, others)
        ),
        key=lambda item: -item[0],
    )[:_NAMED]
    said = [
        f"{words}, {number(ratio, 1 if ratio < 100 else 0)} times the median"
        for ratio, words in found
    ]
    if not said:
        return f"no statistic is much above the median of {among}"
    return f"{'; '.join(said)} of {among}"


def _ratios(row: Mapping[str, Any], others: pd.DataFrame) -> Iterator[tuple[float, str]]:
    """How many times the median of the same tensor elsewhere each statistic is, if larger."""
    tensor = _tensor(row["site"])
    alike = others[others["site"].map(_tensor) == tensor]
    for column, words in _STATISTICS.items():
        middle = float(alike[column].median()) if len(alike) else 0.0
        value = float(row[column])
        if middle > 0 and value > _MUCH * middle:
            yield value / middle, f"{words} of its {tensor.replace('_', ' ')} {short(value)}"


def _tensor(site: object) -> str:
    return str(site).rpartition(":")[2]


def _planned(source: Source, model: str) -> Mapping[str, NumberFormat]:
    """Formats of the recommended plan; empty if there is none."""
    entry = next(entry for entry in source.entries if entry["key"] == model)
    path = source.run.plan_path(None if source.is_first(entry) else model)
    if not path.is_file():
        return {}
    return {module.name: format_of(module.format) for module in Plan.load(path).modules}


def _advice(
    name: str, form: NumberFormat, sensitivity: pd.DataFrame, planned: NumberFormat | None
) -> Iterator[str]:
    """What the next wider format costs, or that the plan has it."""
    rated = sensitivity[sensitivity["status"].isin(RATED) & (sensitivity["module"] == name)]
    costs = {str(row["format"]): float(row["kl"]) for row in rated.to_dict("records")}
    wider = [
        found
        for found in map(format_of, costs)
        if found.effective_bits > form.effective_bits and found.is_integer == form.is_integer
    ]
    if wider and form.name in costs:
        best = min(wider, key=lambda found: found.effective_bits)
        has = planned is not None and planned.effective_bits >= best.effective_bits
        known = planned if has and planned is not None and planned.name in costs else best
        yield (
            f"keep the {known.words} of the plan: {short(costs[known.name])} nats instead of "
            f"{short(costs[form.name])}"
            if has
            else f"give it {best.words}: {short(costs[best.name])} nats instead of "
            f"{short(costs[form.name])}"
        )
