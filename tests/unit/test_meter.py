"""Measuring goes on with smaller batches when memory runs out, and continues odd ranges."""

from __future__ import annotations

import pytest
import torch
from small_models import images, tiny_resnet

from vitsense.discover import find_sites
from vitsense.observe import ReplaySession
from vitsense.sensitivity.ledger import Entry, Ledger, Span
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.sweep import measure_exact
from vitsense.settings import QuantSettings
from vitsense.statistics.collect import collect_statistics

BATCHES = [
    (images(8), torch.arange(8)),
    (images(8).flip(0), torch.arange(8)),
]


@pytest.fixture(scope="module")
def prepared():
    model = tiny_resnet()
    catalog = find_sites(model, images(1))
    statistics = collect_statistics(model, catalog, [images(8)])
    return model, catalog, Quantizers(catalog, statistics, QuantSettings(), "cpu")


def assert_close(found, expected) -> None:
    """Equal but for the rounding of another batch size."""
    for a, b in zip(found, expected, strict=True):
        assert (a.cell, a.outcome.n, a.outcome.agree) == (b.cell, b.outcome.n, b.outcome.agree)
        assert a.outcome.to_list() == pytest.approx(b.outcome.to_list(), rel=1e-3, abs=1e-6)


def test_out_of_memory_halves_the_batch_and_goes_on(prepared, monkeypatch) -> None:
    expected = measure_exact(*prepared, BATCHES, bits=(4,))
    record, sizes, notes = ReplaySession.record, [], []

    def small_device(self: ReplaySession, x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return record(self, x)

    class Listening:
        def start(self, total: int, label: str) -> None: ...
        def advance(self, steps: int, label: str = "") -> None: ...
        def note(self, text: str) -> None:
            notes.append(text)

        def close(self) -> None: ...

    monkeypatch.setattr(ReplaySession, "record", small_device)
    found = measure_exact(*prepared, BATCHES, bits=(4,), progress=Listening())
    assert_close(found, expected)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]  # learned once, not tried again
    assert notes[0] == "Out of memory with 8 images at once; continuing with 4."


def test_out_of_memory_in_the_middle_loses_nothing(prepared, monkeypatch) -> None:
    expected = measure_exact(*prepared, BATCHES, bits=(4,))
    replay, calls = ReplaySession.replay, []

    def failing(self, visits, module):
        calls.append(module.name)
        if len(calls) == 10:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return replay(self, visits, module)

    monkeypatch.setattr(ReplaySession, "replay", failing)
    kept: list[Entry] = []
    found = measure_exact(*prepared, BATCHES, bits=(4,), ledger=Ledger(keep=kept.append))
    assert_close(found, expected)
    whole = [e for e in kept if e.spans == (Span(0, 8),)]
    assert whole
    assert len({(e.spans, e.module) for e in kept}) == len(kept)


def test_other_errors_are_not_taken_for_a_lack_of_memory(prepared, monkeypatch) -> None:
    def broken(self, x):
        raise RuntimeError("planted")

    monkeypatch.setattr(ReplaySession, "record", broken)
    with pytest.raises(RuntimeError, match="planted"):
        measure_exact(*prepared, BATCHES, bits=(4,))


def test_one_image_that_does_not_fit_is_an_error(prepared, monkeypatch) -> None:
    def none_left(self, x):
        raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    monkeypatch.setattr(ReplaySession, "record", none_left)
    with pytest.raises(torch.OutOfMemoryError):
        measure_exact(*prepared, BATCHES, bits=(4,))


def test_another_batch_size_continues_where_the_first_stopped(prepared) -> None:
    kept: list[Entry] = []
    expected = measure_exact(*prepared, BATCHES, bits=(4,), ledger=Ledger(keep=kept.append))
    again: list[Entry] = []
    whole = (torch.cat([x for x, _ in BATCHES]), torch.cat([y for _, y in BATCHES]))
    threes = list(zip(whole[0].split(3), whole[1].split(3), strict=True))
    half = kept[: len(kept) // 2 + 3]
    found = measure_exact(*prepared, threes, bits=(4,), ledger=Ledger(half, keep=again.append))
    assert_close(found, expected)
    # a batch that straddles an old edge measures up to two images twice, and counts them once
    new = sum(len(s) for e in again for s in e.spans)
    missing = 16 * len(prepared[1]) - sum(len(s) for e in half for s in e.spans)
    assert missing <= new <= missing + 2 * len(prepared[1])
