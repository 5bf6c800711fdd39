"""Which images an estimate looks at: those that carry the divergence, each for what it stands for.

The divergence of a module is nearly all on the images that the model is unsure of: on the shipped
models as much as if 7 to 10 of 192 images had all of it. Estimates from images that are drawn in
proportion to what they are expected to add have a fraction of the noise of as many drawn evenly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHARE = 1 / 5
"""Draws per image; three eighths are about as precise as looking at each image once."""

LEAST = 128
"""Draws where there are as many images: of few, a part would say too little."""

_FLOOR = 0.02
"""Chance of the surest image, of the mean one's; bounds what a draw can stand for."""


def drawn(images: int, least: int = LEAST) -> int:
    """How many draws are made from so many images."""
    return min(max(least, math.ceil(SHARE * images)), images)


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Images by number, in order; one may be drawn several times."""

    images: int
    """Those that were drawn from."""
    numbers: NDArray[np.int64]
    weights: NDArray[np.float64]
    """The mean over draws of weight times value estimates the mean over images of the value."""

    @classmethod
    def every(cls, images: int) -> Draws:
        """Each image once."""
        return cls(images, np.arange(images), np.ones(images))

    @classmethod
    def by_doubt(
        cls,
        nats_to_flip: NDArray[np.float64],
        seed: int,
        *,
        least: int = LEAST,
        count: int | None = None,
    ) -> Draws:
        """More often, the less sure the model is of an image.

        Where two classes are all there is, ln 2 minus the nats to flip is the entropy of the
        image's class probabilities, and their divergence under small noise grows with it.

        Args:
            nats_to_flip: Of every image (`vitsense.numerics.distance.nats_to_flip`).
            seed: Of the draw.
            least: Draws at least, but not more than images.
            count: So many draws; None for as many as an estimate takes.

        Source: systematic sampling with probability proportional to size (Madow 1949), weights of
        Hansen and Hurwitz 1943.
        """
        size = np.clip(math.log(2) - nats_to_flip, 0, None)
        size = size + (_FLOOR * size.mean() if size.any() else 1.0)
        size = size / size.mean()
        count = drawn(len(size), least) if count is None else count
        ends = np.cumsum(size) * (count / len(size))
        ends[-1] = count
        places = np.random.default_rng([seed, len(size)]).random() + np.arange(count)
        numbers = np.searchsorted(ends, places, side="right")
        return cls(len(size), numbers, 1.0 / size[numbers])

    def __len__(self) -> int:
        return len(self.numbers)
