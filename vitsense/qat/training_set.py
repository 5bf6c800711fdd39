"""Opens what a training reads: evaluation images, training images, bank and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitsense.data import (
    GENERATED,
    Draw,
    ImageSet,
    ImageSource,
    check_labels,
    draw_images,
    labelled_for,
    open_source,
)
from vitsense.errors import InputMissingError, UserInputError
from vitsense.models import LoadedModel, load_model
from vitsense.qat.crops import CropPolicy
from vitsense.qat.label_bank import LabelBank
from vitsense.qat.policy import resolved_policy
from vitsense.qat.request import QatRequest
from vitsense.qat.training_images import (
    CropReader,
    StepOrder,
    at_most,
    calibration_batches,
    calibration_pool,
    collection_digest,
    training_source,
    usable_numbers,
)

_CALIBRATION_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingSet:
    """Everything one training reads, checked against each other."""

    evaluation: ImageSet
    untrained: ImageSet
    """What the plan without training is calibrated on: drawn as the analysis draws."""
    notes: tuple[str, ...]
    """What a reader of the numbers must know about the images."""
    reader: CropReader
    numbers: tuple[int, ...]
    pool: Sequence[int]
    """Training images that first grids are chosen on, however many are trained on."""
    digest: str
    """Of the training images."""
    order: StepOrder
    policy: CropPolicy
    bank: LabelBank | None
    teacher: LoadedModel | None
    """Who answers live; None with a bank, or where labels alone are learned from."""

    def calibration(self, images: int, seed: int, device: torch.device) -> list[Tensor]:
        """Whole training images to choose first grids on."""
        batches = calibration_batches(
            self.reader, self.pool, images=images, batch=_CALIBRATION_BATCH, seed=seed
        )
        return [batch.to(device) for batch in batches]

    @property
    def teacher_reader(self) -> CropReader | None:
        """Crops as the live teacher wants them, where it wants them otherwise."""
        if self.teacher is None or self.teacher.preprocessing == self.reader.preprocessing:
            return None
        return CropReader(self.reader.source, self.teacher.preprocessing)


def open_training_set(
    request: QatRequest, model: LoadedModel, device: torch.device, ranks: int
) -> TrainingSet:
    """Open and check all images, the bank and the teacher.

    Raises:
        UserInputError: no or too few training images, wrong classes, or a foreign label bank.
        InputMissingError: something is not there.
    """
    recipe = request.recipe
    untrained, evaluation, notes = _drawn(request, model)
    source = training_source(request.data, request.images)
    if source.kind == GENERATED and model.resolved.source.value != "zoo":
        raise UserInputError(
            f"No training images for {model.key}: the generated characters suit the zoo's models "
            "only. Name a folder with --data."
        )
    labelled = labelled_for(source, model)
    if recipe.hard > 0:
        if not labelled:
            raise UserInputError(
                f"hard is {recipe.hard:g}, but {source.spec} has no labels: use hard=0."
            )
        check_labels(source, model.num_classes, model.key)
    elif unfit := _unfit(source, model):
        notes = (*notes, unfit)
    usable = usable_numbers(source, evaluation)
    numbers = at_most(request.images, usable, recipe.seed)
    order = StepOrder(images=len(numbers), per_step=recipe.batch // recipe.crops, seed=recipe.seed)
    if order.per_step % ranks:
        raise UserInputError(
            f"{order.per_step} images of a step cannot be shared by {ranks} processes; choose "
            "another batch."
        )
    digest = collection_digest(source)
    policy = resolved_policy(recipe.crop_scale, recipe.flip, source.kind)
    bank = None
    if request.labels is not None:
        bank = _bank(request, model, digest, source)
        policy = bank.header.policy
    return TrainingSet(
        evaluation=evaluation,
        untrained=untrained,
        notes=notes,
        reader=CropReader(source, model.preprocessing),
        numbers=tuple(numbers),
        pool=calibration_pool(source, usable),
        digest=digest,
        order=order,
        policy=policy,
        bank=bank,
        teacher=None if bank is not None else _teacher(request, model, device),
    )


def _drawn(request: QatRequest, model: LoadedModel) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Calibration and evaluation images as an analysis draws them, and what is to be said."""
    source = open_source(request.eval_data, at_most=request.eval_images + request.eval_calibration)
    draw = Draw(
        evaluation=request.eval_images,
        calibration=request.eval_calibration,
        seed=request.eval_seed,
    )
    other, notes = _calibration_source(request)
    calibration, evaluation = draw_images(source, draw, other)
    if not labelled_for(source, model):
        return calibration, evaluation.without_labels(), notes
    if source.kind != GENERATED:
        check_labels(source, model.num_classes, model.key)
    return calibration, evaluation, notes


