"""Who is learned from in a step: a label bank, a live model, labels, or features."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vitsense.errors import UserInputError
from vitsense.observe.features import Features, features_of
from vitsense.qat.batches import StepBatch
from vitsense.qat.label_bank import dense_targets
from vitsense.qat.losses import mimic_loss, mixed_loss, principal_components


@dataclass(slots=True, kw_only=True, eq=False)
class Mimic:
    """Feature mimicking: where the features are, and the directions that count."""

    path: str
    """The classifier, whose input the features are."""
    weight: float
    directions: Tensor
    student: Features
    teacher: Features


@dataclass(slots=True, kw_only=True, eq=False)
class Teacher:
    """Gives the loss of a batch."""

    classes: int
    hard: float
    live: nn.Module | None = None
    """A model in eval mode; None where a bank or labels alone are learned from."""
    mimic: Mimic | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def loss(self, student: nn.Module, batch: StepBatch, device: torch.device) -> Tensor:
        """Loss of the student on (its part of) a step's crops."""
        images = batch.images.to(device)
        soft = self._soft(batch, images, device)
        logits = student(images)
        loss = mixed_loss(logits, soft, batch.labels.to(device), self.hard)
        if self.mimic is None:
            return loss
        mine, theirs = self.mimic.student.tensor, self.mimic.teacher.tensor
        assert mine is not None
        assert theirs is not None
        distance = mimic_loss(mine.float(), theirs.float(), self.mimic.directions)
        return loss + self.mimic.weight * distance

    def _soft(self, batch: StepBatch, images: Tensor, device: torch.device) -> Tensor | None:
        if batch.classes is not None and batch.probabilities is not None:
            return dense_targets(
                batch.classes.to(device), batch.probabilities.to(device), self.classes
            )
        if self.live is None:
            return None
        seen = images if batch.teacher_images is None else batch.teacher_images.to(device)
        with torch.no_grad():
            answers: Tensor = self.live(seen).float().softmax(1)
        return answers

    def mimicking(
        self, student: nn.Module, path: str, weight: float, calibration: list[Tensor]
    ) -> None:
        """Add feature mimicking; ``path`` is the classifier in the teacher and in the student.

        Raises:
            UserInputError: there is no live teacher.
        """
        if self.live is None:
            raise UserInputError(
                "mimic needs a live teacher: leave out --labels and use teacher=self."
            )
        theirs = self._stack.enter_context(features_of(self.live, path))
        found = []
        with torch.no_grad():
            for images in calibration:
                self.live(images)
                assert theirs.tensor is not None
                found.append(theirs.tensor.flatten(1))
        mine = self._stack.enter_context(features_of(student, path))
        self.mimic = Mimic(
            path=path,
            weight=weight,
            directions=principal_components(torch.cat(found)),
            student=mine,
            teacher=theirs,
        )

    def close(self) -> None:
        """Take the hooks off both models."""
        self._stack.close()
        self.mimic = None
