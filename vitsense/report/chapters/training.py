"""The trainings of a model: what was predicted, what quantizing costs, what training reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitsense.decimals import listed, number, predicted, span
from vitsense.plan.plan import Plan
from vitsense.report.chapters.trained import (
    NONE,
    Kind,
    Planned,
    Trained,
    by_plan,
    drop_shown,
    gain_shown,
    named,
    shown,
    value_of,
    what,
)
from vitsense.report.chapters.training_chart import reached
from vitsense.report.chapters.training_curves import details
from vitsense.report.chapters.training_table import in_short, same_for_all, table_of
from vitsense.report.formatters import loss_of
from vitsense.report.section import Block, Caution, Finding, Section, Words
from vitsense.trainings import TrainingFolder, prediction_missed
from vitsense.verdict import Judgement, judged_alone

if TYPE_CHECKING:
    from vitsense.report.source import Source

TITLE = "Trained at these bits"
"""Name of the chapter."""


def training(source: Source, model: str) -> Section | None:
    """What training the model's quantized form gave; None where it was not trained."""
    number = source.keys.index(model)
    said = training_chapter(trainings_of(source, model), number, _own_plan(source, model))
    ended = _ended(source, model)
    if not ended:
        return said
    if said is None:
        return Section(key=f"training-{number}", title=TITLE, blocks=(ended[0],))
    return replace(said, blocks=(*said.blocks[:1], *ended, *said.blocks[1:]))


def training_chapter(
    found: Sequence[tuple[TrainingFolder, dict[str, Any]]],
    number: int,
    own: Mapping[str, str] | None = None,
) -> Section | None:
    """The chapter about finished trainings of one model; None without any.

    Args:
        found: Their folders and records.
        number: The model's colour.
        own: Module -> format of the run's plan, if there is one.
    """
    if not found:
        return None
    plans = by_plan(named(found), own)
    trainings = [one for plan in plans for one in plan.trainings]
    blocks: list[Block] = [_finding(plan) for plan in plans]
    blocks += _cautions(trainings)
    if len(trainings) > 1:
        blocks.append(Words(text=same_for_all(trainings)))
    blocks += [table_of(plans), reached(plans, number)]
    chosen, why = _in_detail(plans)
    if len(trainings) > 1:
        blocks += [in_short(trainings), Words(text=why)]
    blocks += details(chosen.folder, chosen.record, number, chosen.name)
    return Section(key=f"training-{number}", title=TITLE, blocks=tuple(blocks))


def trainings_of(source: Source, model: str) -> list[tuple[TrainingFolder, dict[str, Any]]]:
    """Finished trainings of the model's weights, by name."""
    return [pair for pair in _of_model(source, model) if pair[1]["status"] == "complete"]


def _of_model(source: Source, model: str) -> list[tuple[TrainingFolder, dict[str, Any]]]:
    entry = next(entry for entry in source.entries if entry["key"] == model)
    found = [(folder, folder.read_record()) for folder in source.trainings]
    return [pair for pair in found if pair[1]["model"]["weights_digest"] == entry["weights_digest"]]


_ENDS = {
    "failed": "ended with an error, as a learning rate that is too high gives",
    "interrupted": "was interrupted; the same command continues it",
    "running": "is not finished",
}


def _ended(source: Source, model: str) -> list[Caution]:
    """Trainings that have no result."""
    found = [pair for pair in _of_model(source, model) if pair[1]["status"] in _ENDS]
    texts = [f"Training {one.name} {_ENDS[one.record['status']]}." for one in named(found)]
    return [Caution(texts=tuple(texts))] if texts else []


def training_lines(source: Source, model: str) -> list[str]:
    """For the first screen: what the training is worth that gained and loses least."""
    found = named(trainings_of(source, model))
    gained = [one for one in found if one.kind is Kind.GAINED and one.labelled]
    if not gained:
        return []
    best = min(gained, key=lambda one: (loss_of(one.record["last"])[0], one.bits))
    loss, low, high = loss_of(best.record["last"])
    lost = f"{number(loss)} points lost ({span(low, high)})"
    gain = "" if best.gain is None else f", {gain_shown(best)} points against not trained"
    picked = f" Picked among {len(found)} trainings on the evaluation images." * (len(found) > 1)
    return [
        f"Trained at {best.size} ({best.name}): {shown(best.record['last'])} top-1, {lost}{gain}; "
        f"it {_JUDGED[judged_alone(low, high)]}. See {TITLE}.{picked}"
    ]


_JUDGED = {
    Judgement.HOLDS: "holds",
    Judgement.BREAKS: "still breaks",
    Judgement.UNCERTAIN: "may or may not hold",
}


def training_warnings(source: Source) -> list[str]:
    """For the first screen: that trainings made a plan of the run worse."""
    found = []
    for model in source.keys:
        plans = by_plan(named(trainings_of(source, model)), _own_plan(source, model))
        for plan in plans:
            worse = [one.name for one in plan.trainings if one.kind is Kind.WORSE]
            if not plan.of_the_run or not worse:
                continue
            number = len(plan.trainings)
            which = f"Training {worse[0]}" if number == 1 else f"{len(worse)} of {number} trainings"
            names = "" if number == 1 else f" ({listed(worse)})"
            found.append(
                f"{which} made the plan of {model} worse{names}: do not use what came "
                f"out; see {TITLE}."
            )
    return found


def _own_plan(source: Source, model: str) -> dict[str, str] | None:
    entry = next(entry for entry in source.entries if entry["key"] == model)
    path = source.run.plan_path(None if source.is_first(entry) else model)
    return Plan.load(path).formats if path.is_file() else None


