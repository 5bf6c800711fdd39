"""Opens what a training reads: evaluation images, training images, bank and teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitsense.data import (
    GENERATED,
    Draw,
    ImageSet,
    check_labels,
    draw_images,
    labelled_for,
    open_source,
)
from vitsense.errors import UserInputError
from vitsense.models import LoadedModel, load_model
from vitsense.qat.crops import CropPolicy
from vitsense.qat.label_bank import LabelBank
from vitsense.qat.policy import resolved_policy
from vitsense.qat.request import QatRequest
from vitsense.qat.training_images import (
    CropReader,
    StepOrder,
    calibration_batches,
    collection_digest,
    training_source,
    usable_numbers,
)

_CALIBRATION_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingSet:
    """Everything one training reads, checked against each other."""

    evaluation: ImageSet
    reader: CropReader
    numbers: tuple[int, ...]
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
            self.reader, self.numbers, images=images, batch=_CALIBRATION_BATCH, seed=seed
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
    evaluation = _evaluation(request, model)
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
    numbers = usable_numbers(source, evaluation, request.images, recipe.seed)
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
        bank = _bank(request, model, digest, len(source))
        policy = bank.header.policy
    return TrainingSet(
        evaluation=evaluation,
        reader=CropReader(source, model.preprocessing),
        numbers=tuple(numbers),
        digest=digest,
        order=order,
        policy=policy,
        bank=bank,
        teacher=None if bank is not None else _teacher(request, model, device),
    )


def _evaluation(request: QatRequest, model: LoadedModel) -> ImageSet:
    source = open_source(request.eval_data, at_most=request.eval_images + request.eval_calibration)
    draw = Draw(
        evaluation=request.eval_images,
        calibration=request.eval_calibration,
        seed=request.eval_seed,
    )
    _, evaluation = draw_images(source, draw)
    if not labelled_for(source, model):
        return evaluation.without_labels()
    if source.kind != GENERATED:
        check_labels(source, model.num_classes, model.key)
    return evaluation


def _bank(request: QatRequest, model: LoadedModel, digest: str, images: int) -> LabelBank:
    assert request.labels is not None
    recipe = request.recipe
    bank = LabelBank.open(request.labels)
    where = request.data or GENERATED
    bank.check(data_digest=digest, images=images, classes=model.num_classes, where=where)
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
