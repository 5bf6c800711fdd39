"""How sure the full-precision model is of each evaluation image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitsense.errors import MeasurementError
from vitsense.numerics.distance import nats_to_flip
from vitsense.observe import preserved
from vitsense.progress import NO_PROGRESS, Progress


def doubts(
    model: nn.Module,
    read: Callable[[Sequence[int]], tuple[torch.Tensor, torch.Tensor]],
    images: int,
    *,
    known: Mapping[int, float] | None = None,
    keep: Callable[[dict[int, float]], None] = lambda _: None,
    largest: int = 32,
    progress: Progress = NO_PROGRESS,
) -> NDArray[np.float64]:
    """Nats to flip of every image, from one full-precision pass.

    Args:
        model: Any image classifier.
        read: Opens evaluation images by their numbers.
        images: How many there are.
        known: Image -> nats, from earlier, interrupted work.
        keep: Keeps new ones; the order of a sweep depends on them, so they are not computed twice.
        largest: Images that are taken at once.
        progress: Told of every batch.

    Raises:
        MeasurementError: the model gives logits that are not finite.
    """
    found = dict(known or {})
    with preserved(model), torch.no_grad():
        for start in range(0, images, largest):
            numbers = [i for i in range(start, min(start + largest, images)) if i not in found]
            if numbers:
                logits = model(read(numbers)[0])
                if not bool(torch.isfinite(logits).all()):
                    raise MeasurementError(
                        "The full-precision model gives logits that are not finite: check its "
                        "weights and the preprocessing."
                    )
                fresh = dict(zip(numbers, nats_to_flip(logits).tolist(), strict=True))
                keep(fresh)
                found |= fresh
            progress.advance(min(largest, images - start))
    return np.array([found[i] for i in range(images)], dtype=np.float64)
