"""A model's part of the first screen: the verdict in a sentence, cards, and what else to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitsense.compare.plan_names import plan_name
from vitsense.decimals import listed
from vitsense.formats import NumberFormat, format_of
from vitsense.report.compose_deploy import deployed, how_to_take, instead, why_mixed
from vitsense.report.document import Card, Deployed, Status
from vitsense.report.formatters import (
    MINUS,
    known,
    loss_of,
    number,
    short,
    shortened,
    span,
    visible,
)
from vitsense.schemas import RATED
from vitsense.verdict import Judgement, judged, smallest_holding, worst_modules

if TYPE_CHECKING:
    import pandas as pd

    from vitsense.plan.plan import ModulePlan, Plan

_MOST_OF_IT = 33.0  # percent of the divergence from which one module is named alone


def sentences_of(
    sensitivity: pd.DataFrame,
    joint: pd.DataFrame,
    plan: Plan | None = None,
    taken: Deployed | None = None,
    there: int | None = None,
) -> list[str]:
    """What to deploy and why, and which modules cost most, with their bits in the plan."""
    first = " ".join([*deployed(joint, there), *how_to_take(taken), *instead(joint)])
    worst = worst_of(plan, sensitivity, dict(taken.bits) if taken and taken.json else None)
    lines = (*filter(None, [first]), *why_mixed(joint), *worst)
    return [visible(line) for line in lines]


_NAMED = 8


def worst_of(
    plan: Plan | None, sensitivity: pd.DataFrame, instead: Mapping[str, str] | None = None
) -> list[str]:
    """The modules that cost most, what the plan gives them, and how sure their order is.

    Args:
        plan: Within the budget.
        sensitivity: ``sensitivity.csv`` of the model.
        instead: Modules and their bits in the plan to deploy, where that is another one.
    """
    worst = worst_modules(sensitivity)
    if worst is None:
        return []
    names, share, form = worst
    given = {} if plan is None else {module.name: module for module in plan.modules}
    how = "estimated" if (sensitivity["status"] == "estimated").any() else "summed"
    _, first, _ = worst_modules(sensitivity, 1) or worst
    alone = len(names) > 1 and first >= _MOST_OF_IT
    counted_as = "module causes" if len(names) == 1 else "modules cause"
    told = [shortened(name) + _bits_in(given.get(name), instead) for name in names]
    where = "in the plan to deploy" if instead else "within the budget"
    text = (
        f"{shortened(names[0])} alone causes {first:.0f} % and the first {len(names)} modules"
        if alone
        else f"{len(names)} {counted_as}"
    )
    return [
        f"{text} {share:.0f} % of the {how} divergence at {form.words}"
        f"{f', in parentheses their bits {where}' if given else ''}: {', '.join(told)}."
        f"{_certain(sensitivity, names, form)}",
        *(_besides(plan, names) if not instead else ()),
    ]


def _bits_in(module: ModulePlan | None, instead: Mapping[str, str] | None) -> str:
    if module is None:
        return ""
    label = (instead or {}).get(module.name, format_of(module.format).label)
    return f" ({label}{', pinned' if module.pinned else ''})"


def _certain(sensitivity: pd.DataFrame, names: Sequence[str], form: NumberFormat) -> str:
    """That others may belong among the first, where intervals overlap."""
    cells = sensitivity[(sensitivity["format"] == form.name) & (sensitivity["part"] == "both")]
    cells = cells[cells["status"].isin(RATED)].set_index("module")
    if not {"kl_low", "kl_high"} <= set(cells.columns) or len(cells) <= len(names):
        return ""
    most = float(cells["kl_high"].drop(list(names)).max())
    sure = [name for name in names if float(cells["kl_low"][name]) > most]
    if len(sure) == len(names):
        return ""
    if not sure:
        return " None of them is surely among the first: intervals of others reach theirs."
    return (
        f" Only {listed([shortened(name) for name in sure])} surely "
        f"belong{'s' * (len(sure) == 1)} there: intervals of others reach the rest."
    )


def _besides(plan: Plan | None, named: Sequence[str]) -> list[str]:
    """Modules that need the most bits and are not among the worst, nor pinned as is usual."""
    if plan is None:
        return []
    forms = {module.name: format_of(module.format) for module in plan.modules}
    most = max(form.effective_bits for form in forms.values())
    wide = [module.name for module in plan.modules if forms[module.name].effective_bits == most]
    if len(wide) == len(forms):
        return []
    pinned = {module.name for module in plan.modules if module.pinned}
    more = [name for name in wide if name not in pinned and name not in named]
    if not more:
        return []
    names = [shortened(name) for name in more[:_NAMED]]
    if len(more) > _NAMED:
        names.append(f"{len(more) - _NAMED} more")
    return [f"The plan keeps {forms[more[0]].words} for {listed(names)} as well."]


def measured_worst(sensitivity: pd.DataFrame, causes: pd.DataFrame) -> list[str]:
    """Where the ranking is an estimate: what those of its first modules have that were measured."""
    worst = worst_modules(sensitivity)
    if worst is None or not (sensitivity["status"] == "estimated").any():
        return []
    rated = sensitivity[sensitivity["format"] == worst[2].name].set_index("module")["status"]
    sure = [shortened(name) for name in worst[0] if rated[name] == "measured"]
    if sure:
        return [
            f"The ranking rests on estimates but for {listed(sure)}, measured on all images: "
            "others that follow closely may change places."
        ]
    before = causes.dropna(subset=["kl_before"]).drop_duplicates("module").set_index("module")
    names = [name for name in worst[0] if name in before.index]
    if not names:
        return ["The ranking rests on estimates: modules that follow closely may change places."]
    cells = sensitivity[sensitivity["format"] == worst[2].name].set_index("module")["kl"]
    pairs = [(float(cells[name]), float(before.loc[name, "kl_before"])) for name in names]
    said = [
        f"{shortened(name)} {short(kl)}, estimated {short(guess)}"
        for name, (guess, kl) in zip(names, pairs, strict=True)
    ]
    ratios = sorted(kl / guess for guess, kl in pairs if guess > 0)
    times = " to ".join(dict.fromkeys(map(short, (ratios[0], ratios[-1])))) if ratios else ""
    return [
        "The ranking rests on estimates. Measured alone, for their remedies, at "
        f"{worst[2].words}: {'; '.join(said)} nats"
        f"{f' ({times} times the estimates)' if times else ''}. Trust these measurements; the "
        "table, the order and the plan have the estimates."
    ]


def cards_of(
    entry: Mapping[str, Any], joint: pd.DataFrame, sensitivity: pd.DataFrame
) -> list[Card]:
    """The numbers of the first screen."""
    cards = []
    fp = entry.get("fp")
    if fp:
        cards.append(
            Card(
                label="Full precision, top-1",
                value=f"{fp['top1']:.1f} %",
                detail=f"{span(fp['top1_low'], fp['top1_high'])} %, {fp['n']} images",
            )
        )
    plans = {str(row["plan"]): row for row in joint.to_dict("records")}
    found = judged(joint)
    best = smallest_holding(joint) if "recommended" in plans else None
    taken = "" if best is None else str(best["plan"])
    named = ["uniform-8", "uniform-4", "recommended"]
    named += [taken] if taken and taken not in named else []
    for name in named:
        if name in plans:
            label = _label(plans[name], found[name], taken=name == taken)
            cards.append(_loss_card(label, plans[name], found[name]))
    worst = worst_modules(sensitivity)
    if worst is not None:
        names, share, form = worst
        how = "estimated" if (sensitivity["status"] == "estimated").any() else "summed"
        cards.append(
            Card(
                label=f"{len(names)} worst modules",
                value=f"{share:.0f} %",
                detail=f"of the {how} divergence at {form.words}",
            )
        )
    return cards


def _label(row: Mapping[str, Any], known_of: Judgement, *, taken: bool) -> str:
    """What a card calls a plan: recommended is one that holds."""
    name = str(row["plan"])
    size = f"{row['avg_bits']:.1f} bits, {row['size_mb']:.2f} MB"
    if name == "recommended":
        called = "Recommended" if known_of is Judgement.HOLDS else "Best within the budget"
        return f"{called}, {size}"
    if name.startswith("uniform-"):
        called = plan_name(name)
        return f"To deploy: {called}, {row['size_mb']:.2f} MB" if taken else called
    return f"To deploy: mixed, {size}"


_STATUS = {
    Judgement.HOLDS: Status.GOOD,
    Judgement.UNCERTAIN: Status.CAUTION,
    Judgement.BREAKS: Status.BAD,
}


def _loss_card(label: str, row: Mapping[str, Any], known_of: Judgement) -> Card:
    value, low, high = loss_of(row)
    if known(row["drop"]):
        gained = number(value).startswith(MINUS)
        label = f"{label}: {'gained' if gained else 'lost'}"
        value, low, high = (-value, -high, -low) if gained else (value, low, high)
        shown, between = f"{number(value)} points", span(low, high)
    else:
        shown, between = f"{100 - value:.1f} % agree", f"{span(100 - high, 100 - low)} %"
    return Card(
        label=label,
        value=shown,
        detail=f"{between}; divergence {short(float(row['kl']))} nats",
        status=_STATUS[known_of],
        word=known_of.value,
    )
