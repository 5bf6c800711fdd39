"""Which model is harder to quantize, at which width, why and where: from plans and modules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitsense.compare.change import FALSE_SHARE, Change, adjusted, ratio
from vitsense.compare.finding import Finding
from vitsense.compare.groups import group_label
from vitsense.compare.plan_names import plan_name
from vitsense.compare.tables import Comparison
from vitsense.decimals import listed, number, short, short_span, span
from vitsense.formats import NumberFormat
from vitsense.sensitivity.interval import Interval

if TYPE_CHECKING:
    import pandas as pd

HARDER = "-harder"
"""How the key of a finding about which model is harder ends."""

_FROM = 1.2
"""Times the divergence of the other from which a reason is looked for."""

_ALONE = 0.15
"""Share of the divergence from which one module is named: it alone may make a half's share."""

_MOSTLY = 2 / 3
"""Share of the (logarithm of the) ratio from which one of two reasons stands alone."""


@dataclass(frozen=True, slots=True)
class _Look:
    """Two models with the same kind of plan."""

    plan: str
    words: str
    """``4 bits``, or ``their best plans within the budget``."""
    rows: tuple[Mapping[str, Any], Mapping[str, Any]]
    """Of ``joint.csv``, of the first and the second model."""
    times: Change
    """Divergence of the second by that of the first."""


def harder(
    first: str, second: str, comparison: Comparison, joint: pd.DataFrame, additivity: pd.DataFrame
) -> list[Finding]:
    """Which of two models moves more, with every format everywhere and as recommended, and why.

    A model is called harder with a plan where the ratio of the divergences tells, allowing for as
    many looks as there are plans (`vitsense.compare.change.adjusted`), and the drops do not say the
    contrary.

    Args:
        first: Key of a model.
        second: Key of another model of the run.
        comparison: Modules of both.
        joint: ``joint.csv``: whole plans.
        additivity: ``additivity.csv``: sums over modules against whole plans.
    """
    looks, names = _judged((first, second), joint)
    if not looks:
        return []
    said = _budgets((first, second), looks, joint)
    reason = _reason((first, second), looks, names, additivity)
    where = f"{_where(first, comparison)}{_where(second, comparison)}"
    shown = next((k for k in looks if k.plan == _uniform(comparison.format)), looks[0]).times
    return [
        Finding(
            key=f"{first}-{second}{HARDER}",
            headline=_headline((first, second), looks, names),
            sentence=f"{said}{reason}{where}".strip(),
            value=shown.value,
            low=shown.low,
            high=shown.high,
            told=any(names),
        )
    ]


HEAD = ("Plan", "Harder", "Divergence, times", "Divergences (nats)", "Lost (points)")
"""Head of the rows of `plan_rows`; the ratio and both numbers are of the second model first."""


def plan_rows(first: str, second: str, joint: pd.DataFrame) -> list[tuple[str, ...]]:
    """One row for every plan that two models were measured with, as the columns of `HEAD`.

    Args:
        first: Key of a model.
        second: Key of another model of the run.
        joint: ``joint.csv``: whole plans.
    """
    looks, names = _judged((first, second), joint)
    return [_cells(look, name) for look, name in zip(looks, names, strict=True)]


def _judged(models: tuple[str, str], joint: pd.DataFrame) -> tuple[list[_Look], list[str]]:
    """Every look, and the model that is harder in it; empty where that cannot be told."""
    looks = _looks(models, joint)
    levels = adjusted([look.times.p for look in looks])
    names = [
        _harder_one(models, look) if level <= FALSE_SHARE else ""
        for look, level in zip(looks, levels, strict=True)
    ]
    return looks, names


def _cells(look: _Look, name: str) -> tuple[str, ...]:
    kls = [short(_interval(row, "kl").value) for row in look.rows[::-1]]
    losses = [f"{number(x.value)} ({span(x.low, x.high)})" for x in _losses(look)[1][::-1]]
    words = look.words.removeprefix("their ")
    if look.plan == "recommended":
        bits = dict.fromkeys(number(row["avg_bits"]) for row in look.rows[::-1])
        words = f"{words} ({' against '.join(bits)} bits)"
    return (
        words,
        name or "cannot be told",
        short_span(look.times.value, look.times.low, look.times.high),
        " against ".join(kls),
        " against ".join(losses),
    )


