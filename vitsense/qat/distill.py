"""Run a teacher once over many crops of every image, and keep its answers in a label bank."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vitsense.data import ImageSource
from vitsense.errors import MeasurementError, UserInputError
from vitsense.in_use import sole_writer_of
from vitsense.models import LoadedModel
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.qat.bank_file import (
    BankHeader,
    create_file,
    records_of,
    shard_path,
    written,
)
from vitsense.qat.crops import DEFAULT_POLICY, Crop, CropPolicy
from vitsense.qat.training_images import CropReader, collection_digest

_FLUSH_EVERY = 64  # images between two visits to the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """How many crops, and how they are drawn."""

    crops: int = 100
    top: int = 5
    policy: CropPolicy = DEFAULT_POLICY
    seed: int = 0
    batch: int = 64
    shard: tuple[int, int] = (0, 1)
    """This writer's number, and how many there are."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserInputError: one of them is out of range.
        """
        limits = (("--crops", self.crops), ("--top", self.top), ("--batch-size", self.batch))
        for name, value in limits:
            if value < 1:
                raise UserInputError(f"{name} is {value}: it must be at least 1.")
        number, count = self.shard
        if not 0 <= number < count:
            raise UserInputError(
                f"--shard is {number}/{count}: write the number of this writer, from 0, and how "
                "many there are, for example 0/4."
            )


def distill(
    teacher: LoadedModel,
    source: ImageSource,
    out: Path,
    settings: DistillSettings,
    device: torch.device,
    progress: Progress = NO_PROGRESS,
) -> Path:
    """Write the bank, or this writer's shard of it; an unfinished one is continued.

    Args:
        teacher: Any classifier of the classes the student will have.
        source: The images, all of them.
        out: The bank's file; a shard adds its number.
        settings: Crops, classes kept, shard.
        device: Where the teacher runs.
        progress: Told of every image.

    Raises:
        UserInputError: ``out`` holds another bank, or cannot be written.
        InUseError: another process writes the bank.
        MeasurementError: the teacher's answers are not finite.
    """
    first, last = _run(len(source), settings.shard)
    header = BankHeader(
        data_digest=collection_digest(source),
        first=first,
        images=last - first,
        total=len(source),
        crops=settings.crops,
        top=min(settings.top, teacher.num_classes),
        classes=teacher.num_classes,
        policy=settings.policy,
        seed=settings.seed,
        teacher={
            "name": teacher.resolved.name,
            "weights_digest": teacher.digest,
            "input_size": list(teacher.preprocessing.input_size),
        },
    )
    path = shard_path(out, *settings.shard)
    with sole_writer_of(path, progress):
        _write(teacher, source, path, header, settings, device, progress)
    return path


def _write(
    teacher: LoadedModel,
    source: ImageSource,
    path: Path,
    header: BankHeader,
    settings: DistillSettings,
    device: torch.device,
    progress: Progress,
) -> None:
    file = create_file(path, header)
    known = int((file.index["image"] != 0).sum())
    if known:
        progress.note(f"Continuing {path}: {known} of {header.images} images have labels.")
    reader = CropReader(source, teacher.preprocessing)
    model = teacher.module.eval()
    progress.start(header.images, f"{teacher.key} labels")
    with written(file):
        for count, number in enumerate(range(header.first, header.first + header.images)):
            if not file.has(number):
                crops = drawn_crops(reader, number, header)
                rows = records_of(
                    crops, _answers(model, reader, number, crops, settings, device), header.top
                )
                file.put(number, reader.image(number)[0], rows)
                if count % _FLUSH_EVERY == _FLUSH_EVERY - 1:
                    file.flush()
            progress.advance(1, source.name(number))


def drawn_crops(reader: CropReader, number: int, header: BankHeader) -> list[Crop]:
    """The crops of an image, from the bank's seed."""
    return [
        reader.draw(number, header.policy, (header.seed, 3, number, place))
        for place in range(header.crops)
    ]


def _answers(
    model: nn.Module,
    reader: CropReader,
    number: int,
    crops: list[Crop],
    settings: DistillSettings,
    device: torch.device,
) -> torch.Tensor:
    """Class probabilities of every crop, `(M, C)`."""
    found = []
    with torch.no_grad():
        for start in range(0, len(crops), settings.batch):
            images = reader.cut(number, crops[start : start + settings.batch]).to(device)
            found.append(model(images).float().softmax(1).cpu())
    answers = torch.cat(found)
    if not bool(torch.isfinite(answers).all()):
        raise MeasurementError(
            f"The teacher's answer for image {number} is not finite; check its weights."
        )
    return answers


def _run(total: int, shard: tuple[int, int]) -> tuple[int, int]:
    """First and one past the last image of a shard.

    Raises:
        UserInputError: more shards than images.
    """
    number, count = shard
    if count > total:
        raise UserInputError(f"{count} shards for {total} images: use {total} at most.")
    return total * number // count, total * (number + 1) // count


def shard_of_environment() -> tuple[int, int]:
    """The shard of a process that ``torchrun`` started, else the whole."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
