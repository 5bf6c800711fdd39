"""Accuracy of the trained model against full precision, on the same evaluation images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitsense.data import ImageSet
from vitsense.observe import preserved
from vitsense.preprocessing import Preprocessing
from vitsense.sensitivity import interval
from vitsense.sensitivity.interval import Interval
from vitsense.sensitivity.meter import outcome_of
from vitsense.sensitivity.result import Outcome

_KEPT_BYTES = 256 * 1024**2  # preprocessed evaluation images that stay in memory


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """What a model says about evaluation images, against full precision and image by image."""

    outcome: Outcome
    right: Tensor
    """`(n,)`, bool: its class is the label; without labels, that of full precision."""


@dataclass(slots=True, kw_only=True, eq=False)
class Evaluation:
    """Evaluation images with what full precision says about them.

    Under several processes each takes every n-th batch; outcomes are sums and add up.
    """

    images: ImageSet
    preprocessing: Preprocessing
    device: torch.device
    batch: int = 64
    rank: int = 0
    ranks: int = 1
    references: list[Tensor] | None = None
    kept: list[tuple[Tensor, Tensor]] | None = None

    def remember(self, model: nn.Module) -> None:
        """Compute the full-precision logits once."""
        references, kept, size = [], [], 0
        with preserved(model), torch.no_grad():
            for images, labels in self._read():
                references.append(model(images).float())
                size += images.numel() * images.element_size()
                if size <= _KEPT_BYTES:
                    kept.append((images, labels))
        self.references = references
        self.kept = kept if size <= _KEPT_BYTES else None

    def answers(self, model: nn.Module) -> Answers:
        """The model against full precision, on this process's images."""
        assert self.references is not None
        total, right = Outcome(), [torch.zeros(0, dtype=torch.bool)]
        with preserved(model), torch.no_grad():
            for reference, (images, labels) in zip(self.references, self.batches(), strict=True):
                logits = model(images).float()
                total = total + outcome_of(reference, logits, labels)
                wanted = torch.where(labels >= 0, labels, reference.argmax(1))
                right.append((logits.argmax(1) == wanted).cpu())
        return Answers(outcome=total, right=torch.cat(right))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Preprocessed images `(B, 3, H, W)` and labels `(B,)` of this process."""
        return iter(self.kept) if self.kept is not None else self._read()

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.ranks == 1:
            yield from self.images.batches(self.preprocessing, self.batch, self.device)
            return
        starts = range(0, len(self.images), self.batch)
        for start in list(starts)[self.rank :: self.ranks]:
            part = ImageSet(
                source=self.images.source, numbers=self.images.numbers[start : start + self.batch]
            )
            yield from part.batches(self.preprocessing, self.batch, self.device)


def gained(right: Tensor, before: Tensor) -> Interval:
    """How many points more are right than ``before``, paired on the same images.

    Args:
        right: `(n,)`, as in `Answers`.
        before: The same of another model.
    """
    more, less = int((right & ~before).sum()), int((before & ~right).sum())
    return interval.paired_drop(len(right), more, less).scaled(100)


def gain_row(answers: Answers, before: Answers) -> dict[str, float]:
    """Columns of what the model gains over another one, in points."""
    found = gained(answers.right, before.right)
    return {"gain": found.value, "gain_low": found.low, "gain_high": found.high}


def outcome_row(outcome: Outcome) -> dict[str, Any]:
    """An outcome for ``qat.json`` and ``metrics.jsonl``: accuracy, drop, agreement, divergence."""
    row: dict[str, Any] = {key: _plain(value) for key, value in outcome.row().items()}
    if outcome.labelled:
        right = outcome.fp_correct - outcome.lost + outcome.gained
        top1 = interval.proportion(right, outcome.labelled).scaled(100)
        row |= {"top1": top1.value, "top1_low": top1.low, "top1_high": top1.high}
    else:
        row |= dict.fromkeys(("top1", "top1_low", "top1_high"))
    return row


def _plain(value: Any) -> Any:
    """A value for JSON, which has neither infinity nor NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def score(outcome: Outcome) -> float:
    """What decides the best evaluation: accuracy, or agreement without labels; then divergence."""
    if not outcome.finite:
        return -math.inf
    if outcome.labelled:
        right = outcome.fp_correct - outcome.lost + outcome.gained
        return right / outcome.labelled - 1e-9 * outcome.kl
    return outcome.agree / max(outcome.n, 1) - 1e-9 * outcome.kl
