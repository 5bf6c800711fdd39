"""Better a plan in its own company: exchange formats by what they change in the whole plan.

A plan that is solved from single modules minimises the sum of divergences that each module causes
in an otherwise full-precision model. Rounding errors that meet in one pass reinforce or cancel
each other, so at few bits that sum is a poor guide. Here the plan itself is the company: for every
module the next narrower and the next wider format is measured with all others as the plan has them.
These changes of the whole's divergence are added up once more, but only for small steps: the same
exact solver looks for the best plan within the budget that differs in at most so many modules, for
several such limits, and each proposal is measured as a whole, on other images. The best one is the
next plan, if it is clearly better than the last; if not, the changes are measured on more images.

Source: sequential linear programming with a trust region (Griffith and Stewart 1961; Conn, Gould
and Toint, Trust-Region Methods, 2000), with measured differences for derivatives; the limit on
changed modules is the region, and trying several at once takes the place of its update rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, sqrt
from statistics import fmean, stdev

from vitsense.errors import UserInputError
from vitsense.formats import format_of
from vitsense.plan.budget import Budget, BudgetKind
from vitsense.plan.predict import DropModel
from vitsense.plan.solve import Near, Problem, solve, within

Formats = Mapping[str, str]
"""Module -> format, of a whole plan."""


_SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""Limits on changed modules, as shares of all."""

_WORTH = 0.01
"""A step that lowers the divergence by less than this share is not kept."""


@dataclass(frozen=True, slots=True)
class Company:
    """A plan and its exchanges, on the images that exchanges are looked for; means, nats."""

    kl: float
    """Divergence of the whole plan."""
    exchanged: Mapping[str, Mapping[str, float]]
    """Module -> format -> divergence of the whole plan with that module's format exchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How a plan is measured."""

    company: Callable[[Formats, int], Company]
    """Measures the exchanges of a plan (formats of `neighbours`) on so many images."""
    divergence: Callable[[Sequence[Formats]], Sequence[Sequence[float]]]
    """Measures whole plans on other images: nats of every image, in the same order."""
    sizes: Sequence[int]
    """Images for exchanges: the first number, and the next where it led to nothing."""
    steps: int
    """At most so many from each start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One exchange: what was expected of it and what was measured."""

    start: str
    """Name of the plan the search began with."""
    number: int
    images: int
    """On which exchanges were measured."""
    changed: int
    """Modules that have another format than before the step."""
    expected: float
    """Change of the divergence by the sum of the single exchanges, nats."""
    before: float
    """Divergence on the other images, nats."""
    after: float
    taken: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined:
    """The best plan found, and how."""

    formats: Formats
    start: str
    kl: float
    """Its divergence on the images that plans were compared on, nats."""
    steps: tuple[Step, ...]


def refine(
    problem: Problem,
    budget: Budget,
    model: DropModel,
    starts: Mapping[str, Formats],
    search: Search,
) -> Refined:
    """Search from every start; the plan within the budget that diverges least.

    An earlier start's end stands unless a later one is clearly better.

    Its divergence is infinite where no start and no step from one keeps the budget.

    Args:
        problem: Of the model; its pins hold.
        budget: Held by every plan; of a cost, not of a drop.
        model: For the solver's predictions.
        starts: Plans by name; one beyond the budget is left in the first step.
        search: How plans are measured, and for how long.
    """
    if budget.kind is BudgetKind.MAX_DROP:
        raise ValueError("a plan for a drop has no cost that exchanges could keep")
    ends = [
        _descend(problem, budget, model, name, formats, search) for name, formats in starts.items()
    ]
    best = ends[0]
    for end in ends[1:]:
        if end.held and (not best.held or clearly_lower(end.kl, best.kl)):
            best = end
    return Refined(
        formats=best.formats,
        start=best.start,
        kl=fmean(best.kl) if best.held else inf,
        steps=tuple(step for end in ends for step in end.steps),
    )


def clearly_lower(after: Sequence[float], before: Sequence[float]) -> bool:
    """Whether paired divergences are lower by two standard errors and by a share worth a step.

    Two, because the best of several trials is looked at; one image is never enough.
    """
    less = [b - a for a, b in zip(after, before, strict=True)]
    if len(less) < 2 or not isfinite(fmean(less)):
        return False
    error = stdev(less) / sqrt(len(less))
    return fmean(less) > max(2 * error, _WORTH * fmean(before))


@dataclass(frozen=True, slots=True)
class _End:
    """Where the search from one start ended."""

    start: str
    formats: Formats
    kl: Sequence[float]
    """Of every image."""
    held: bool
    """Whether it keeps the budget."""
    steps: tuple[Step, ...]


def _descend(
    problem: Problem,
    budget: Budget,
    model: DropModel,
    start: str,
    formats: Formats,
    search: Search,
) -> _End:
    here, held, steps = formats, within(problem, budget, model, formats), list[Step]()
    kl, sizes, kept = search.divergence([here])[0], list(search.sizes), 0
    while sizes and kept < search.steps:
        proposals = _proposals(problem, budget, model, here, search.company(here, sizes[0]))
        measured = search.divergence([plan for plan, _ in proposals])
        best = min(range(len(proposals)), key=lambda i: _mean(measured[i]), default=None)
        # a plan beyond the budget must be left, whatever that costs
        taken = best is not None and (not held or clearly_lower(measured[best], kl))
        if best is not None:
            plan, expected = proposals[best]
            steps.append(
                Step(
                    start=start,
                    number=len(steps) + 1,
                    images=sizes[0],
                    changed=_differing(here, plan),
                    expected=expected,
                    before=fmean(kl),
                    after=fmean(measured[best]),
                    taken=taken,
                )
            )
        if best is not None and taken:
            here, held, kl, kept = proposals[best][0], True, measured[best], kept + 1
        else:
            sizes.pop(0)
    return _End(start, here, kl, held, tuple(steps))


def _mean(divergences: Sequence[float]) -> float:
    mean = fmean(divergences)
    return mean if isfinite(mean) else inf


def neighbours(problem: Problem, formats: Formats) -> dict[str, list[str]]:
    """The next narrower and the next wider format of every module that is not pinned."""
    found = {}
    for name, here in formats.items():
        known = sorted(problem.divergence[name], key=lambda f: format_of(f).effective_bits)
        i = known.index(here)
        near = known[max(i - 1, 0) : i] + known[i + 1 : i + 2]
        found[name] = [] if name in problem.pins else near
    return found


def _proposals(
    problem: Problem, budget: Budget, model: DropModel, here: Formats, around: Company
) -> list[tuple[Formats, float]]:
    """Different plans near ``here`` within the budget, each with the change expected of it."""
    changes = {
        name: {form: 0.0}
        | {
            other: kl - around.kl
            for other, kl in around.exchanged.get(name, {}).items()
            if isfinite(kl)
        }
        for name, form in here.items()
    }
    local = replace(problem, divergence=changes)
    found: dict[tuple[str, ...], tuple[Formats, float]] = {}
    for share in _SHARES:
        most = max(1, round(share * len(here)))
        try:
            chosen = solve(local, budget, model, Near(here, most)).formats
        except UserInputError:
            continue  # so few changes do not bring a plan beyond the budget back into it
        expected = sum(changes[name][form] for name, form in chosen.items())
        if _differing(here, chosen):
            found[tuple(chosen[name] for name in here)] = (chosen, expected)
    return list(found.values())


def _differing(one: Formats, other: Formats) -> int:
    return sum(one[name] != other[name] for name in one)
