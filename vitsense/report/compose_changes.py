"""The chapters of a comparison of two runs: what differs, every change, bits and whole plans."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from vitsense.compare.groups import role_label
from vitsense.compare.plan_names import BUDGETED, plan_name
from vitsense.compare.run_settings import Setting
from vitsense.compare.runs import RunChanges
from vitsense.formats import NumberFormat, format_of
from vitsense.report.compose_run_verdict import Formats, ratio_words, signed
from vitsense.report.formatters import known, number, short_span, span
from vitsense.report.runs_document import STEPS, ChangeCell, ChangeRow, ChangeTable
from vitsense.report.section import Block, Chart, Section, Series, Shape, Table, Words
from vitsense.sensitivity.interval import Interval
from vitsense.verdict import decisive_format

_DASH = "\N{EN DASH}"
_ARROW = " \N{RIGHTWARDS ARROW} "
_DOUBLINGS = 3.0  # ratios of 1/8 and 8 have the strongest colours
MOST = 200
"""Rows of the table with all numbers of the decisive format."""


def settings_chapter(settings: Sequence[Setting], names: tuple[str, str]) -> Section:
    """What the runs do not have in common."""
    title = "What differs between the runs"
    if not settings:
        text = "Weights, data, settings and versions are the same in both runs."
        return Section(key="settings", title=title, blocks=(Words(text=text),))
    rows = tuple((s.name, s.kind.value, s.first, s.second) for s in settings)
    return Section(
        key="settings",
        title=title,
        blocks=(
            Table(
                title=f"{len(rows)} entries of run.json differ",
                head=("What", "Kind", f"First: {names[0]}", f"Second: {names[1]}"),
                rows=rows,
                reading="Everything that is not listed is the same in both runs.",
            ),
        ),
    )


def chapters_of(
    changes: RunChanges, formats: Formats, number_: int, *, same_images: bool
) -> Iterator[Section]:
    """Every change, then ranks, bits and plans; in the order in which readers ask."""
    yield _matrix(changes, formats, same_images=same_images)
    form = decisive_format(changes.cells)
    if form is not None:
        yield _details(changes, form, number_)
    yield Section(key="order", title="Order of modules", blocks=(_ranks(changes),))
    yield _bits(formats)
    if len(changes.plans):
        yield _plans(changes)
    left = tuple(_left_out(changes))
    if left:
        yield Section(key="left-out", title="What was not compared", blocks=left)


def _columns(cells: pd.DataFrame) -> list[NumberFormat]:
    forms = map(format_of, dict.fromkeys(cells["format"]))
    return sorted(forms, key=lambda f: (not f.is_integer, -f.effective_bits, f.name))


def _matrix(changes: RunChanges, formats: Formats, *, same_images: bool) -> Section:
    cells = {(r["module"], r["format"]): r for r in changes.cells.to_dict("records")}
    forms = _columns(changes.cells)
    modules = changes.cells.drop_duplicates("module")
    rows = tuple(
        ChangeRow(
            index=int(row["index"]),
            name=row["module"],
            role=role_label(row["role"]),
            bits=_moved(*(plan.get(row["module"]) for plan in formats)),
            cells=tuple(_cell(cells.get((row["module"], form.name))) for form in forms),
        )
        for row in modules.to_dict("records")
    )
    paired = (
        "The images are the same, but the intervals are those of independent samples (rather too "
        "wide)."
        if same_images
        else "The images differ: the runs are independent samples."
    )
    reading = (
        "A cell is the divergence in the second run divided by that in the first, when only this "
        "module is quantized: above 1 (orange) the module is more sensitive in the second run, "
        "below 1 (purple) less. Numbers in parentheses are not distinguishable from no change, "
        f"with regard to how many changes are looked at. {paired} All values are in changes.csv."
    )
    columns = tuple(f"{f.label} bits" if f.is_integer else f.label for f in forms)
    return Section(
        key="changes",
        title="Change of every module in every format",
        template="changes",
        data=ChangeTable(columns=columns, rows=rows, reading=reading),
    )


def _label(name: str | None) -> str:
    return _DASH if name is None else format_of(name).label


def _moved(first: str | None, second: str | None) -> str:
    return _label(first) if first == second else f"{_label(first)}{_ARROW}{_label(second)}"


def _cell(row: Mapping[str, Any] | None) -> ChangeCell:
    if row is None:
        return ChangeCell(text=_DASH, detail="not compared", sort=0.0, level=STEPS, certain=False)
    doublings = math.log2(float(row["ratio"]))
    words = "distinguishable" if row["certain"] else "not distinguishable from no change"
    return ChangeCell(
        text=f"\N{MULTIPLICATION SIGN}{_factor(float(row['ratio']))}",
        detail=f"{ratio_words(row)} times, {words}",
        sort=round(doublings, 3),
        level=STEPS + round(STEPS * max(-1.0, min(1.0, doublings / _DOUBLINGS))),
        certain=bool(row["certain"]),
    )


def _factor(value: float) -> str:
    """At most three digits."""
    return number(value, 2 if value < 10 else 1 if value < 100 else 0)


def _details(changes: RunChanges, form: NumberFormat, place: int) -> Section:
    rows = changes.cells[changes.cells["format"] == form.name]
    order = (
        rows["ratio"].map(lambda r: abs(math.log(r))).sort_values(ascending=False, kind="stable")
    )
    shown = rows.loc[order.index][:MOST]
    head = (
        "Module",
        "Divergence, first (nats)",
        "Second (nats)",
        "Second by first",
        "Drop, first (points)",
        "Second (points)",
        "Change (points)",
    )
    few = f", the {MOST} largest changes of {len(rows)}" if len(rows) > MOST else ""
    blocks: tuple[Block, ...] = (
        _chart(rows, form, place),
        Table(
            title=f"Both runs at {form.words}, the largest change of divergence first{few}",
            head=head,
            code=True,
            rows=tuple(_detail(row) for row in shown.to_dict("records")),
            reading=(
                "Values with 95 % intervals. A star: the change is distinguishable, also after the "
                "adjustment for many comparisons; changes of the drop need far more images than "
                "changes of the divergence."
            ),
        ),
    )
    return Section(key="both", title=f"Both runs at {form.words}", blocks=blocks)


def _detail(row: Mapping[str, Any]) -> tuple[str, ...]:
    def value(name: str, side: str) -> tuple[float, ...]:
        return tuple(float(row[f"{name}{end}_{side}"]) for end in ("", "_low", "_high"))

    def points(side: str) -> str:
        drop, low, high = value("drop", side)
        return f"{number(drop)} ({span(low, high)})" if known(drop) else _DASH

    change = _DASH
    if known(row["drop_change"]):
        low, high = float(row["drop_change_low"]), float(row["drop_change_high"])
        change = f"{signed(float(row['drop_change']))} ({signed(low)} to {signed(high)})"
        change = _starred(change) if row["drop_certain"] else change
    words = ratio_words(row)
    return (
        str(row["module"]),
        short_span(*value("kl", "first")),
        short_span(*value("kl", "second")),
        _starred(words) if row["certain"] else words,
        points("first"),
        points("second"),
        change,
    )


def _starred(words: str) -> str:
    """A change with its interval, ``2.5* (2.2 to 2.8)``, that is distinguishable."""
    return words.replace(" (", "* (", 1)


def _chart(rows: pd.DataFrame, form: NumberFormat, place: int) -> Chart:
    certain, other = rows[rows["certain"]], rows[~rows["certain"]]
    up = int((certain["ratio"] > 1).sum())
    title = (
        f"At {form.words}, {up} of {len(rows)} modules are distinguishably more sensitive in the "
        f"second run and {len(certain) - up} less"
    )
    names = _named(certain)
    return Chart(
        name=f"runs-{place}",
        title=title,
        alt=f"Divergence of each module in the second run against the first at {form.words}. "
        f"{title}.",
        reading=(
            "Each point is one module; on the dashed line nothing changed, above it the module is "
            "more sensitive in the second run. Coloured points changed distinguishably. Lines are "
            "95 % intervals of the second run; both scales are logarithmic."
        ),
        shape=Shape.POINTS,
        x_label="divergence in the first run (nats)",
        y_label="in the second run (nats)",
        series=tuple(
            Series(
                name=name,
                x=tuple(part["kl_first"].astype(float)),
                y=tuple(part["kl_second"].astype(float)),
                low=tuple(part["kl_low_second"].astype(float)),
                high=tuple(part["kl_high_second"].astype(float)),
                colour=colour,
                labels=labels,
            )
            for name, part, colour, labels in (
                ("not distinguishable", other, -1, ()),
                ("changed", certain, place, names),
            )
            if len(part)
        ),
        log_x=True,
        log_y=True,
        diagonal=True,
    )


def _named(certain: pd.DataFrame) -> tuple[str, ...]:
    """Names of the two largest changes; more would run into each other."""
    largest = certain["ratio"].map(lambda r: abs(math.log(r))).nlargest(2).index
    names = zip(certain.index, certain["module"], strict=True)
    return tuple(name if i in largest else "" for i, name in names)


def _ranks(changes: RunChanges) -> Block:
    if not changes.ranks:
        return Words(text="There are too few modules for a rank correlation.")
    return Table(
        title="Rank correlation of the modules' divergences between the runs",
        head=("Format", "Modules", "Rank correlation"),
        rows=tuple(
            (
                format_of(r.format).words,
                str(r.modules),
                f"{number(r.correlation, 2)} ({span(r.low, r.high, 2)})",
            )
            for r in changes.ranks
        ),
        reading=(
            "1: the same order, 0: none in common. Where differences between modules are smaller "
            "than their intervals, the order changes by chance, and the correlation falls."
        ),
    )


def _bits(formats: Formats) -> Section:
    title = "Bits that the best plans within the budgets choose"
    if not all(formats):
        which = "neither run has" if not any(formats) else "one of the runs has no"
        text = f"Plans cannot be compared: {which} a plan within a budget."
        text = text.replace("no a", "no")
        return Section(key="bits", title=title, blocks=(Words(text=text),))
    names = list(dict.fromkeys((*formats[0], *formats[1])))
    moved = [name for name in names if formats[0].get(name) != formats[1].get(name)]
    if not moved:
        text = f"All {len(names)} modules have the same bits in both plans."
        return Section(key="bits", title=title, blocks=(Words(text=text),))
    table = Table(
        title=f"{len(moved)} of {len(names)} modules have other bits",
        head=("Module", "First", "Second"),
        code=True,
        rows=tuple((m, *(_label(plan.get(m)) for plan in formats)) for m in moved),
        reading="A dash: not in that plan.",
    )
    return Section(key="bits", title=title, blocks=(table,))


def _plans(changes: RunChanges) -> Section:
    rows = []
    for row in changes.plans.to_dict("records"):
        change, times = row["change"], row["ratio"]
        words = f"{signed(change.value)} ({signed(change.low)} to {signed(change.high)})"
        certain = change.low > 0 or change.high < 0
        rows.append(
            (
                plan_name(str(row["plan"])),
                f"{row['bits_first']:.2f}",
                f"{row['bits_second']:.2f}",
                *map(_points, (row["first"], row["second"])),
                _starred(words) if certain else words,
                _DASH if times is None else short_span(times.value, times.low, times.high),
            )
        )
    head = (
        "Plan", "Bits, first", "Second", "Loss, first (points)", "Second (points)",
        "Change (points)", "Divergence, second by first",
    )  # fmt: skip
    table = Table(
        title=f"{len(rows)} plans were measured as a whole in both runs",
        head=head,
        rows=tuple(rows),
        reading=(
            "All modules quantized at once, with 95 % intervals; a star: the change is "
            "distinguishable from no change. Best and mixed plans may hold other bits in "
            "each run."
        ),
        marked=tuple(i for i, row in enumerate(rows) if row[0] == BUDGETED),
    )
    return Section(key="plans", title="Whole plans in both runs", blocks=(table,))


def _points(loss: Interval) -> str:
    return f"{number(loss.value)} ({span(loss.low, loss.high)})"


def _left_out(changes: RunChanges) -> Iterator[Block]:
    for names, which in ((changes.only_first, "first"), (changes.only_second, "second")):
        if names:
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            listed = ", ".join(names[:20]) + more
            yield Words(text=f"Only the {which} run has {len(names)} modules: {listed}.")
    for reason, count in changes.skipped.items():
        yield Words(text=f"{count} cells: {reason}.")
