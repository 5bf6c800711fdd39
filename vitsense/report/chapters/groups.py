"""Groups of modules in both directions: the paper's leave-one-out table on the user's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitsense.compare.groups import group_label
from vitsense.formats import format_of
from vitsense.report.chapters.unfinished import completing, ended_early
from vitsense.report.formatters import (
    count,
    difference,
    known,
    loss_of,
    number,
    short_span,
    span,
    visible,
)
from vitsense.report.section import Section, Table, Words, without_dashes
from vitsense.settings import By, Direction, Part, SweepMode

if TYPE_CHECKING:
    import pandas as pd

    from vitsense.report.source import Source

MOST = 40
"""Rows of one table; the groups with the largest divergence are shown."""

_PARTS = {
    Part.BOTH.value: "",
    Part.WEIGHTS.value: ", weights only",
    Part.ACTIVATIONS.value: ", activations only",
}
_WORDS = {
    By.ROLE.value: "role",
    By.BLOCK.value: "block",
    By.STAGE.value: "stage",
    By.HEAD.value: "attention head",
    By.MODULE.value: "module",
    By.SITE.value: "tensor",
}
_CODE = frozenset({By.BLOCK.value, By.STAGE.value, By.MODULE.value, By.SITE.value, By.HEAD.value})
"""Groupings whose groups are named after the model's code."""

_DASH = "\u2013"
_NAMED = 6  # groups that are named in a sentence


def groups_chapter(source: Source, model: str) -> Section | None:
    """One table for every grouping, format and part; None where no group was asked for."""
    frame = source.table("groups", model)
    if frame.empty:
        return _without(source)
    loss = "drop (points)" if source.labelled(model) else "loss of agreement (points)"
    blocks: list[Words | Table] = [
        Words(
            text=(
                "Only this: the whole group is quantized and everything else stays in full "
                "precision. All but this: everything is quantized and the group stays in full "
                "precision; recovery is what that gives back of the loss of everything quantized."
            )
        )
    ]
    whole = frame[frame["by"] == "model"].set_index(["format", "part"])
    groups = frame[frame["by"] != "model"]
    measured = groups[groups["status"] == "measured"]
    blocks += _one_module(source, measured)
    reading = _READING
    for (by, form, part), rows in measured.groupby(["by", "format", "part"], sort=False):
        everything = whole.loc[(form, part)]
        blocks.append(_table((str(by), str(form), str(part)), rows, everything, loss, reading))
        reading = "As in the table above."
    blocks += _unmeasured(source, groups[groups["status"] != "measured"])
    return Section(key="groups", title=_TITLE, blocks=tuple(blocks))


def _without(source: Source) -> Section | None:
    """Why a run has no groups: modes that estimate measure none unless asked."""
    mode = source.record["settings"].get("mode")
    if mode not in ("fast", "hessian"):
        return None
    text = (
        f"No groups were measured: mode {mode} measures none unless asked. The same command with "
        "--by role does, in a folder of its own."
    )
    return Section(key="groups", title=_TITLE, blocks=(Words(text=text),))


_TITLE = "Groups: alone, and spared"

_READING = (
    "Points and nats with 95 % intervals, paired on the same images. A group that costs much alone "
    "and gives much back when it is spared is sensitive in both senses; where the two disagree, "
    "other groups make up for it or make it worse. A recovery whose interval holds 0 is not "
    "distinguishable from zero. Recoveries are differences, computed before rounding, and have one "
    "decimal more."
)


def _one_module(source: Source, measured: pd.DataFrame) -> list[Words]:
    """That a group of one module is what its row among the modules shows."""
    mode = str(source.record["settings"].get("mode", SweepMode.EXACT.value))
    alone = measured["direction"] == Direction.ALONE.value
    parts = measured["by"].isin([By.SITE.value, By.HEAD.value])  # of a module
    ones = measured[(measured["members"] == 1) & alone & ~parts]
    if mode == SweepMode.EXACT.value or ones.empty:
        return []
    names = [group_label(str(name)) for name in ones["group"].drop_duplicates()]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    fewest, most = int(ones["n"].min()), int(ones["n"].max())
    seen = f"{most}" if fewest == most else f"{fewest} to {most}"
    return [
        Words(
            text=f"Groups of one module ({visible(', '.join(names[:_NAMED]))}{more}) are that "
            f"module, measured on {seen} images. Its row among the modules shows this number, "
            f"which is more certain than the one of mode {mode} by which the plan was chosen."
        )
    ]


