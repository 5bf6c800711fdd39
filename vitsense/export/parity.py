"""Does the file say what the torch model says? Logits on held-back images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitsense.export.fixed import FixedModel
from vitsense.export.session import Session
from vitsense.progress import NO_PROGRESS, Progress

Batch = tuple[Tensor, Tensor]
Floats = NDArray[np.float32]

WORST = 4
"""Images that are compared site by site, at least."""

MOST = 16
"""Images that are compared site by site, at most: all that get another class, as far as they go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The file against the torch model on the same images."""

    images: int
    same_top1: int
    """Images that get the same class."""
    within_step: int
    """Images of which every logit is within one step."""
    largest: float
    """Largest difference of a logit."""
    mean: float
    """Mean difference of a logit."""
    step: float
    """One step of the logits at 8 bits: their range over the images by 255."""
    top1_torch: float | None
    """Accuracy of the torch model, percent; None without labels."""
    top1_file: float | None
    worst: tuple[int, ...]
    """Numbers of the images to compare site by site: those with another class, then those whose
    logits differ most; the worst first in both."""

    @property
    def identical(self) -> bool:
        """Whether the goal is reached: every class the same, every logit within one step."""
        return self.same_top1 == self.images and self.largest <= self.step


def both_logits(
    fixed: FixedModel,
    session: Session,
    batches: Sequence[Batch],
    progress: Progress = NO_PROGRESS,
) -> tuple[Floats, Floats]:
    """Logits `(N, classes)` of the torch model and of the file.

    Args:
        fixed: The torch model.
        session: The file.
        batches: Images and labels.
        progress: Told of every batch.
    """
    mine, theirs = [], []
    for images, _ in batches:
        with torch.no_grad():
            mine.append(fixed(images).numpy())
        theirs.append(session.logits(images.numpy()))
        progress.advance(len(images))
    return np.concatenate(mine), np.concatenate(theirs)


def double_logits(fixed: FixedModel, batches: Sequence[Batch]) -> Floats:
    """Logits `(N, classes)` of the torch model on the same grids in double precision."""
    wide = in_double(fixed)
    with torch.no_grad():
        return np.concatenate([wide(images.double()).float().numpy() for images, _ in batches])


def in_double(fixed: FixedModel) -> FixedModel:
    """The same integers and grids; everything between them is computed in float64."""
    return FixedModel(
        copy.deepcopy(fixed.model).double(),
        fixed.catalog,
        fixed.weights,
        fixed.activations,
        trained=fixed.trained,
    )


def parity_of(torch_logits: Floats, file_logits: Floats, labels: NDArray[Any]) -> Parity:
    """The comparison of logits `(N, classes)` with labels `(N,)`; -1 without label."""
    difference = np.abs(torch_logits - file_logits)
    step = float(torch_logits.max() - torch_logits.min()) / 255
    mine, theirs = torch_logits.argmax(1), file_logits.argmax(1)
    known = bool((labels >= 0).all())
    order = np.lexsort((-difference.max(1), mine == theirs))
    count = int(np.clip((mine != theirs).sum(), WORST, MOST))
    return Parity(
        images=len(labels),
        same_top1=int((mine == theirs).sum()),
        within_step=int((difference.max(1) <= step).sum()),
        largest=float(difference.max()),
        mean=float(difference.mean()),
        step=step,
        top1_torch=100 * float((mine == labels).mean()) if known else None,
        top1_file=100 * float((theirs == labels).mean()) if known else None,
        worst=tuple(order[:count].tolist()),
    )