def _budgets(models: tuple[str, str], looks: Sequence[_Look], joint: pd.DataFrame) -> str:
    """That budgets count weights only, and what the plans take of the bit operations of 8 bits."""
    planned = next((look for look in looks if look.plan == "recommended"), None)
    if planned is None or "bitops_g" not in joint:
        return ""
    shares = []
    for model, row in zip(models, planned.rows, strict=True):
        wide = joint[(joint["model"] == model) & (joint["plan"] == "uniform-8")]["bitops_g"]
        if wide.empty or not float(wide.iloc[0]) > 0:
            return ""
        shares.append(f"{float(row['bitops_g']) / float(wide.iloc[0]):.2f} in {model}")
    return (
        "Budgets count weights only: of the bit operations of 8 bits everywhere, the plans within "
        f"the budget take {' and '.join(shares)}."
    )


def _uniform(form: NumberFormat) -> str:
    return f"uniform-{form.label}"


def _looks(models: tuple[str, str], joint: pd.DataFrame) -> list[_Look]:
    """The plans that both models were measured with, the widest first, the recommended one last."""
    rows = [
        {str(row["plan"]): row for row in joint[joint["model"] == model].to_dict("records")}
        for model in models
    ]
    both = [plan for plan in rows[0] if plan in rows[1]]
    plans = [(plan, _format_words(plan)) for plan in both if plan.startswith("uniform-")]
    plans += [
        (plan, "their best plans within the budget") for plan in both if plan == "recommended"
    ]
    found = []
    for plan, words in plans:
        a, b = rows[0][plan], rows[1][plan]
        kls = [_interval(row, "kl") for row in (a, b)]
        if min(kl.value for kl in kls) > 0 and all(math.isfinite(kl.value) for kl in kls):
            found.append(_Look(plan, words, (a, b), ratio(kls[0], kls[1])))
    return found


def _format_words(plan: str) -> str:
    return plan_name(plan).removesuffix(" everywhere")


def _interval(row: Mapping[str, Any], name: str) -> Interval:
    return Interval(*(float(row[f"{name}{end}"]) for end in ("", "_low", "_high")))


def _losses(look: _Look) -> tuple[str, list[Interval]]:
    """What both lose in points: accuracy, or agreement where one of them has no labels."""
    if all(math.isfinite(float(row["drop"])) for row in look.rows):
        return "drop", [_interval(row, "drop") for row in look.rows]
    agreements = [_interval(row, "agreement") for row in look.rows]
    return "disagreement", [Interval(100 - x.value, 100 - x.high, 100 - x.low) for x in agreements]


def _harder_one(models: tuple[str, str], look: _Look) -> str:
    """The model whose classes move more; empty where it loses less and losses can be told at all.

    The models see the same images; their losses are taken as independent, which makes intervals of
    differences rather too wide.
    """
    losses = _losses(look)[1]
    more = look.times.value > 1
    contrary = (losses[1].value - losses[0].value) * (1 if more else -1) < 0
    return "" if contrary and any(x.low > 0 for x in losses) else models[more]


def _headline(models: tuple[str, str], looks: Sequence[_Look], names: Sequence[str]) -> str:
    """``a is harder to quantize than b at 3 and 2 bits; at 8 and 4 bits it cannot be told``."""
    parts = []
    for model, other in (models, models[::-1]):
        mine = [look for look, name in zip(looks, names, strict=True) if name == model]
        if mine:
            parts.append(f"{model} is harder to quantize than {other} {_at(mine)}")
    unknown = [look for look, name in zip(looks, names, strict=True) if not name]
    if not parts:
        return (
            f"Whether {models[0]} or {models[1]} is harder to quantize cannot be told with any plan"
        )
    if unknown:
        parts.append(f"{_at(unknown)} it cannot be told")
    both = len({name for name in names if name}) > 1
    return ("Neither is harder throughout: " if both else "") + "; ".join(parts)


def _at(looks: Sequence[_Look]) -> str:
    """``at 8, 6 and 4 bits and with their best plans within the budget``."""
    uniform = [look.words for look in looks if look.plan != "recommended"]
    # "8 bits" and "6 bits" share their unit; other formats have names
    short_ones = [words.removesuffix(" bits") for words in uniform[:-1]]
    parts = []
    if uniform:
        bare = all(words.endswith(" bits") for words in uniform)
        parts.append(f"at {listed([*(short_ones if bare else uniform[:-1]), uniform[-1]])}")
    parts += [f"with {look.words}" for look in looks if look.plan == "recommended"]
    return " and ".join(parts)


