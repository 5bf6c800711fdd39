"""The run in a few sentences, from its tables. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from vitsense.formats import NumberFormat, format_of
from vitsense.schemas import RATED, STATISTIC_WORDS
from vitsense.sensitivity.interval import CONFIDENCE, proportion

if TYPE_CHECKING:
    import pandas as pd

EXPLAINED = 12
"""Modules whose causes are looked for, the most sensitive first."""


LITTLE = 1.0
"""Percentage points that are little to lose."""

_NEARLY = 0.02, 0.05  # by how much of the size a plan may be another: any, and of equal bits

_OFTEN = 0.8  # how often so many images as are asked for shall tell


class Judgement(str, Enum):
    """What is known of a whole plan."""

    HOLDS = "holds"
    UNCERTAIN = "uncertain"
    BREAKS = "breaks"


def judged(joint: pd.DataFrame) -> dict[str, Judgement]:
    """Every whole plan of one model, by its name: whether it loses at most one point.

    The plan that is taken is the best of many, so each interval on its own would find a plan that
    holds too often. Divergence, which is measured far more finely than accuracy, gives an order: a
    plan holds if its whole interval is at or below one point, and that of every plan that diverges
    less is, too; or else by itself, with an interval that is as wide as it must be for all plans
    together. Either is at the level of one interval, 2.5 %, however many plans there are (of 11
    plans that lose 1.5 points or more, one was taken in under 5 % of drawn runs: ARCHITECTURE.md).
    Plans with random formats are measured to learn from and never taken.

    Args:
        joint: ``joint.csv`` of the model.

    Source: fixed sequence of tests after Maurer, Hothorn and Lehmacher 1995 (each at the full
    level, the first that fails ends it); Bonferroni for those beyond. Deviation: the order is
    measured on the same images.
    """
    rows = joint.to_dict("records")
    taken = [row for row in rows if may_be_taken(row)]
    alone = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / max(len(taken), 1))
    found, unbroken = {}, True
    for row in sorted(taken, key=lambda row: float(row["kl"])):
        _, low, high = loss_of(row)
        unbroken = unbroken and high <= LITTLE
        if unbroken or _most(row, alone) <= LITTLE:
            found[str(row["plan"])] = Judgement.HOLDS
        else:
            breaks = low > LITTLE
            found[str(row["plan"])] = Judgement.BREAKS if breaks else Judgement.UNCERTAIN
    for row in rows:
        breaks = loss_of(row)[1] > LITTLE
        found.setdefault(str(row["plan"]), Judgement.BREAKS if breaks else Judgement.UNCERTAIN)
    return found


def judged_alone(low: float, high: float) -> Judgement:
    """A loss by its own interval, points: of one that was not picked among others."""
    if high <= LITTLE:
        return Judgement.HOLDS
    return Judgement.BREAKS if low > LITTLE else Judgement.UNCERTAIN


def may_be_taken(row: Mapping[str, Any]) -> bool:
    """Whether a row of ``joint.csv`` is a plan that somebody would deploy."""
    return not str(row["plan"]).startswith(("random-", "only-"))


def smallest_holding(joint: pd.DataFrame) -> dict[str, Any] | None:
    """The row of the smallest measured plan that holds; None where none does."""
    known = judged(joint)
    rows = [row for row in joint.to_dict("records") if known[row["plan"]] is Judgement.HOLDS]
    # as it was solved, a plan is within the same budget as the one that the search made of it
    rows = [row for row in rows if row["plan"] != "solved"]
    return min(rows, key=lambda row: (float(row["size_mb"]), float(row["kl"])), default=None)


def nearly_as_small(joint: pd.DataFrame) -> tuple[dict[str, Any], Judgement] | None:
    """What might be deployed instead of the smallest plan that holds, with fewer bit operations.

    A plan that holds and is of the same size (within 2 %), or one of equal bits everywhere, which
    is simpler to run, within 5 % and not known to break. Rather one that holds; then the one with
    the fewest operations.
    """
    best = smallest_holding(joint)
    if best is None:
        return None
    known, found = judged(joint), []
    for row in filter(may_be_taken, joint.to_dict("records")):
        name, times = str(row["plan"]), float(row["size_mb"]) / float(best["size_mb"])
        equal = name.startswith("uniform-")
        if (
            name == best["plan"]
            or abs(times - 1) > _NEARLY[equal]
            or known[name] is Judgement.BREAKS
        ):
            continue
        holds = known[name] is Judgement.HOLDS
        # where operations were not counted they are all 0; what does not hold must be simpler
        if float(row["bitops_g"]) < float(best["bitops_g"]) and (holds or equal):
            found.append((not holds, float(row["bitops_g"]), name, row))
    if not found:
        return None
    row = min(found, key=lambda each: each[:3])[-1]
    return row, known[str(row["plan"])]


def images_to_tell(row: Mapping[str, Any]) -> int | None:
    """About how many images tell four times in five that a plan holds, if it loses what it did.

    From the images whose class was lost or gained. A gain counts as no loss. None where more than
    little was lost: then no number of images is known to tell it.
    """
    value, low, high = loss_of(row)
    value = max(value, 0.0)
    if value >= LITTLE:
        return None
    normal = NormalDist()
    usual = normal.inv_cdf(0.5 + CONFIDENCE / 2)
    spread = (high - low) / 2 / usual * math.sqrt(float(row["n"]))
    images = ((usual + normal.inv_cdf(_OFTEN)) * spread / (LITTLE - value)) ** 2
    digits = max(len(str(int(images))) - 2, 0)  # two digits tell enough
    return max(int(round(images, -digits)), 1)


def loss_of(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Loss with its interval: the drop, or 100 minus agreement where there are no labels."""
    if row["drop"] is not None and not math.isnan(float(row["drop"])):
        return float(row["drop"]), float(row["drop_low"]), float(row["drop_high"])
    return (
        100 - float(row["agreement"]),
        100 - float(row["agreement_high"]),
        100 - float(row["agreement_low"]),
    )


