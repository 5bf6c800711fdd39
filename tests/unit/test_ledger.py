"""What is known by image range, whatever the ranges of earlier work were."""

from __future__ import annotations

import itertools

from vitsense.sensitivity.ledger import Entry, Ledger, Span
from vitsense.sensitivity.result import Cell, Outcome
from vitsense.settings import Part

CELL = Cell("fc", 4, Part.BOTH)


def entry(start: int, stop: int) -> Entry:
    # a sum that depends on its order in float64
    kl = sum(0.1 / (1 + image) for image in range(start, stop))
    return Entry((Span(start, stop),), "fc", {CELL: (Outcome(n=stop - start, kl=kl),)})


def test_a_span_is_cut_at_places_inside_it_only() -> None:
    assert Span(4, 10).split_at([0, 4, 7, 10, 99]) == [Span(4, 7), Span(7, 10)]
    assert Span(0, 7).steps(3) == [Span(0, 3), Span(3, 6), Span(6, 7)]
    assert Span(5, 8).steps(100) == [Span(5, 8)]


def test_an_outcome_is_known_only_when_every_image_is() -> None:
    ledger = Ledger([entry(0, 4), entry(6, 8)])
    assert ledger.outcome(CELL, Span(0, 8)) is None
    assert not ledger.knows(CELL, Span(0, 8))
    assert ledger.knows(CELL, Span(1, 3))
    ledger.add(entry(4, 6))
    outcome = ledger.outcome(CELL, Span(0, 8))
    assert outcome is not None
    assert outcome.n == 8
    assert ledger.outcome(Cell("other", 4, Part.BOTH), Span(0, 2)) is None


def test_the_order_of_arrival_does_not_change_a_bit() -> None:
    parts = [entry(0, 4), entry(4, 5), entry(5, 12)]
    sums = {Ledger(order).outcome(CELL, Span(0, 12)) for order in itertools.permutations(parts)}
    assert len(sums) == 1


def test_overlapping_work_of_two_processes_is_counted_once() -> None:
    ledger = Ledger([entry(0, 4), entry(0, 4), entry(2, 6), entry(4, 8)])
    outcome = ledger.outcome(CELL, Span(0, 8))
    assert outcome is not None
    assert outcome.n == 8


def test_new_results_are_kept_before_they_are_used() -> None:
    kept: list[Entry] = []

    def keep(found: Entry) -> None:
        assert not ledger.knows(CELL, found.spans[0])
        kept.append(found)

    ledger = Ledger(keep=keep)
    ledger.record(entry(0, 2))
    assert ledger.knows(CELL, Span(0, 2))
    assert kept == [entry(0, 2)]
