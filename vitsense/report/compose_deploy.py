"""What to deploy: the headline of a model, and the smallest measured plan that is known to hold."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitsense.compare.change import ratio
from vitsense.compare.plan_names import plan_name
from vitsense.formats import format_of
from vitsense.plan.again import Bounds, setting_of
from vitsense.plan.measured import measured_of
from vitsense.report.document import Deployed
from vitsense.report.formatters import (
    MINUS,
    known,
    loss_of,
    number,
    short,
    span,
    visible,
)
from vitsense.runfolder import json_text
from vitsense.sensitivity.interval import Interval
from vitsense.verdict import (
    LITTLE,
    Judgement,
    images_to_tell,
    judged,
    loss_text,
    may_be_taken,
    nearly_as_small,
    smallest_holding,
)

if TYPE_CHECKING:
    import pandas as pd

    from vitsense.report.source import Source


def headline_of(joint: pd.DataFrame) -> str:
    """The verdict: what the best plan within the budget costs, beside equal bits everywhere.

    It is called recommended only where it is known to hold.

    Args:
        joint: ``joint.csv`` of the model. Without such a plan the headline is empty.
    """
    plans = _by_name(joint)
    chosen = plans.get("recommended")
    if chosen is None:
        return ""
    known_of = judged(joint)["recommended"]
    size = f"{chosen['avg_bits']:.1f} bits on average over its weights ({chosen['size_mb']:.2f} MB)"
    line = f"The {called(known_of)} {_DOES[known_of]} at {size}: it {_plainly(chosen)}"
    same = plans.get(_uniform(chosen))
    if same is not None:
        line += f"; {plan_name(same['plan'])} {_plainly(same, short_form=True)}"
    return visible(f"{line}.")


_DOES = {
    Judgement.HOLDS: "holds",
    Judgement.UNCERTAIN: "may or may not hold",
    Judgement.BREAKS: "breaks",
}


def called(known_of: Judgement | None) -> str:
    """What the plan that was searched for is called: recommended only where it is known to hold."""
    return "recommended plan" if known_of is Judgement.HOLDS else "best plan within the budget"


def deployed(joint: pd.DataFrame, there: int | None = None) -> list[str]:
    """What to deploy; where no plan is known to hold, what to do. Nothing without a plan.

    Args:
        joint: ``joint.csv`` of the model.
        there: Images that the data set has, if it is known.
    """
    plans = _by_name(joint)
    if "recommended" not in plans:
        return []
    best = smallest_holding(joint)
    if best is not None:
        lost = "" if best["plan"] == "recommended" else _lost(best)
        return [f"{_taken(best, plans)}, the smallest measured plan that holds.{lost}"]
    rows = sorted(filter(may_be_taken, plans.values()), key=lambda row: float(row["kl"]))
    if all(loss_of(row)[1] > LITTLE for row in rows):
        least = min(rows, key=lambda row: loss_of(row)[2])
        return [
            f"To deploy: none, every measured plan breaks. The one that loses least: "
            f"{_sized(least, plans)}.{_lost(least)}"
        ]
    near = next((row for row in rows if images_to_tell(row) is not None), rows[0])
    return [
        f"To deploy: no measured plan is known to hold. The nearest: {_sized(near, plans)}."
        f"{_lost(near)} {_more_images(near, there)}"
    ]


def instead(joint: pd.DataFrame) -> list[str]:
    """A plan of nearly the same size as the one to deploy that takes fewer bit operations.

    Args:
        joint: ``joint.csv`` of the model.
    """
    found, best = nearly_as_small(joint), smallest_holding(joint)
    if found is None or best is None or "recommended" not in set(joint["plan"]):
        return []
    row, known_of = found
    name = plan_name(str(row["plan"]))
    times = number(float(row["bitops_g"]) / float(best["bitops_g"]), 2)
    lost = loss_text(row) if not known(row["drop"]) else _plainly(row, short_form=True)
    ends = "holds, too" if known_of is Judgement.HOLDS else "may or may not hold"
    return [
        f"{name[:1].upper()}{name[1:]}, of nearly the same size "
        f"({row['size_mb']:.2f} MB) with {times} times its bit operations, {ends}: it {lost}."
    ]


def _more_images(row: Mapping[str, Any], there: int | None) -> str:
    images = images_to_tell(row)
    if images is None:
        return "More images would tell."
    beyond = f" (more than the {there:,} there are)" if there is not None and images > there else ""
    return (
        f"About {images:,} images{beyond} instead of {int(row['n']):,} would tell, four times in "
        "five, if it loses no more than it did here."
    )


def plan_to_deploy(source: Source, entry: Mapping[str, Any], plan_json: str) -> Deployed | None:
    """The plan to deploy as a file; None where there is none, or its bits are not kept.

    Args:
        source: The run.
        entry: One of the models of ``run.json``.
        plan_json: The run's own plan file of that model as it is.
    """
    key = entry["key"]
    joint = source.table("joint", key)
    best = smallest_holding(joint) if "recommended" in set(joint["plan"]) else None
    if best is None or "drop_model" not in entry:
        return None
    name = str(best["plan"])
    setting = setting_of(source.run, key, Bounds())
    made = measured_of(source.run, name, setting)
    if made is None:
        return None
    text = json_text(made.to_json())
    own = text == plan_json
    file = setting.path.name if own else f"{setting.path.stem}-{name}.json"
    model = "" if source.is_first(entry) else f" --model {shlex.quote(key)}"
    return Deployed(
        plan=plan_name(name),
        file=file,
        command=f"vitsense plan RUN{model} --measured {name} --out {shlex.quote(file)}",
        json="" if own else text,
        bits=tuple((m.name, format_of(m.format).label) for m in made.modules),
    )


def how_to_take(deployed: Deployed | None) -> list[str]:
    """Where the plan to deploy is, or which command writes it."""
    if deployed is None:
        return []
    if not deployed.json:
        return [f"It is {deployed.file} in the folder of this run."]
    return [f"This writes it (RUN: the folder of this run): {deployed.command}"]


def why_mixed(joint: pd.DataFrame) -> list[str]:
    """What the plan has over equal bits, and what it takes: divergence, and bit operations."""
    plans = _by_name(joint)
    chosen = plans.get("recommended")
    same = None if chosen is None else plans.get(_uniform(chosen))
    if chosen is None or same is None:
        return []
    known_of = judged(joint)["recommended"]
    plan = called(known_of)
    takes = f"takes {_operations(chosen, plans)}; bits on average count weights only"
    if known_of is Judgement.BREAKS:
        return [visible(f"The {plan} {takes}.")]
    nats = f"({short(float(chosen['kl']))} against {short(float(same['kl']))} nats)"
    times = ratio(_divergence(same), _divergence(chosen))
    words = plan_name(same["plan"])
    if times.high < 1:
        text = f"The {plan} is preferred to {words} because it diverges less {nats}"
        text += ", a finer measure than the loss"
    else:
        text = f"Whether the {plan} diverges less than {words} cannot be told {nats}"
    return [visible(f"{text}; it {takes}.")]


def _divergence(row: Mapping[str, Any]) -> Interval:
    return Interval(*(float(row[name]) for name in ("kl", "kl_low", "kl_high")))


def _operations(row: Mapping[str, Any], plans: Mapping[str, Mapping[str, Any]]) -> str:
    """Bit operations by those of equal bits: of as many bits on average, and of 8."""
    said = []
    for name in dict.fromkeys((_uniform(row), "uniform-8")):
        other = plans.get(name)
        if other is not None and float(other["bitops_g"]) > 0:
            times = float(row["bitops_g"]) / float(other["bitops_g"])
            said.append((number(times, 1 if times >= 1 else 2), plan_name(name)))
    if not said:
        return f"{number(float(row['bitops_g']), 2)} G bit operations"
    (first, words), *others = said
    more = "".join(f", {times} times those of {other}" for times, other in others)
    if first == "1.0":
        return f"as many bit operations as {words}{more}"
    return f"{first} times the bit operations of {words}{more}"


def _by_name(joint: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {str(row["plan"]): dict(row) for row in joint.to_dict("records")}


def _uniform(chosen: Mapping[str, Any]) -> str:
    """The plan of equal bits that is nearest in average bits."""
    return f"uniform-{round(chosen['avg_bits'])}"


def _plainly(row: Mapping[str, Any], *, short_form: bool = False) -> str:
    """What a plan loses, with the interval; near zero it says that nothing may be lost."""
    value, low, high = loss_of(row)
    if not known(row["drop"]):
        return loss_text(row)
    if low <= 0 <= high:
        verb, ends = "loses", f"{number(value)} points ({span(low, high)})"
        if number(value).startswith(MINUS):
            verb, ends = "gains", f"{number(-value)} points ({span(-high, -low)})"
        return f"{verb} {ends}" + ("" if short_form else ", which may be nothing")
    return loss_text(row)


def _taken(row: Mapping[str, Any], plans: Mapping[str, Mapping[str, Any]]) -> str:
    """The plan to deploy, and whether it is within the budget."""
    chosen = plans["recommended"]
    if row["plan"] == "recommended":
        return f"To deploy: the recommended plan, {_size(row)}"
    beyond = ", beyond the budget" if row["size_mb"] > chosen["size_mb"] else ""
    return f"To deploy{beyond}: {_sized(row, plans)}"


def _sized(row: Mapping[str, Any], plans: Mapping[str, Mapping[str, Any]]) -> str:
    """A plan's name and size; of one of mixed bits, their average and its operations, too."""
    name = plan_name(str(row["plan"]))
    if str(row["plan"]).startswith("uniform-"):
        return f"{name}, {row['size_mb']:.2f} MB"
    return f"{name} ({_size(row)}, {_operations(row, plans)})"


def _size(row: Mapping[str, Any]) -> str:
    return f"{row['avg_bits']:.1f} bits on average, {row['size_mb']:.2f} MB"


def _lost(row: Mapping[str, Any]) -> str:
    """What it loses, as a sentence."""
    text = loss_text(row) if not known(row["drop"]) else _plainly(row, short_form=True)
    return f" It {text}."