def _most(row: Mapping[str, Any], z: float) -> float:
    """Upper end of the loss, with another quantile than that of the interval of the table."""
    if row["drop"] is not None and not math.isnan(float(row["drop"])):
        _, low, high = loss_of(row)  # which lie as far below their middle as above it
        usual = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
        return (low + high) / 2 + (high - low) / 2 * z / usual
    n = float(row["n"])
    return 100 * (1 - proportion(n * float(row["agreement"]) / 100, n, z=z).low)


def verdict(
    model: str,
    fp: Mapping[str, Any] | None,
    sensitivity: pd.DataFrame,
    joint: pd.DataFrame,
) -> list[str]:
    """Sentences about one model; numbers with their 95 % intervals.

    Args:
        model: Its key.
        fp: Full-precision accuracy (top1, top1_low, top1_high, n), None without labels.
        sensitivity: ``sensitivity.csv`` of the model.
        joint: ``joint.csv`` of the model.
    """
    lines = []
    if fp is not None:
        lines.append(
            f"{model}: full precision {fp['top1']:.1f} % top-1 "
            f"({fp['top1_low']:.1f} to {fp['top1_high']:.1f}, {fp['n']} images)."
        )
    plans = joint.set_index("plan")
    for name, words in (("uniform-8", "8 bits everywhere"), ("uniform-4", "4 bits everywhere")):
        if name in plans.index:
            lines.append(f"{model}: {words} {loss_text(plans.loc[name])}.")
    if "recommended" in plans.index:
        known_of = judged(joint)["recommended"]
        holds = known_of is Judgement.HOLDS
        called = "the recommended plan" if holds else "the best plan within the budget"
        chosen = plans.loc["recommended"]
        lines.append(f"{model}: {called} {_of_plan(chosen)}: {known_of.value}.")
        lines.append(f"{model}: {_to_deploy(joint)}.")
    return [*lines, *(f"{model}: {line}" for line in worst_text(sensitivity))]


def _to_deploy(joint: pd.DataFrame) -> str:
    """The smallest measured plan that holds, or what to do where none is known to."""
    best = smallest_holding(joint)
    if best is None:
        rows = filter(may_be_taken, joint.to_dict("records"))
        known = [(float(row["kl"]), images_to_tell(row)) for row in rows]
        counts = [images for _, images in sorted(known, key=lambda pair: pair[0]) if images]
        more = f"; about {counts[0]:,} images would tell" if counts else ""
        return f"no measured plan is known to hold{more}"
    if best["plan"] == "recommended":
        return "to deploy: the recommended plan, the smallest measured one that holds"
    kind, _, value = str(best["plan"]).partition("-")
    form = format_of(int(value) if value.isdecimal() else value).words if kind == "uniform" else ""
    name = f"{form} everywhere" if form else "a mixed plan"
    return f"to deploy: {name} {_of_plan(best)}, the smallest measured plan that holds"


