"""What a run has already measured of one model, and how more is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vitsense.formats import FormatLike, format_of
from vitsense.runfolder import RunFolder
from vitsense.sensitivity.company import CompanyMemory
from vitsense.sensitivity.estimate import Estimate, Estimates
from vitsense.sensitivity.group_sweep import GroupCell, GroupOutcome
from vitsense.sensitivity.ledger import Entry, Span
from vitsense.sensitivity.recovery import Recovery
from vitsense.sensitivity.result import Cell, Outcome
from vitsense.settings import Direction, Part


class KeptResults:
    """The run's state, for one model: what is known, and how more is kept."""

    def __init__(self, run: RunFolder, key: str, state: Sequence[Mapping[str, Any]]) -> None:
        self._run = run
        self._key = key
        self._state = [record for record in state if record.get("model") == key]

    def entries(self) -> list[Entry]:
        """Outcomes of cells, by module and spans of images."""
        return [
            Entry(
                tuple(Span(*ends) for ends in record["images"]),
                record["module"],
                {
                    Cell.of(record["module"], name, Part(part)): tuple(
                        Outcome.from_list(values) for values in outcomes
                    )
                    for part, name, outcomes in record["cells"]
                },
            )
            for record in self._state
            if "images" in record
        ]

    def keep(self, entry: Entry) -> None:
        """Append the outcomes of one module on some spans."""
        self._run.append_state(
            {
                "model": self._key,
                "images": [[span.start, span.stop] for span in entry.spans],
                "module": entry.module,
                "cells": [
                    [cell.part.value, cell.format, [o.to_list() for o in outcomes]]
                    for cell, outcomes in entry.results.items()
                ],
            }
        )

    def estimates(self) -> dict[Span, Estimates]:
        """Estimated divergences by span of images."""
        return {
            Span(*record["estimated"]): {
                Cell.of(module, name, Part(part)): Estimate(*values)
                for module, part, name, *values in record["cells"]
            }
            for record in self._state
            if "estimated" in record
        }

    def keep_estimates(self, span: Span, found: Estimates) -> None:
        """Append the estimates of all cells on one span."""
        cells = [[c.module, c.part.value, c.format, e.n, e.kl, e.kl2] for c, e in found.items()]
        record = {"model": self._key, "estimated": [span.start, span.stop], "cells": cells}
        self._run.append_state(record)

    def groups(self) -> list[tuple[GroupCell, Span, GroupOutcome]]:
        """Outcomes of groups, by span of images."""
        found = []
        for record in self._state:
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

    def keep_group(self, cell: GroupCell, span: Span, found: GroupOutcome) -> None:
        """Append the outcome of one group on one span."""
        back = found.recovery
        self._run.append_state(
            {
                "model": self._key,
                "group": [cell.by, cell.group, cell.direction.value, cell.format, cell.part.value],
                "span": [span.start, span.stop],
                "outcome": found.outcome.to_list(),
                "recovery": None if back is None else back.to_list(),
            }
        )

    def doubts(self) -> dict[int, float]:
        """Nats to flip of the evaluation images, by their number."""
        found: dict[int, float] = {}
        for record in self._state:
            if "doubts" in record:
                found |= {int(image): nats for image, nats in record["doubts"]}
        return found

    def keep_doubts(self, found: Mapping[int, float]) -> None:
        """Append nats to flip of some evaluation images."""
        self._run.append_state({"model": self._key, "doubts": [[i, d] for i, d in found.items()]})

    def variant(self, label: str) -> Outcome | None:
        """The outcome of a module quantized in another way, if it was measured before."""
        found = [r for r in self._state if r.get("variant") == label]
        return Outcome.from_list(found[-1]["outcome"]) if found else None

    def keep_variant(self, label: str, outcome: Outcome) -> None:
        """Append the outcome of a module quantized in another way."""
        record = {"model": self._key, "variant": label, "outcome": outcome.to_list()}
        self._run.append_state(record)

    def plan(self, bits: Mapping[str, FormatLike], part: Part = Part.BOTH) -> Outcome | None:
        """The outcome of a whole plan, if it was measured before."""
        wanted = _bits_digest(bits, part)
        found = [r for r in self._state if r.get("plan") == wanted]
        return Outcome.from_list(found[-1]["outcome"]) if found else None

    def keep_plan(
        self, bits: Mapping[str, FormatLike], outcome: Outcome, part: Part = Part.BOTH
    ) -> None:
        """Append the outcome of a whole plan."""
        digest = _bits_digest(bits, part)
        record = {"model": self._key, "plan": digest, "outcome": outcome.to_list()}
        self._run.append_state(record)


class KeptCompany(CompanyMemory):
    """The same, of the search for a better plan."""

    def __init__(self, run: RunFolder, key: str, state: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self._run = run
        self._key = key
        for record in state:
            if record.get("model") != key or "company" not in record:
                continue
            digest, start, stop = record["company"]
            if "values" in record:
                self.values[digest, Span(start, stop)] = record["values"]
            else:
                self.sums[digest, Span(start, stop), record["module"]] = record["sums"]

    def keep_sums(self, digest: str, span: Span, module: str, sums: Mapping[str, float]) -> None:
        """Append what exchanging one module's format gave."""
        self._append(digest, span, {"module": module, "sums": dict(sums)})
        super().keep_sums(digest, span, module, sums)

    def keep_values(self, digest: str, span: Span, values: Sequence[float]) -> None:
        """Append what a whole plan gave."""
        self._append(digest, span, {"values": list(values)})
        super().keep_values(digest, span, values)

    def _append(self, digest: str, span: Span, what: Mapping[str, Any]) -> None:
        about = [digest, span.start, span.stop]
        self._run.append_state({"model": self._key, "company": about, **what})


def _bits_digest(bits: Mapping[str, FormatLike], part: Part) -> str:
    names = {module: format_of(like).name for module, like in bits.items()}
    names["part"] = part.value
    return hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()[:16]