def _finding(plan: Planned) -> Finding:
    """What training was worth for one plan."""
    if len(plan.trainings) == 1:
        return _of_one(plan)
    kinds = [one.kind for one in plan.trainings]
    words = {
        Kind.GAINED: "gained",
        Kind.SAME: "made no difference that can be told from zero",
        Kind.WORSE: "made it worse",
        Kind.UNKNOWN: "cannot be judged (no paired gain was recorded)",
    }
    said = [f"{kinds.count(kind)} {text}" for kind, text in words.items() if kind in kinds]
    if Kind.WORSE in kinds:
        worse = listed([one.name for one in plan.trainings if one.kind is Kind.WORSE])
        said = [text.replace(words[Kind.WORSE], f"{words[Kind.WORSE]} ({worse})") for text in said]
    sentences = [_untrained(plan)]
    measured = [one for one in plan.trainings if one.gain is not None]
    gained = [one for one in measured if one.kind is Kind.GAINED]
    if gained:
        best = max(gained, key=lambda one: one.gain or (0.0,))
        sentences.append(
            f"The largest gain is that of {best.name}: {gain_shown(best)} points, to "
            f"{shown(best.record['last'])}; it was picked among {len(measured)} on the evaluation "
            "images, which flatters."
        )
    if Kind.UNKNOWN in kinds:
        sentences.append(_without_gain([o for o in plan.trainings if o.kind is Kind.UNKNOWN]))
    return Finding(
        headline=f"{_capital(plan.said)}: of {len(kinds)} trainings {', '.join(said)}",
        numbers=" ".join(filter(None, sentences)),
    )


def _of_one(plan: Planned) -> Finding:
    (one,) = plan.trainings
    worth = str(one.record.get("worth", {}).get("text", ""))
    first, _, rest = worth.partition(". ")
    left = drop_shown(one.record["last"])
    lost = f", {left} points lost" if left != NONE else ""
    last = f"Trained, {one.size}: {what(one)} {shown(one.record['last'])}{lost}."
    if not worth:
        words = {
            Kind.GAINED: "gained: the intervals without and with training do not overlap",
            Kind.WORSE: "made it worse: the intervals without and with training do not overlap",
        }
        reaches = f"reaches {shown(one.record['last'])} {what(one)}"
        first = f"Training {words.get(one.kind, reaches)}"
        rest = "" if one.kind in words else _without_gain([one])
    advice = "" if one.warnings else str(one.record.get("worth", {}).get("advice", ""))
    first = first.removesuffix(".").replace("Training", f"training {one.name}", 1)
    return Finding(
        headline=f"{_capital(plan.said)}: {first}",
        numbers=" ".join(filter(None, (rest, _untrained(plan), last, advice))),
    )


def _untrained(plan: Planned) -> str:
    """The plan without training, and whether that is what the analysis measured."""
    row, first = plan.untrained, plan.trainings[0]
    if row is None:
        values = [value_of(o.record["ptq"]) for o in plan.trainings if o.record["ptq"] is not None]
        if not values:
            return ""
        low, high = min(v[0] for v in values), max(v[0] for v in values)
        return (
            f"Not trained, {what(first)} is {low:.1f} to {high:.1f} %: these trainings "
            "calibrated it on images of their own."
        )
    loss = f", {drop_shown(row)} points lost" if row.get("drop") is not None else ""
    if prediction_missed(first.record):
        told = first.record["plan"]["predicted"]
        band = predicted(told["drop"], told["low"], told["high"])
        loss += f" (predicted were {band}, which was wrong; measure plans of as few bits)"
    text = f"Not trained: {what(first)} {shown(row)}{loss}"
    analysis = first.record.get("analysis")
    if not analysis:
        return f"{text}."
    if analysis["equal"]:
        return f"{text}, as the analysis measured it."
    said = f" {analysis['said']}" if analysis.get("said") else ""
    if analysis.get("drop") is None:
        return f"{text}.{said}"
    before = drop_shown(analysis)
    return f"{text}; the analysis measured {before} points lost.{said}"


def _without_gain(those: Sequence[Trained]) -> str:
    names = listed([one.name for one in those])
    return (
        f"{names}: trained by an earlier version, which kept no difference on the same images; "
        "train again to have it."
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _cautions(trainings: Sequence[Trained]) -> list[Caution]:
    """What the records warn of; trainings that made it worse come first."""
    order = sorted(trainings, key=lambda one: one.kind is not Kind.WORSE)
    texts = [f"Training {one.name}: {text}" for one in order for text in one.warnings]
    return [Caution(texts=tuple(texts))] if texts else []


def _in_detail(plans: Sequence[Planned]) -> tuple[Trained, str]:
    """The training that is shown in detail, and why: one that gained, else of the first plan."""
    gained = [one for plan in plans for one in plan.trainings if one.kind is Kind.GAINED]
    unharmed = [one for one in plans[0].trainings if one.kind is not Kind.WORSE]
    those = gained or unharmed or list(plans[0].trainings)
    several = len(those) > 1
    if gained:
        whose = "of those that gained" if several else "that gained"
    else:
        whose = f"of {plans[0].said}" + " that made nothing worse" * bool(unharmed)
    chosen = max(those, key=lambda one: (int(one.record["steps"]), one.name))
    which = "the one with most steps" if several else "the only one"
    return chosen, f"What follows is about training {chosen.name} alone, {which} {whose}."