def worst_text(sensitivity: pd.DataFrame) -> list[str]:
    """The modules that cost most, in a sentence; none where nothing was rated."""
    worst = worst_modules(sensitivity)
    if worst is None:
        return []
    names, share, form = worst
    how = "estimated" if (sensitivity["status"] == "estimated").any() else "summed"
    return [
        f"{len(names)} modules cause {share:.0f} % of the {how} divergence at {form.words}: "
        f"{', '.join(names)}."
    ]


def _of_plan(row: Mapping[str, Any]) -> str:
    return f"({row['avg_bits']:.2f} bits on average, {row['size_mb']:.2f} MB) {loss_text(row)}"


def loss_text(row: Mapping[str, Any]) -> str:
    """``loses 1.2 points (0.4 to 2.0)``, or agreement where there are no labels."""
    if row["drop"] is not None and not math.isnan(float(row["drop"])):
        value, low, high = (float(row[k]) for k in ("drop", "drop_low", "drop_high"))
        if low <= 0 <= high:
            return f"has a drop of {_points(value, low, high)}, not distinguishable from zero"
        if value < 0:
            return f"gains {_points(-value, -high, -low)}"
        return f"loses {_points(value, low, high)}"
    return (
        f"keeps the class of {float(row['agreement']):.1f} % of the images "
        f"({float(row['agreement_low']):.1f} to {float(row['agreement_high']):.1f})"
    )


def _points(value: float, low: float, high: float) -> str:
    text = f"{value + 0.0:.1f} points ({low + 0.0:.1f} to {high + 0.0:.1f})"
    return text.replace("-0.0", "0.0").replace("-", "\u2212")


def decisive_format(sensitivity: pd.DataFrame) -> NumberFormat | None:
    """Where modules are compared: at 4 bits if measured, else in the format nearest to it.

    Integers go before other formats of as many bits.
    """
    forms = [format_of(name) for name in sorted(set(sensitivity["format"]))]
    if not forms:
        return None
    return min(forms, key=lambda f: (abs(f.effective_bits - 4), not f.is_integer, f.effective_bits))


def worst_modules(
    sensitivity: pd.DataFrame, most: int = 5
) -> tuple[list[str], float, NumberFormat] | None:
    """The modules with the largest divergence in the decisive format, and their share of all."""
    good = sensitivity[sensitivity["status"].isin(RATED) & (sensitivity["part"] == "both")]
    form = decisive_format(good)
    if form is None:
        return None
    kl = good[good["format"] == form.name].set_index("module")["kl"].astype(float)
    if kl.sum() <= 0:
        return None
    top = kl.sort_values(ascending=False, kind="stable")[:most]
    return list(top.index), 100 * float(top.sum() / kl.sum()), form


def best_predictor(model: str, predictors: pd.DataFrame) -> str | None:
    """What ranked the modules most like the measured divergence did; None if nothing was compared.

    Args:
        model: Its key.
        predictors: ``predictors.csv`` of the model.
    """
    compared = predictors[(predictors["scope"] == "all") & (predictors["target"] == "kl")]
    form = decisive_format(compared)
    if form is None:
        return None
    rows = compared[compared["format"] == form.name]
    order = rows["spearman"].abs().sort_values(ascending=False, kind="stable").index
    first, *others = rows.loc[order].to_dict("records")
    cheap = next((row for row in others if not _estimates(row)), None)
    line = f"{model}: the sensitivity at {form.words} is ranked best by {_correlation(first)}"
    if _estimates(first) and cheap is not None:
        line += f"; of the statistics of tensors, by {_correlation(cheap)}"
    return f"{line}."


def _estimates(row: Mapping[str, Any]) -> bool:
    return str(row["statistic"]) in ("fisher_kl", "hessian_kl", "hessian_trace")


def _correlation(row: Mapping[str, Any]) -> str:
    name = STATISTIC_WORDS.get(str(row["statistic"]), str(row["statistic"]))
    numbers = (f"{float(row[k]):.2f}".replace("-", "\u2212") for k in ("spearman", "low", "high"))
    value, low, high = numbers
    return f"the {name} (rank correlation {value}, {low} to {high}, {int(row['n'])} modules)"
