"""From the folder of a training, or of an ablation, to the document about it alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from vitsense.decimals import counted, number, span
from vitsense.report.chapters.ablation import ablation_chapter, finding
from vitsense.report.chapters.training import training_chapter
from vitsense.report.document import Card, ModelPart, Status
from vitsense.report.section import Caution, Section
from vitsense.report.training_document import TrainingDocument
from vitsense.trainings import AblationFolder, TrainingFolder, budget_words

Record = Mapping[str, Any]

_WORTH = {
    "gained": (Status.GOOD, "training helped"),
    "same": (Status.CAUTION, "no difference that can be told"),
    "worse": (Status.BAD, "training made it worse"),
}


def compose_training(folder: TrainingFolder | AblationFolder) -> TrainingDocument:
    """Everything the report of a training by itself says.

    Args:
        folder: A finished training, or an ablation.

    Raises:
        UserInputError: a file of it is damaged.
    """
    record = folder.read_record()
    part = _training(folder, record) if isinstance(folder, TrainingFolder) else _ablation(folder)
    what = "training" if isinstance(folder, TrainingFolder) else "ablation"
    return TrainingDocument(
        title=f"{part.key}: {what} {folder.name}",
        question=(
            f"What does training give {part.key} at {record['plan']['budget'] or 'these bits'}?"
            if isinstance(folder, TrainingFolder)
            else f"Which part of the recipe helps {part.key}?"
        ),
        warnings=tuple(record.get("warnings") or ()) if what == "training" else (),
        models=(part,),
        method=tuple(_method(record)),
        commands=tuple(shlex.join(command) for command in record.get("commands", ())),
        files=_FILES[what],
        words=_WORDS,
    )


def _training(folder: TrainingFolder, record: Record) -> ModelPart:
    said = training_chapter([(folder, dict(record))], 0)
    assert said is not None
    # what it warns of stands above
    blocks = tuple(block for block in said.blocks if not isinstance(block, Caution))
    worth = record.get("worth") or {}
    notes = [note for note in record.get("notes") or () if note not in record.get("warnings", ())]
    return _part(
        record,
        cards=tuple(_cards(record)),
        headline=worth.get("text", ""),
        verdict=(*filter(None, [worth.get("advice")]), *notes),
        chapter=replace(said, blocks=blocks),
    )


def _ablation(folder: AblationFolder) -> ModelPart:
    record = folder.read_record()
    said = ablation_chapter([(folder, record)], 0)
    assert said is not None
    rows = folder.read_table().to_dict("records")
    return _part(
        record,
        cards=(),
        headline=f"{finding(rows)}.",
        verdict=(budget_words(record),),
        chapter=said,
    )


def _part(
    record: Record,
    *,
    cards: tuple[Card, ...],
    headline: str,
    verdict: tuple[str, ...],
    chapter: Section,
) -> ModelPart:
    return ModelPart(
        key=record["model"]["key"],
        family="",
        cards=cards,
        headline=headline,
        verdict=verdict,
        chapters=(chapter,),
    )


def _cards(record: Record) -> Iterator[Card]:
    """Accuracy of full precision, of the plan without training, and after it."""
    labelled = record["last"].get("top1") is not None
    key, name = ("top1", "top-1") if labelled else ("agreement", "agreement with full precision")
    rows = [
        (f"Full precision, {name}", record["fp"] if labelled else None),
        (f"Quantized, not trained, {name}", record["ptq"]),
        (f"Trained, last step, {name}", record["last"]),
    ]
    for label, row in rows:
        if row is None:
            continue
        status, word = Status.PLAIN, ""
        if row is record["last"]:
            status, word = _WORTH.get((record.get("worth") or {}).get("kind", ""), (status, word))
        yield Card(
            label=label,
            value=f"{number(row[key])} %",
            detail=f"{span(row[f'{key}_low'], row[f'{key}_high'])}, {counted(row['n'], 'image')}",
            status=status,
            word=word,
        )


def _method(record: Record) -> Iterator[tuple[str, str]]:
    evaluation, data, origin = record["evaluation"], record["data"], record["origin"]
    yield "Model", f"{origin['name']}, weights {record['model']['weights_digest']}"
    if origin.get("checkpoint"):
        yield "Checkpoint", str(origin["checkpoint"])
    yield "Evaluation", f"{counted(evaluation['images'], 'image')} of {evaluation['spec']}"
    yield "Training", f"{counted(data['images'], 'image')} of {data['spec']}"
    yield (
        "Gain",
        "trained minus quantized without training on the same images, percentage points; interval "
        "for paired proportions after Agresti and Min (2005), 95 %",
    )
    yield (
        "Divergence",
        "Kullback-Leibler divergence of the quantized from the full-precision class probabilities, "
        "mean over images, nats",
    )
    made = record["provenance"]
    yield "Machine", f"{record['device']}; {made['machine']['machine']}"
    yield "Versions", ", ".join(f"{k} {v}" for k, v in made["versions"].items())


_FILES = {
    "training": (
        ("qat.json", "what was done, and what came out"),
        ("metrics.jsonl", "every logged step, evaluation and look at the weights"),
        ("last.safetensors, best.safetensors", "the trained model"),
        ("movement.csv, sensitivities.csv", "how weights moved; modules alone before and after"),
        ("training.json", "everything in this report, as data"),
    ),
    "ablation": (
        ("ablation.csv, ablation.md", "a row per variant"),
        ("VARIANT-seedN", "the training of each variant and seed"),
        ("training.json", "everything in this report, as data"),
    ),
}

_WORDS = (
    ("plan", "the bits of every module of a model"),
    ("recipe", "how it is trained: rates, losses, what the quantizers learn"),
    ("quantized, not trained", "the plan's bits on the weights of full precision"),
    ("last, best", "the model after the last step, and after the best of all evaluations"),
    ("oscillation", "a weight that flips between two neighbouring codes in training"),
)