def _reason(
    models: tuple[str, str],
    looks: Sequence[_Look],
    names: Sequence[str],
    additivity: pd.DataFrame,
) -> str:
    """Whether single modules or the way their errors add up makes one model harder.

    The divergence of the whole is the sum over modules times a factor, so the logarithm of the
    ratio of two models splits in two; said for the widest format where one is harder by `_FROM`,
    for each of the models that is harder somewhere.
    """
    return "".join(
        _reason_of(model, models, looks, names, additivity) for model in models if model in names
    )


def _reason_of(
    model: str,
    models: tuple[str, str],
    looks: Sequence[_Look],
    names: Sequence[str],
    additivity: pd.DataFrame,
) -> str:
    """Why one of two models is harder where it is."""
    told = [look for look, name in zip(looks, names, strict=True) if name == model]
    for look in told:
        if abs(math.log(look.times.value)) < math.log(_FROM):
            continue
        pair = (model, models[model == models[0]])
        rows = [
            additivity[(additivity["model"] == key) & (additivity["plan"] == look.plan)]
            for key in pair
        ]
        if any(part.empty for part in rows):
            continue
        (a, b) = (part.iloc[0] for part in rows)
        if min(a["sum_kl"], b["sum_kl"], a["ratio"], b["ratio"]) > 0:
            return f" {_reason_words(pair, _at([look]), a, b)}"
    return f" Why {model} is harder {_at(told)}: no reason was found."


def _reason_words(
    pair: tuple[str, str], words: str, a: Mapping[str, Any], b: Mapping[str, Any]
) -> str:
    sums, together = math.log(a["sum_kl"] / b["sum_kl"]), math.log(a["ratio"] / b["ratio"])
    part = together / (sums + together)
    if part >= _MOSTLY:
        why = f"errors of different modules of {pair[0]} reinforce each other more"
    elif part <= 1 - _MOSTLY:
        why = f"single modules of {pair[0]} are more sensitive"
    else:
        why = (
            f"single modules of {pair[0]} are more sensitive, and their errors reinforce each "
            "other more"
        )
    factors = [_interval(row, "ratio") for row in (a, b)]
    whole = " and ".join(f"{number(x.value)} times ({span(x.low, x.high)})" for x in factors)
    surely = (
        "" if factors[0].low > factors[1].high else "; these intervals overlap, so this is likely"
    )
    unsure = f"{surely}, not certain" if surely and part > 1 - _MOSTLY else ""
    return (
        f"Why, {words}: {why}. Alone, the modules of {pair[0]} add up to {short(a['sum_kl'])} "
        f"nats, those of {pair[1]} to {short(b['sum_kl'])}; quantized together they diverge "
        f"{whole} that sum{unsure}."
    )


def _where(model: str, comparison: Comparison) -> str:
    """The role, the half of the depth and the module that cause most of a model's divergence.

    The module at the exact middle belongs to neither half.

    Args:
        model: Its key.
        comparison: Modules of all models.
    """
    part = comparison.per_module
    part = part[part["model"] == model]
    kl = part["kl"].fillna(0.0).astype(float)
    total = float(kl.sum())
    if total <= 0:
        return ""
    roles = kl.groupby(part["role"]).sum().sort_values(ascending=False, kind="stable")
    sides = {"first": part["depth"] < 0.5, "second": part["depth"] > 0.5}
    early, late = (100 * float(kl[side].sum()) / total for side in sides.values())
    half, other = ("second", early) if late > early else ("first", late)
    worst = kl.idxmax()
    share = 100 * float(kl[worst]) / total
    apart = ""
    if share >= 100 * _ALONE:
        place = next((f", in the {name} half" for name, side in sides.items() if side[worst]), "")
        apart = f"; {part.loc[worst, 'module']} alone{place or ', at the middle'} {share:.0f} %"
    return (
        f" In {model} at {comparison.format.words}, {group_label(str(roles.index[0]))} modules "
        f"cause {100 * float(roles.iloc[0]) / total:.0f} % of the summed divergence; the {half} "
        f"half of the depth causes {max(early, late):.0f} %, the other {other:.0f} %{apart}."
    )
