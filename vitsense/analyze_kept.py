"""What a run has already measured of one model, and how more is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

from vitsense.runfolder import RunFolder
from vitsense.sensitivity.company import CompanyMemory
from vitsense.sensitivity.doubt import Doubt
from vitsense.sensitivity.estimate import Estimate, Estimates
from vitsense.sensitivity.group_sweep import GroupCell, GroupLedger, GroupOutcome
from vitsense.sensitivity.hessian import Probe, ProbeKey
from vitsense.sensitivity.ledger import Entry, Ledger, Span, SpanSums
from vitsense.sensitivity.recovery import Recovery
from vitsense.sensitivity.result import Cell, Outcome
from vitsense.settings import Direction, Part
from vitsense.team import ALONE, Team

Record = Mapping[str, Any]


class KeptResults:
    """The run's state, for one model: what is known, and how more is kept.

    Every process of a team keeps what it measured itself, durably, before the others learn of it.
    The views named ``other_...`` exchange: all processes must ask for the same one together.
    Without a run, results last as long as the object: of provisional measurements.
    """

    def __init__(
        self, run: RunFolder | None, key: str, state: Sequence[Record], team: Team = ALONE
    ) -> None:
        self._run = run
        self._key = key
        self._state = [record for record in state if record.get("model") == key]
        self._team = team
        self._fresh: list[Record] = []

    def records(self) -> Sequence[Record]:
        """Everything that is known of the model."""
        return tuple(self._state)

    def append(self, record: dict[str, Any]) -> None:
        """Keep one result, durably first."""
        record = {"model": self._key, **record}
        if self._run is not None:
            self._run.append_state(record)
        self._state.append(record)
        if self._team.place.size > 1:
            self._fresh.append(record)

    def other_records(self) -> list[Record]:
        """What the other processes kept since the last exchange, in their order."""
        found = self._team.gather(self._fresh)
        self._fresh = []
        own = self._team.place.rank
        new = [record for rank, some in enumerate(found) if rank != own for record in some]
        self._state += new
        return new

    def entries(self) -> list[Entry]:
        """Outcomes of cells, by module and spans of images."""
        return _entries("images", self._state)

    def other_entries(self) -> list[Entry]:
        """Those of other processes that are new."""
        return _entries("images", self.other_records())

    def keep(self, entry: Entry) -> None:
        """Append the outcomes of one module on some spans."""
        self._keep_entry("images", entry)

    def checks(self) -> Ledger:
        """Outcomes of cells by spans of draws for checking estimates, known and to come."""
        return Ledger(
            _entries("checked", self._state),
            partial(self._keep_entry, "checked"),
            lambda: _entries("checked", self.other_records()),
        )

    def _keep_entry(self, kind: str, entry: Entry) -> None:
        self.append(
            {
                kind: [[span.start, span.stop] for span in entry.spans],
                "module": entry.module,
                "cells": [
                    [cell.part.value, cell.format, [o.to_list() for o in outcomes]]
                    for cell, outcomes in entry.results.items()
                ],
            }
        )

    def rough(self) -> dict[Span, Estimates]:
        """First estimates of divergences, by span of evaluation images."""
        return _estimates("rough", self._state)

    def keep_rough(self, span: Span, found: Estimates) -> None:
        """Append first estimates of all cells on one span of images."""
        self._keep_estimates("rough", span, found)

    def estimates(self) -> dict[Span, Estimates]:
        """Estimated divergences by span of draws."""
        return _estimates("drawn", self._state)

    def other_estimates(self) -> dict[Span, Estimates]:
        """Those of other processes that are new."""
        return _estimates("drawn", self.other_records())

    def keep_estimates(self, span: Span, found: Estimates) -> None:
        """Append the estimates of all cells on one span of draws."""
        self._keep_estimates("drawn", span, found)

    def _keep_estimates(self, kind: str, span: Span, found: Estimates) -> None:
        cells = [[c.module, c.part.value, c.format, *astuple(e)] for c, e in found.items()]
        self.append({kind: [span.start, span.stop], "cells": cells})

    def probes(self) -> dict[ProbeKey, Probe]:
        """What probes of Hessians found, by their images and number."""
        return {
            (Span(*record["probe"][:2]), record["probe"][2]): Probe(
                record["images_of_probe"],
                dict(record["traces"]),
                {(site, name): value for site, name, value in record["errors"]},
            )
            for record in self._state
            if "probe" in record
        }

    def keep_probe(self, span: Span, number: int, found: Probe) -> None:
        """Append what one probe found."""
        self.append(
            {
                "probe": [span.start, span.stop, number],
                "images_of_probe": found.images,
                "traces": dict(found.traces),
                "errors": [[*key, value] for key, value in found.errors.items()],
            }
        )

    def groups(self) -> GroupLedger:
        """Outcomes of groups, known and to come."""
        return GroupLedger(
            _groups(self._state), self._keep_group, lambda: _groups(self.other_records())
        )

    def _keep_group(self, cell: GroupCell, span: Span, found: GroupOutcome) -> None:
        back = found.recovery
        self.append(
            {
                "group": [cell.by, cell.group, cell.direction.value, cell.format, cell.part.value],
                "span": [span.start, span.stop],
                "outcome": found.outcome.to_list(),
                "recovery": None if back is None else back.to_list(),
            }
        )

    def doubts(self) -> dict[int, Doubt]:
        """Those of the evaluation images, by their number."""
        return _doubts(self._state)

    def other_doubts(self) -> dict[int, Doubt]:
        """Those of other processes that are new."""
        return _doubts(self.other_records())

    def keep_doubts(self, found: Mapping[int, Doubt]) -> None:
        """Append those of some evaluation images."""
        self.append({"full_precision": [[i, *doubt] for i, doubt in found.items()]})

    def variants(self) -> SpanSums[str, Outcome]:
        """Outcomes of modules quantized in other ways, by a label; known and to come."""
        return self._sums("variant")

    def plans(self) -> SpanSums[str, Outcome]:
        """Outcomes of whole plans, by `plan_digest`; known and to come."""
        return self._sums("plan")

    def _sums(self, kind: str) -> SpanSums[str, Outcome]:
        def keep(name: str, span: Span, outcome: Outcome) -> None:
            ends = [span.start, span.stop]
            self.append({kind: name, "span": ends, "outcome": outcome.to_list()})

        return SpanSums(_sums(kind, self._state), keep, lambda: _sums(kind, self.other_records()))


class KeptCompany(CompanyMemory):
    """The same, of the search for a better plan."""

    def __init__(self, kept: KeptResults) -> None:
        super().__init__()
        self._kept = kept
        self._know(kept.records())

    def _know(self, records: Iterable[Record]) -> None:
        for record in records:
            if "company" not in record:
                continue
            digest, start, stop = record["company"]
            if "values" in record:
                self.values[digest, Span(start, stop)] = record["values"]
            else:
                self.sums[digest, Span(start, stop), record["module"]] = record["sums"]

    def meet(self) -> None:
        """Know what the other processes of the run have measured since the last time."""
        self._know(self._kept.other_records())

    def keep_sums(self, digest: str, span: Span, module: str, sums: Mapping[str, float]) -> None:
        """Append what exchanging one module's format gave."""
        about = [digest, span.start, span.stop]
        self._kept.append({"company": about, "module": module, "sums": dict(sums)})
        super().keep_sums(digest, span, module, sums)

    def keep_values(self, digest: str, span: Span, values: Sequence[float]) -> None:
        """Append what a whole plan gave."""
        about = [digest, span.start, span.stop]
        self._kept.append({"company": about, "values": list(values)})
        super().keep_values(digest, span, values)


