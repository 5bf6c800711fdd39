"""What one step sees: crops, labels and a teacher's answers, as a function of the step's number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitsense.qat.crops import CropPolicy
from vitsense.qat.label_bank import LabelBank
from vitsense.qat.training_images import CropReader, StepOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """The part of a step that one process computes."""

    images: Tensor
    """Crops for the student, `(B, 3, H, W)`."""
    labels: Tensor
    """`(B,)`; -1 where unknown."""
    teacher_images: Tensor | None
    """The same crops as the teacher wants them, where it wants them otherwise."""
    classes: Tensor | None
    """Stored classes `(B, k)`."""
    probabilities: Tensor | None
    """Stored probabilities `(B, k)`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepSource(Dataset[StepBatch]):
    """All steps of a training, by number."""

    reader: CropReader
    numbers: tuple[int, ...]
    """Images to train on."""
    order: StepOrder
    crops: int
    policy: CropPolicy
    rank: int = 0
    ranks: int = 1
    bank: LabelBank | None = None
    teacher_reader: CropReader | None = None

    def __getitem__(self, step: int) -> StepBatch:
        """The batch of a step: several crops of each of its images, one image after the other."""
        share = self.order.per_step // self.ranks
        mine = self.order.at(step)[self.rank * share : (self.rank + 1) * share]
        images, labels, others, classes, kept = [], [], [], [], []
        for turn, position in mine:
            number = self.numbers[position]
            key = (self.order.seed, 5, turn, number)
            if self.bank is None:
                crops = [
                    self.reader.draw(number, self.policy, (*key, i)) for i in range(self.crops)
                ]
            else:
                stored = self.bank.header.crops
                chosen = np.random.default_rng(key).permutation(stored)[: self.crops].tolist()
                checksum = self.reader.image(number)[0]
                crops, which, answers = self.bank.read(number, chosen, checksum)
                classes.append(torch.from_numpy(which))
                kept.append(torch.from_numpy(answers))
            images.append(self.reader.cut(number, crops))
            if self.teacher_reader is not None:
                others.append(self.teacher_reader.cut(number, crops))
            labels += [self.reader.source.labels[number]] * self.crops
        return StepBatch(
            images=torch.cat(images),
            labels=torch.tensor(labels),
            teacher_images=torch.cat(others) if others else None,
            classes=torch.cat(classes) if classes else None,
            probabilities=torch.cat(kept) if kept else None,
        )

    def steps(self, start: int, stop: int, workers: int) -> Iterator[StepBatch]:
        """The batches from ``start`` to ``stop``, read ahead by ``workers`` processes."""
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            # the loader's own draw must not move the generator that a resumed training restores
            generator=torch.Generator(),
        )
        yield from loader
