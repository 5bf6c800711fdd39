"""Finished trainings as the training chapter sees them: name, plan, settings, and what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

from vitsense.plan.plan import Plan
from vitsense.report.formatters import difference, loss_of, shortened
from vitsense.trainings import TrainingFolder

Row = Mapping[str, Any]
NONE = "\N{EN DASH}"


class Kind(str, Enum):
    """What training was worth, against the plan without training."""

    GAINED = "gained"
    SAME = "same"
    WORSE = "worse"
    UNKNOWN = "unknown"
    """The record has no paired gain, and the intervals overlap."""


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    folder: TrainingFolder
    record: Row
    name: str
    """Tells it from every other one in the report."""

    @cached_property
    def formats(self) -> tuple[tuple[str, str], ...]:
        """Format of every module: two trainings with the same are of one plan."""
        if self.folder.plan_path.is_file():
            return tuple(sorted(Plan.load(self.folder.plan_path).formats.items()))
        return tuple(sorted((k, f"int{v}") for k, v in self.record["plan"]["bits"].items()))

    @property
    def bits(self) -> float:
        """Average of the plan."""
        cost = self.record["plan"].get("cost")
        widths = list(self.record["plan"]["bits"].values())
        return float(cost["avg_bits"] if cost else sum(widths) / len(widths))

    @property
    def size(self) -> str:
        """``2.49 bits, 0.18 MB``."""
        cost = self.record["plan"].get("cost") or {}
        size = f", {cost['size_mb']:.2f} MB" if "size_mb" in cost else ""
        return f"{self.bits:.2f} bits{size}"

    @property
    def labelled(self) -> bool:
        """Whether there are labels, and so accuracy."""
        return self.record["last"].get("top1") is not None

    @property
    def gain(self) -> tuple[float, float, float] | None:
        """Trained minus not trained, points, with its interval; None in earlier records."""
        last = self.record["last"]
        if last.get("gain") is None:
            return None
        return float(last["gain"]), float(last["gain_low"]), float(last["gain_high"])

    @property
    def kind(self) -> Kind:
        """From the paired gain; without one, from intervals that do not touch."""
        if self.gain is not None:
            _, low, high = self.gain
            return Kind.GAINED if low > 0 else Kind.WORSE if high < 0 else Kind.SAME
        if self.record["ptq"] is None:
            return Kind.UNKNOWN
        (_, least, most), (_, low, high) = loss_of(self.record["ptq"]), loss_of(self.record["last"])
        return Kind.GAINED if high < least else Kind.WORSE if low > most else Kind.UNKNOWN

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its record warns of; and of earlier records, that training made it worse."""
        said = tuple(str(text) for text in self.record.get("warnings", ()))
        if said or self.kind is not Kind.WORSE:
            return said
        before, after = (shown(self.record[key]) for key in ("ptq", "last"))
        return (
            f"Training made the plan worse: {what(self)} {before} without training, {after} with.",
        )


def what(one: Trained) -> str:
    """What is measured."""
    return "top-1" if one.labelled else "agreement"


def named(found: Sequence[tuple[TrainingFolder, Row]]) -> list[Trained]:
    """The trainings with names that tell them apart: of their folders, or with the parent."""
    times = Counter(folder.name for folder, _ in found)
    return [
        Trained(
            folder,
            record,
            shortened(
                folder.name
                if times[folder.name] == 1
                else f"{folder.path.parent.name}/{folder.name}"
            ),
        )
        for folder, record in found
    ]


@dataclass(frozen=True)
class Planned:
    """The trainings of one plan, by name."""

    said: str
    """The plan in words that tell it from others: ``the run's plan (4.00 bits)``."""
    short: str
    """The same in a table's cell."""
    of_the_run: bool
    """Whether it is the plan file of the run."""
    trainings: tuple[Trained, ...]

    @property
    def untrained(self) -> Row | None:
        """The plan without training, where all trainings agree on it."""
        rows = [one.record["ptq"] for one in self.trainings]
        keys = ("n", "top1", "agreement", "drop", "kl")
        same = rows[0] is not None and all(
            row is not None and all(row.get(key) == rows[0].get(key) for key in keys)
            for row in rows
        )
        return rows[0] if same else None


def by_plan(trainings: Sequence[Trained], own: Mapping[str, str] | None) -> tuple[Planned, ...]:
    """Trainings of one plan together: the plan of the run first, then from many bits to few.

    Args:
        trainings: Of one model.
        own: Module -> format of the run's plan; None where there is none.
    """
    mine = tuple(sorted(own.items())) if own else None
    groups: dict[tuple[tuple[str, str], ...], list[Trained]] = {}
    for one in sorted(trainings, key=lambda one: one.name):
        groups.setdefault(one.formats, []).append(one)
    order = sorted(groups, key=lambda key: (key != mine, -groups[key][0].bits, key))
    texts = [_plan_words(groups[key][0], key == mine) for key in order]
    again = Counter(texts)
    found, seen = [], Counter[str]()
    for key, text in zip(order, texts, strict=True):
        seen[text] += 1
        which = "" if again[text] == 1 else f", no. {seen[text]}"
        short = f"{groups[key][0].bits:.2f}{', of the run' if key == mine else which}"
        found.append(Planned(text + which, short, key == mine, tuple(groups[key])))
    return tuple(found)


def _plan_words(one: Trained, of_the_run: bool) -> str:
    if of_the_run:
        return f"the run's plan ({one.bits:.2f} bits)"
    budget = one.record["plan"].get("budget")
    return f"the plan of {one.bits:.2f} bits" + (f" ({shortened(str(budget))})" if budget else "")


def value_of(row: Row) -> tuple[float, float, float]:
    """Accuracy, or without labels agreement, with its interval, percent."""
    key = "top1" if row.get("top1") is not None else "agreement"
    return float(row[key]), float(row[f"{key}_low"]), float(row[f"{key}_high"])


def shown(row: Row | None) -> str:
    """``92.5 % (90.3 to 94.2)``."""
    if row is None or (row.get("top1") is None and row.get("agreement") is None):
        return NONE
    value, low, high = value_of(row)
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def drop_shown(row: Row | None) -> str:
    """Loss against full precision, points; a dash without labels."""
    if row is None or row.get("drop") is None:
        return NONE
    return difference(*(float(row[f"drop{end}"]) for end in ("", "_low", "_high")))


def gain_shown(one: Trained) -> str:
    """``+0.14 (−0.50 to 0.78)``."""
    if one.gain is None:
        return NONE
    return ("+" if one.gain[0] > 0 else "") + difference(*one.gain)