def _calibration_source(request: QatRequest) -> tuple[ImageSource | None, tuple[str, ...]]:
    """Where the analysis took its calibration images from, if not from the evaluation data."""
    if request.calibration_data is None:
        return None, ()
    try:
        return open_source(request.calibration_data), ()
    except InputMissingError:
        return None, (
            f"The calibration images of the analysis ({request.calibration_data}) are not there; "
            "the plan without training is calibrated on images drawn from the evaluation data.",
        )


def _unfit(source: ImageSource, model: LoadedModel) -> str:
    """Says so where the classes of training images are not those of the model; else empty.

    Nothing is wrong with that where labels are not learned from, but it is seldom what was meant.
    """
    highest = max(source.labels)
    if highest < 0:
        return ""
    found = len(source.classes) if source.classes is not None else highest + 1
    if found == model.num_classes or (source.classes is None and found < model.num_classes):
        return ""
    return (
        f"The training images ({source.spec}) have {found} classes, {model.key} has "
        f"{model.num_classes}: they seem to be of another data set. Labels are not learned from, "
        "so training goes on; a model is best trained on images of what it was made for."
    )


def _bank(request: QatRequest, model: LoadedModel, digest: str, source: ImageSource) -> LabelBank:
    assert request.labels is not None
    recipe = request.recipe
    bank = LabelBank.open(request.labels)
    bank.check(
        data_digest=digest,
        images=len(source),
        classes=model.num_classes,
        where=source.spec,
        remedy=_fitting(bank, source),
    )
    stored = bank.header.policy
    asked = CropPolicy(
        scale=stored.scale if recipe.crop_scale is None else recipe.crop_scale,
        flip=stored.flip if recipe.flip is None else recipe.flip,
        ratio=stored.ratio,
        version=stored.version,
    )
    bank.check_policy(asked)
    if bank.header.crops < recipe.crops:
        raise UserInputError(
            f"{request.labels} has {bank.header.crops} crops of each image, a step wants "
            f"{recipe.crops}: use crops={bank.header.crops}, or make a larger bank."
        )
    return bank


def _fitting(bank: LabelBank, source: ImageSource) -> str:
    """What makes other images and a bank fit."""
    total = bank.header.total
    if source.kind != GENERATED:
        return f"make one with vitsense distill --data {source.spec}"
    again = f"make one with vitsense distill --images {len(source)}"
    if collection_digest(training_source(None, total)) == bank.header.data_digest:
        return f"{again}, or give --images {total}"
    return f"{again}, or give --data and --images as they were given to vitsense distill"


def _teacher(request: QatRequest, model: LoadedModel, device: torch.device) -> LoadedModel | None:
    if request.teacher is None:
        return model if request.recipe.teacher == "self" and request.recipe.hard < 1 else None
    teacher = load_model(request.teacher, device)
    if teacher.num_classes != model.num_classes:
        raise UserInputError(
            f"The teacher {teacher.key} has {teacher.num_classes} classes, {model.key} has "
            f"{model.num_classes}: use a teacher of the same classes."
        )
    return teacher
