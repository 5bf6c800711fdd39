"""Which images a process looks at, and which of the things that are measured on them are its own.

A batch of images with one thing that is measured on it is a unit of work. All units lie in a row,
batch after batch, and each process takes a run of them (`vitsense.team.Team.run_of`): whole
batches, and parts of those at its ends. Batches are the same whatever the number of processes, so
the numbers are as well, bit for bit; only batches that two processes share are run in full
precision twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

import torch

from vitsense.deadline import Deadline, TimeIsUpError
from vitsense.progress import Paced, Progress
from vitsense.sensitivity.ledger import Key, Span, SpanSums
from vitsense.sensitivity.meter import Batch, out_of_memory
from vitsense.team import Team

ReadImages = Callable[[Sequence[int]], Batch]
"""Gives the evaluation images of these numbers, in this order, as one batch."""

Look = tuple[Span, Callable[[], Batch]]
"""Images, and how they are opened."""


@dataclass(frozen=True, slots=True, eq=False)
class Supply:
    """Evaluation images that can be opened in any order, and not all by every process."""

    read: ReadImages
    images: int
    largest: int
    """Images at once."""

    def looks(self) -> list[Look]:
        """All images, batch after batch."""
        spans = Span(0, self.images).steps(self.largest)
        return [(span, partial(self.spans, [span])) for span in spans]

    def spans(self, spans: Sequence[Span]) -> Batch:
        """The images of spans, as one batch."""
        return self.read([image for span in spans for image in range(span.start, span.stop)])


def looks(batches: Iterable[Batch] | Supply) -> Iterable[Look]:
    """Images that are opened one after another, or those of a supply."""
    return batches.looks() if isinstance(batches, Supply) else _one_after_another(batches)


def _one_after_another(batches: Iterable[Batch]) -> Iterator[Look]:
    done = 0
    for batch in batches:
        span = Span(done, done + len(batch[1]))
        done = span.stop
        yield span, partial(_same, batch)


def _same(batch: Batch) -> Batch:
    return batch


def unopened(span: Span) -> Batch:
    """Stands for images of which everything is known: only their number is looked at."""
    return torch.empty(len(span), 0), torch.empty(len(span), 0)


Costs = Callable[[Span], Sequence[float]]
"""What each thing costs on a span of images, alike on all processes; 0: it is known already."""


def portions(
    team: Team, row: Iterable[Look], costs: Costs
) -> Iterator[tuple[Span, Callable[[], Batch], range]]:
    """The batches of this process, each with the places of the things to measure on it."""
    if team.place.size == 1:
        for span, read in row:
            yield span, read, range(len(costs(span)))
        return
    batches = list(row)
    every = [costs(span) for span, _ in batches]
    mine = team.run_of([cost for one in every for cost in one])
    start = 0
    for (span, read), one in zip(batches, every, strict=True):
        first, last = max(mine.start, start), min(mine.stop, start + len(one))
        if last > first:
            yield span, read, range(first - start, last - start)
        start += len(one)


Measure = Callable[[Span, Batch, Sequence[Key], Deadline], None]
"""Measures some things on a batch and records them; looks at the deadline before each."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job(Generic[Key]):
    """Things that are measured on all images, each on its own."""

    things: Sequence[Key]
    sums: SpanSums[Key, Any]
    """What is known of them, and where more is kept."""
    cost: Callable[[Key], float]
    """Of a thing on one image, in any unit."""
    measure: Measure[Key]
    forget: Callable[[], None]
    """Gives memory back."""
    settle: Callable[[], None] = lambda: None
    """Takes part in what processes with work have agreed on; see `vitsense.team.Verdict.close`."""

    def costs(self, span: Span) -> list[float]:
        """See `Costs`."""
        return [
            0.0 if self.sums.knows(thing, span) else len(span) * self.cost(thing)
            for thing in self.things
        ]


def measure_in_portions(
    job: Job[Key],
    batches: Iterable[Batch] | Supply,
    *,
    team: Team,
    deadline: Deadline,
    progress: Progress,
) -> None:
    """Measure what is not known yet; afterwards all processes of the team know all of it.

    Args:
        job: What is measured.
        batches: Images and labels, always in the same order.
        team: The processes that share the work.
        deadline: Measuring stops there, and the deadline says that it came.
        progress: Told of every thing.
    """
    with suppress(TimeIsUpError):
        _measure_own(job, looks(batches), team, deadline, progress)
    job.settle()
    job.sums.meet()
    deadline.came = team.any(deadline.came)


def _measure_own(
    job: Job[Key], row: Iterable[Look], team: Team, limit: Deadline, progress: Progress
) -> None:
    pace: Progress | Paced = progress
    if team.place.size > 1:
        row = list(row)
        whole = sum(len(span) * len(job.things) for span, _ in row)
        own = sum(len(span) * len(some) for span, _, some in portions(team, row, job.costs))
        pace = Paced(progress, whole, own)
    for span, read, places in portions(team, row, job.costs):
        mine = [job.things[place] for place in places]
        known = sum(job.sums.knows(thing, span) for thing in mine)
        pace.advance(known * len(span))
        if known < len(mine):
            limit.check()  # not even full precision is run after it

            def work(some: Span, batch: Batch, mine: Sequence[Key] = mine) -> None:
                todo = [thing for thing in mine if not job.sums.knows(thing, some)]
                job.measure(some, batch, todo, limit)
                pace.advance(len(some) * len(todo))

            within_memory(span, read(), work, job.forget)
    if isinstance(pace, Paced):
        pace.finish()


def within_memory(
    span: Span,
    batch: Batch,
    work: Callable[[Span, Batch], None],
    forget: Callable[[], None],
) -> None:
    """Do ``work`` on a batch; in halves where the device has no memory for the whole.

    Args:
        span: Which images they are.
        batch: The images and labels.
        work: What is done; what it has kept before memory ran out must not be done again.
        forget: Gives memory back.
    """
    try:
        work(span, batch)
    except (RuntimeError, MemoryError) as error:
        if len(span) < 2 or not out_of_memory(error):
            raise
    else:
        return
    forget()
    middle = (span.start + span.stop) // 2
    for half in span.split_at([middle]):
        inside = slice(half.start - span.start, half.stop - span.start)
        within_memory(half, (batch[0][inside], batch[1][inside]), work, forget)