def _unmeasured(source: Source, rows: pd.DataFrame) -> list[Words]:
    """The groups without a measurement, by reason, so that no cell has to say it."""
    found = []
    for reason, those in rows.groupby("reason", sort=False):
        names = [
            f"{group_label(str(row['group']))} at {format_of(str(row['format'])).words} "
            f"({'alone' if row['direction'] == Direction.ALONE.value else 'spared'})"
            for row in those.to_dict("records")
        ]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        listed = visible(", ".join(names[:_NAMED]))
        said = f"{len(names)} measurements of groups are missing ({listed}{more})"
        text = f"{said}: {reason}."
        if "time budget" in str(reason) and ended_early(source):
            text = completing(source, said).text
        found.append(Words(text=text))
    return found


def _table(
    what: tuple[str, str, str],
    rows: pd.DataFrame,
    whole: Mapping[str, Any],
    loss: str,
    reading: str,
) -> Table:
    by, form, part = what
    title = f"By {_WORDS[by]} at {format_of(form).words}{_PARTS[part]}"
    names = list(dict.fromkeys(rows["group"]))
    if len(names) > MOST:
        largest = rows.groupby("group")["kl"].max().sort_values(ascending=False, kind="stable")
        names = [name for name in names if name in set(largest.index[:MOST])]
        title += f", the {MOST} with the largest divergence"
    cells = {(r["group"], r["direction"]): r for r in rows.to_dict("records")}
    body = [
        _row(
            name,
            cells.get((name, Direction.ALONE.value)),
            cells.get((name, Direction.SPARED.value)),
        )
        for name in names
    ]
    everything = (
        "everything",
        str(whole["members"]),
        count(int(whole["params"])),
        _loss(whole),
        _divergence(whole),
        _DASH,
        _DASH,
        _DASH,
    )
    return without_dashes(
        Table(
            title=title,
            head=(
                "Group",
                "Modules",
                "Weights",
                f"Only this: {loss}",
                "Only this: divergence (nats)",
                f"All but this: {loss}",
                "Recovery (points)",
                "Recovery (nats)",
            ),
            rows=(everything, *body),
            reading=reading,
            marked=(0,),
            code=by in _CODE,
        )
    )


def _row(
    name: str, alone: Mapping[str, Any] | None, spared: Mapping[str, Any] | None
) -> tuple[str, ...]:
    some = alone or spared
    assert some is not None
    return (
        group_label(name),
        str(some["members"]),
        count(int(some["params"])) if some["params"] else "none",
        _loss(alone),
        _divergence(alone),
        _loss(spared),
        *_recovery(spared),
    )


def _measured(row: Mapping[str, Any] | None) -> bool:
    return row is not None and row["status"] == "measured"


def _loss(row: Mapping[str, Any] | None) -> str:
    if row is None or not _measured(row):
        return _DASH
    value, low, high = loss_of(row)
    return f"{number(value)} ({span(low, high)})"


def _divergence(row: Mapping[str, Any] | None) -> str:
    if row is None or not _measured(row):
        return _DASH
    return short_span(*(float(row[f"kl{end}"]) for end in ("", "_low", "_high")))


def _recovery(row: Mapping[str, Any] | None) -> tuple[str, str]:
    if row is None or not _measured(row) or not known(row["recovery_kl"]):
        return _DASH, _DASH
    ends = ("", "_low", "_high")
    points = difference(*(float(row[f"recovery{end}"]) for end in ends))
    return points, short_span(*(float(row[f"recovery_kl{end}"]) for end in ends))