def _entries(kind: str, records: Iterable[Record]) -> list[Entry]:
    return [
        Entry(
            tuple(Span(*ends) for ends in record[kind]),
            record["module"],
            {
                Cell.of(record["module"], name, Part(part)): tuple(
                    Outcome.from_list(values) for values in outcomes
                )
                for part, name, outcomes in record["cells"]
            },
        )
        for record in records
        if kind in record
    ]


def _estimates(kind: str, records: Iterable[Record]) -> dict[Span, Estimates]:
    return {
        Span(*record[kind]): {
            Cell.of(module, name, Part(part)): Estimate(*values)
            for module, part, name, *values in record["cells"]
        }
        for record in records
        if kind in record
    }


def _groups(records: Iterable[Record]) -> list[tuple[GroupCell, Span, GroupOutcome]]:
    found = []
    for record in records:
        if "group" not in record:
            continue
        by, name, direction, form, part = record["group"]
        back = record["recovery"]
        outcome = GroupOutcome(
            Outcome.from_list(record["outcome"]),
            None if back is None else Recovery.from_list(back),
        )
        cell = GroupCell(by, name, Direction(direction), form, Part(part))
        found.append((cell, Span(*record["span"]), outcome))
    return found


def _doubts(records: Iterable[Record]) -> dict[int, Doubt]:
    found: dict[int, Doubt] = {}
    for record in records:
        found |= {int(image): Doubt(*rest) for image, *rest in record.get("full_precision", ())}
    return found


def _sums(kind: str, records: Iterable[Record]) -> list[tuple[str, Span, Outcome]]:
    return [
        (record[kind], Span(*record["span"]), Outcome.from_list(record["outcome"]))
        for record in records
        if kind in record
    ]
