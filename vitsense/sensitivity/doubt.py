"""How sure the full-precision model is of each evaluation image, and where it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitsense.deadline import Deadline, TimeIsUpError
from vitsense.numerics.distance import nats_to_flip
from vitsense.observe import preserved
from vitsense.progress import NO_PROGRESS, Paced, Progress
from vitsense.sensitivity.meter import finite
from vitsense.team import ALONE, Team


class Doubt(NamedTuple):
    """Of one image."""

    nats: float
    """Least divergence that can change its class; see `nats_to_flip`."""
    wrong: bool | None
    """Whether full precision gives it another class than its label; None without a label."""


@dataclass(frozen=True, slots=True, eq=False)
class Doubts:
    """Of all evaluation images, in their order."""

    nats: NDArray[np.float64]
    wrong: NDArray[np.bool_] | None
    """None where an image has no label."""

    @classmethod
    def of(cls, found: Sequence[Doubt]) -> Doubts:
        """Gather those of single images."""
        wrong = [doubt.wrong for doubt in found]
        return cls(
            np.array([doubt.nats for doubt in found], dtype=np.float64),
            None if None in wrong else np.array(wrong, dtype=bool),
        )


def doubts(
    model: nn.Module,
    read: Callable[[Sequence[int]], tuple[torch.Tensor, torch.Tensor]],
    images: int,
    *,
    known: Mapping[int, Doubt] | None = None,
    keep: Callable[[dict[int, Doubt]], None] = lambda _: None,
    others: Callable[[], Mapping[int, Doubt]] = dict,
    largest: int = 32,
    deadline: Deadline | None = None,
    team: Team = ALONE,
    progress: Progress = NO_PROGRESS,
) -> Doubts:
    """The doubts of every image, from one full-precision pass.

    Args:
        model: Any image classifier.
        read: Opens evaluation images by their numbers.
        images: How many there are.
        known: By image, from earlier, interrupted work.
        keep: Keeps new ones; the order of a sweep depends on them, so they are not computed twice.
        others: What other processes of the team found since it was asked last.
        largest: Images that are taken at once.
        deadline: No batch begins after it.
        team: The processes that share the images.
        progress: Told of every batch.

    Raises:
        MeasurementError: the model gives logits that are not finite.
        TimeIsUpError: the deadline came before every image was seen; those that were are kept.
    """
    limit = Deadline() if deadline is None else deadline
    found = dict(known or {})
    batches = [range(i, min(i + largest, images)) for i in range(0, images, largest)]
    missing = [[i for i in batch if i not in found] for batch in batches]
    todo = [numbers for numbers in missing if numbers]
    mine = [todo[place] for place in team.run_of([float(len(numbers)) for numbers in todo])]
    whole = sum(map(len, todo))
    progress.advance(images - whole)
    pace = Paced(progress, whole, sum(map(len, mine)))
    with preserved(model), torch.no_grad():
        for numbers in mine:
            if limit.passed:
                break
            fresh = _fresh(model, read, numbers)
            keep(fresh)
            found |= fresh
            pace.advance(len(numbers))
    found |= others()
    if len(found) < images:  # alike on all processes
        limit.came = True
        raise TimeIsUpError
    pace.finish()
    return Doubts.of([found[i] for i in range(images)])


def _fresh(
    model: nn.Module,
    read: Callable[[Sequence[int]], tuple[torch.Tensor, torch.Tensor]],
    numbers: Sequence[int],
) -> dict[int, Doubt]:
    images, labels = read(numbers)
    logits = finite(model(images))
    wrong = (logits.argmax(dim=1) != labels.to(logits.device)).tolist()
    told = [None if label < 0 else is_wrong for label, is_wrong in zip(labels, wrong, strict=True)]
    return dict(zip(numbers, map(Doubt, nats_to_flip(logits).tolist(), told), strict=True))
