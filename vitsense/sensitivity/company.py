"""What exchanging one module's format changes in a whole plan, by replay of the quantized pass.

The remembered pass is the one with the whole plan in force; before the exchanged module nothing
differs from it, so only what comes after is computed anew, as for groups that are spared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vitsense.deadline import Deadline
from vitsense.errors import MeasurementError
from vitsense.formats import FormatLike, format_of
from vitsense.numerics.distance import kl_nats
from vitsense.observe import ReplaySession, preserved
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sensitivity.ledger import Span
from vitsense.sensitivity.meter import Batch, recorded
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.settings import Part
from vitsense.sites import SiteCatalog

Formats = Mapping[str, str]
"""Module -> format, of a whole plan."""

_CHECKED = 3
"""Modules on which replay is compared with the full pass."""


class CompanyMemory:
    """What was already measured; here for as long as the object lives."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, Span, str], Mapping[str, float]] = {}
        """Digest of a plan, images, module -> format -> summed divergence with it, nats."""
        self.values: dict[tuple[str, Span], Sequence[float]] = {}
        """Digest of a plan, images -> divergence of every image, nats."""

    def keep_sums(self, digest: str, span: Span, module: str, sums: Mapping[str, float]) -> None:
        """Keep what exchanging one module's format gave."""
        self.sums[digest, span, module] = sums

    def keep_values(self, digest: str, span: Span, values: Sequence[float]) -> None:
        """Keep what a whole plan gave."""
        self.values[digest, span] = values

    def meet(self) -> None:
        """Know what other processes of the run have measured; here there are none."""


def plan_digest(formats: Mapping[str, FormatLike], part: Part = Part.BOTH) -> str:
    """What a plan is known by: 16 hex digits of its modules' formats."""
    names = {module: format_of(like).name for module, like in formats.items()}
    names["part"] = part.value
    return hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(slots=True)
class Companions:
    """A model and the images of a search; all divergences are from full precision."""

    model: nn.Module
    catalog: SiteCatalog
    quantizers: Quantizers
    batches: Callable[[], Iterable[tuple[Span, Batch]]]
    """Images with their places among the images of the memory."""
    part: Part = Part.BOTH
    memory: CompanyMemory = field(default_factory=CompanyMemory)
    deadline: Deadline = field(default_factory=Deadline)
    progress: Progress = NO_PROGRESS

    def wholes(self, plans: Sequence[Formats]) -> list[list[float]]:
        """The divergence of whole plans, nats of every image.

        Raises:
            TimeIsUpError: the deadline came; what was measured is kept.
        """
        found: list[list[float]] = [[] for _ in plans]
        digests = [plan_digest(plan, self.part) for plan in plans]
        for span, batch, session in self._spans():
            reference: Tensor | None = None
            for plan, digest, images in zip(plans, digests, found, strict=True):
                values = self.memory.values.get((digest, span))
                if values is None:
                    self.deadline.check()
                    if reference is None:
                        reference = recorded(session, batch[0])
                    logits = session.full(self.quantizers.joint(plan, self.part))
                    values = kl_nats(reference, logits).tolist()
                    self.memory.keep_values(digest, span, values)
                images.extend(values)
                self.progress.advance(len(span), "whole plans")
        return found

    def exchanged(
        self, plan: Formats, exchanges: Mapping[str, Sequence[str]]
    ) -> dict[str, dict[str, float]]:
        """The divergence of a plan with one module's format exchanged, mean over images, nats.

        Args:
            plan: Every module of it.
            exchanges: Module -> formats to try.

        Raises:
            MeasurementError: the model changes what was remembered.
            TimeIsUpError: the deadline came; what was measured is kept.
        """
        totals = {name: dict.fromkeys(forms, 0.0) for name, forms in exchanges.items() if forms}
        digest, images = plan_digest(plan, self.part), 0
        for span, batch, session in self._spans():
            images += len(span)
            bench = _Bench(session, self, plan, batch[0])
            for name, forms in totals.items():
                sums = self.memory.sums.get((digest, span, name))
                if sums is None:
                    self.deadline.check()
                    sums = {form: bench.divergence(name, form) for form in forms}
                    self.memory.keep_sums(digest, span, name, sums)
                for form in forms:
                    forms[form] += sums[form]
                self.progress.advance(len(span), name)
            if not session.unharmed():
                raise MeasurementError(
                    "The model changed a remembered activation in place; analyze it with "
                    "--refine 0 and report the model's name."
                )
        return {
            name: {form: total / images for form, total in forms.items()}
            for name, forms in totals.items()
        }

    def _spans(self) -> Iterable[tuple[Span, Batch, ReplaySession]]:
        with preserved(self.model), ReplaySession.open(self.model, self.catalog) as session:
            for span, batch in self.batches():
                yield span, batch, session


class _Bench:
    """One batch with a plan in force; nothing is computed before it is asked for."""

    def __init__(
        self, session: ReplaySession, owner: Companions, plan: Formats, images: Tensor
    ) -> None:
        self._session, self._owner, self._plan, self._images = session, owner, plan, images
        self._reference: Tensor | None = None
        self._exact = True

    def divergence(self, name: str, form: str) -> float:
        """Sum over the images of the divergence with the module in another format, nats."""
        if self._reference is None:
            self._reference = self._record()
        return _sum(self._reference, self._logits(name, form, replay=self._exact))

    def _record(self) -> Tensor:
        reference = recorded(self._session, self._images)
        quantizers, part = self._owner.quantizers, self._owner.part
        self._session.record(self._images, quantizers.joint(self._plan, part))
        names = list(self._plan)
        for name in names[:: max(1, len(names) // _CHECKED)][:_CHECKED]:
            same = (self._logits(name, self._plan[name], replay=flag) for flag in (True, False))
            self._exact = self._exact and torch.equal(*same)
        return reference

    def _logits(self, name: str, form: str, *, replay: bool) -> Tensor:
        visits = self._owner.quantizers.joint({**self._plan, name: form}, self._owner.part)
        if replay:
            return self._session.replay(visits, self._owner.catalog[name])
        return self._session.full(visits)


def _sum(reference: Tensor, logits: Tensor) -> float:
    return float(kl_nats(reference, logits).sum())
