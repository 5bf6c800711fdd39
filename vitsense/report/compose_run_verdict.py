"""What changed between two runs in a few numbers and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitsense.compare.change import FALSE_SHARE, Change
from vitsense.compare.run_settings import Kind, Setting
from vitsense.compare.runs import RankChange, RunChanges
from vitsense.formats import format_of
from vitsense.report.document import Card, Status
from vitsense.report.formatters import number, short_span, span, visible
from vitsense.verdict import decisive_format

Formats = tuple[Mapping[str, str], Mapping[str, str]]
"""Module -> format in the recommended plan of each run."""

KEPT, LOST = 0.8, 0.5
"""Rank correlations above and below which an order of modules counts as kept, or not."""


def cards_of(changes: RunChanges, formats: Formats) -> Iterator[Card]:
    """The numbers that matter, with their intervals."""
    if changes.accuracy is not None:
        yield _points_card("Full precision, top-1", changes.accuracy, up_is_good=True)
    certain, count = len(changes.certain), len(changes.cells)
    yield Card(
        label="Sensitivities that changed",
        value=f"{certain} of {count}",
        detail=f"modules in a format{_false_words(certain)}",
        status=Status.CAUTION if certain else Status.GOOD,
        word="changed" if certain else "no change seen",
    )
    rank = decisive_rank(changes)
    if rank is not None:
        yield Card(
            label=f"Order of modules at {format_of(rank.format).words}",
            value=number(rank.correlation, 2),
            detail=f"{span(rank.low, rank.high, 2)}, rank correlation, {rank.modules} modules",
            status=_kept(rank)[0],
            word=_kept(rank)[1],
        )
    plan = _recommended(changes)
    if plan is not None:
        yield _points_card(
            "Loss of the best plan within the budget", plan["change"], up_is_good=False
        )
    both = [name for name in formats[0] if name in formats[1]]
    if both:
        moved = sum(formats[0][name] != formats[1][name] for name in both)
        yield Card(
            label="Bits that changed",
            value=f"{moved} of {len(both)}",
            detail="modules, between the best plans within the budgets",
        )


def _points_card(label: str, change: Change, *, up_is_good: bool) -> Card:
    status, word = Status.PLAIN, "not distinguishable"
    if change.low > 0 or change.high < 0:
        better = (change.value > 0) == up_is_good
        status, word = (Status.GOOD, "better") if better else (Status.BAD, "worse")
    return Card(
        label=label,
        value=f"{signed(change.value)} points",
        detail=f"{signed(change.low)} to {signed(change.high)}, second minus first",
        status=status,
        word=word,
    )


def signed(value: float, digits: int = 2) -> str:
    """A change with its sign, ``+0.42``; one decimal more than points have, see `difference`."""
    text = number(value, digits)
    return f"+{text}" if value > 0 and float(f"{value:.{digits}f}") != 0 else text


def _false_words(certain: int) -> str:
    return f", about {_expected(certain)} of them falsely" if certain else ""


def _expected(certain: int) -> str:
    return number(FALSE_SHARE * certain, 0 if certain >= 40 else 1)


def decisive_rank(changes: RunChanges) -> RankChange | None:
    """The rank correlation in the format in which modules are compared."""
    form = decisive_format(changes.cells)
    return next((r for r in changes.ranks if form is not None and r.format == form.name), None)


def _kept(rank: RankChange) -> tuple[Status, str]:
    if rank.low >= KEPT:
        return Status.GOOD, "largely kept"
    return (Status.BAD, "not kept") if rank.high < LOST else (Status.CAUTION, "partly kept")


def _recommended(changes: RunChanges) -> Mapping[str, Any] | None:
    rows = changes.plans[changes.plans["plan"] == "recommended"].to_dict("records")
    return rows[0] if rows else None


def sentences_of(changes: RunChanges, settings: Sequence[Setting], formats: Formats) -> list[str]:
    """The finding in plain words first, then how sure it is and what it means for plans."""
    lines = [_finding(changes), _chance(changes), _cause(settings)]
    rank = decisive_rank(changes)
    if rank is not None:
        lines.append(
            f"The order of modules at {format_of(rank.format).words} is {_kept(rank)[1]}: rank "
            f"correlation {number(rank.correlation, 2)} ({span(rank.low, rank.high, 2)}, "
            f"{rank.modules} modules)."
        )
    plan = _recommended(changes)
    if plan is not None:
        lines.append(_plan_words(plan, formats))
    return [visible(line) for line in lines]


def _finding(changes: RunChanges) -> str:
    certain, count = changes.certain, len(changes.cells)
    if certain.empty:
        return (
            f"No module's sensitivity changed distinguishably in any format ({count} changes were "
            "looked at)."
        )
    more = int((certain["ratio"] > 1).sum())
    row = certain.loc[certain["p"].idxmin()]
    modules = certain["module"].nunique()
    return (
        f"{modules} of {changes.cells['module'].nunique()} modules changed distinguishably in some "
        f"format: of {len(certain)} changes, {more} are towards more divergence in the second run "
        f"and {len(certain) - more} towards less. The most certain is {row['module']} at "
        f"{format_of(str(row['format'])).words}: {ratio_words(row)} times."
    )


def ratio_words(row: Mapping[str, Any]) -> str:
    """``1.4 (1.2 to 1.7)``, all to the same decimals."""
    return short_span(float(row["ratio"]), float(row["ratio_low"]), float(row["ratio_high"]))


def _chance(changes: RunChanges) -> str:
    count, certain = len(changes.cells), len(changes.certain)
    tail = f", of which about {_expected(certain)} are expected to be false" if certain else ""
    return (
        f"{changes.excluding} of {count} intervals exclude no change by themselves; if nothing had "
        f"changed, {number(FALSE_SHARE * count, 0)} would by chance. After Benjamini and "
        f"Hochberg's adjustment {certain or 'none'} remain{tail}."
    )


def _cause(settings: Sequence[Setting]) -> str:
    kinds = {setting.kind for setting in settings}
    asked = [kind.value for kind in Kind if kind in kinds and kind is not Kind.VERSIONS]
    if not asked:
        also = " Versions or the machine differ." if kinds else ""
        return f"Weights, data and settings are the same in both runs.{also}"
    more = "; which of these caused a change, they cannot tell" if len(asked) > 1 else ""
    return f"The runs differ in {' and '.join(asked)}{more}."


def _plan_words(plan: Mapping[str, Any], formats: Formats) -> str:
    change = plan["change"]
    both = [name for name in formats[0] if name in formats[1]]
    moved = sum(formats[0][name] != formats[1][name] for name in both)
    certain = change.low > 0 or change.high < 0
    verdict = "" if certain else ", not distinguishable from no change"
    bits = f"{plan['bits_first']:.2f} bits first, {plan['bits_second']:.2f} second"
    ends = f"{signed(change.low)} to {signed(change.high)}"
    return (
        f"The best plans within the budgets ({bits}) differ in {moved} of {len(both)} modules; the "
        f"loss changes by {signed(change.value)} points ({ends}){verdict}."
    )
