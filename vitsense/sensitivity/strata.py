"""Evaluation images grouped by how sure the full-precision model is of them.

Quantization changes the class of images near a decision boundary, and most of the divergence is
there too. So a sweep that does not look at every image looks at most of the doubtful ones and at a
few of the sure ones, and weighs them by what they stand for (stratified sampling: Cochran 1977,
"Sampling Techniques", chapters 5 and 12).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vitsense.sensitivity.ledger import Span

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARES = (0.05, 0.10, 0.20, 0.65)
"""Shares of the images in each stratum, most doubtful first."""

EFFORT = (0.40, 0.25, 0.20, 0.15)
"""Shares of the first images that are taken from each stratum."""

FEWEST = 6
"""Images of a stratum that are seen at least, so that its spread is known."""

LEAST = 8
"""Images below which a stratum is joined with the next."""


@dataclass(frozen=True, slots=True, eq=False)
class Strata:
    """The evaluation images in a new order, stratum after stratum; positions count in that order.

    Within a stratum the order is random, so the first images of it are a random sample.
    """

    order: NDArray[np.int64]
    """Position -> number of the image in the evaluation set."""
    edges: tuple[int, ...]
    """Positions where strata begin, and the number of images."""
    floors: tuple[float, ...]
    """Per stratum, the least divergence that can change the class of one of its images, nats."""
    effort: tuple[float, ...]
    wrong: tuple[int, ...] | None = None
    """Images of each stratum that full precision gets wrong; None without labels."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Images in each stratum."""
        return tuple(b - a for a, b in zip(self.edges, self.edges[1:], strict=False))

    @property
    def images(self) -> int:
        """All images."""
        return self.edges[-1]

    def counts(self, total: int) -> tuple[int, ...]:
        """How many of ``total`` images are taken from each stratum; never falls as total grows."""
        if total >= self.images:
            return self.sizes
        # a stratum that is used up passes its share on to those that are not
        low, high = 0.0, float(self.images) / min(self.effort)
        for _ in range(60):
            middle = (low + high) / 2
            if sum(self._at(middle)) <= total:
                low = middle
            else:
                high = middle
        return self._at(low)

    def _at(self, amount: float) -> tuple[int, ...]:
        return tuple(
            min(size, max(FEWEST, int(share * amount)))
            for size, share in zip(self.sizes, self.effort, strict=True)
        )

    def spans(self, before: Sequence[int], after: Sequence[int]) -> list[Span]:
        """The positions that are new when the counts grow."""
        return [
            Span(start + a, start + b)
            for start, a, b in zip(self.edges, before, after, strict=False)
            if b > a
        ]


def stratify(
    doubt: NDArray[np.float64], seed: int, wrong: NDArray[np.bool_] | None = None
) -> Strata:
    """Group images by `vitsense.numerics.distance.nats_to_flip`, smallest first.

    Args:
        doubt: Nats to flip, of each evaluation image.
        seed: Decides the order within strata.
        wrong: Images that full precision gets wrong, where it is known.
    """
    ranked = np.argsort(doubt, kind="stable")
    ends = np.rint(np.cumsum(SHARES) * len(doubt)).astype(int)
    edges, effort, waiting = [0], list[float](), 0.0
    for end, share in zip(ends, EFFORT, strict=True):
        waiting += share
        if end - edges[-1] >= LEAST or (end == len(doubt) and len(edges) == 1):
            edges.append(int(end))
            effort.append(waiting)
            waiting = 0.0
    edges[-1] = len(doubt)
    effort[-1] += waiting
    rng = np.random.default_rng(seed)
    groups = [ranked[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return Strata(
        order=np.concatenate([rng.permutation(group) for group in groups]),
        edges=tuple(edges),
        floors=tuple(float(doubt[group].min()) for group in groups),
        effort=tuple(effort),
        wrong=None if wrong is None else tuple(int(wrong[group].sum()) for group in groups),
    )
