"""Why modules are sensitive, and what helped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vitsense.decimals import counted, listed
from vitsense.formats import format_of
from vitsense.report.chapters.unexplained import unexplained
from vitsense.report.chapters.unfinished import completing, ended_early
from vitsense.report.formatters import (
    known,
    number,
    short,
    short_span,
    signs,
    span,
    spelled,
    visible,
)
from vitsense.report.remedy import lowers, outcome, tests_cause
from vitsense.report.section import Block, Finding, Section, Table, without_dashes
from vitsense.schemas import RATED
from vitsense.verdict import worst_modules

if TYPE_CHECKING:
    import pandas as pd

    from vitsense.report.source import Source

_DASH = "\N{EN DASH}"
_ARROW = "\N{RIGHTWARDS ARROW}"


def causes(source: Source, model: str) -> Section | None:
    """Causes of the most sensitive modules, with the remedies that were measured.

    None where the run did not look for causes; what it looked at without finding one is described
    by what is known of it.
    """
    rows = source.table("causes", model)
    blocks: list[Block] = []
    if rows.empty and ended_early(source):
        blocks.append(completing(source, "Reasons were not looked for"))
    elif len(rows):
        blocks += _explained(source, rows)
        blocks += unexplained(source, model, frozenset(rows["module"]))
    if not blocks:
        return None
    blocks = [*order_finding(source.table("sensitivity", model)), *blocks]
    place = source.keys.index(model)
    return Section(
        key=f"causes-{place}", title="Why these modules, and what helps", blocks=tuple(blocks)
    )


_FIRST = 5
"""The modules that the first screen names."""


def order_finding(sensitivity: pd.DataFrame) -> list[Finding]:
    """How sure it is which modules are the most sensitive ones.

    Args:
        sensitivity: ``sensitivity.csv`` of a model.

    Returns:
        A finding; none where no more modules than the first were rated.
    """
    worst = worst_modules(sensitivity, _FIRST)
    if worst is None:
        return []
    names, _, form = worst
    cells = sensitivity[(sensitivity["format"] == form.name) & (sensitivity["part"] == "both")]
    cells = cells[cells["status"].isin(RATED)].set_index("module")
    lows, highs = cells["kl_low"].astype(float), cells["kl_high"].astype(float)
    others = highs.drop(names)
    if others.empty:
        return []
    sure = [name for name in names if lows[name] > float(others.max())]
    near = int((others >= float(lows[names].min())).sum())
    first = [name for name in cells.index if highs[name] >= lows[names[0]] and name != names[0]]
    head = (
        f"{names[0]} is the most sensitive module at {form.words}, with its whole interval"
        if not first
        else f"Which module is the most sensitive at {form.words} cannot be told"
    )
    reach = f"{_intervals(len(first))} that of {names[0]}" if first else ""
    belong = (
        f"all of the first {len(names)} surely belong there"
        if len(sure) == len(names)
        else f"of the first {len(names)}, {listed(sure) if sure else 'none'} surely "
        f"belong{'s' * (len(sure) < 2)} there; {_intervals(near)} theirs"
    )
    numbers = "; ".join(filter(None, (reach, belong)))
    return [
        Finding(headline=visible(head), numbers=visible(f"{numbers[:1].upper()}{numbers[1:]}."))
    ]


def _intervals(count: int) -> str:
    """Of how many other modules the intervals reach something."""
    return (
        "the interval of one other reaches"
        if count == 1
        else (f"the intervals of {count} others reach")
    )


def _explained(source: Source, rows: pd.DataFrame) -> list[Block]:
    words = format_of(str(rows["format"].iloc[0])).words
    done = rows["kl_after"].notna() & rows["kl_before"].notna()
    tried, others = rows[done], rows[~done]
    blocks: list[Block] = []
    if len(tried):
        blocks += [_best_remedy(tried), _tried(tried, words)]
    elif ended_early(source):
        blocks.append(completing(source, "Remedies were not tried"))
    if len(others):
        blocks.append(_untried(others, words, tried))
    return blocks


def _tried(rows: pd.DataFrame, words: str) -> Table:
    return without_dashes(
        Table(
            title=f"Reasons of the most sensitive modules at {words}, and remedies that were tried",
            head=(
                "Module",
                "Suspected reason, at its tensor",
                "Remedy",
                "Result",
                f"Divergence, before {_ARROW} after (nats)",
                f"Drop, before {_ARROW} after (points)",
            ),
            rows=tuple(_measured(row, reasons) for row, reasons in _experiments(rows)),
            reading=(
                "Each remedy was applied to the one tensor named, everything else of the module "
                "stayed as it was, and the same images were measured again; intervals are 95 %. "
                "Before is the module as it is, on all images like its remedies. It helps, or is "
                "worse, where the divergence before is outside the interval after. A reason is "
                "called Reason in its module's part where a remedy against it helps, else "
                "Suspicion. More bits lower the divergence of any tensor: they test no cause."
                + (
                    " This run kept no interval of it: the table of modules shows the sweep's "
                    "number, on fewer images or estimated."
                    if rows["n_before"].isna().all()
                    else ""
                )
            ),
            code=True,
            across=(1, 2),
        )
    )


def _record(tried: pd.DataFrame, remedy: str) -> str:
    """How often a remedy helped where this run tried it."""
    trials = tried[tried["remedy"] == remedy].drop_duplicates(["module", "site"])
    if trials.empty or not tests_cause({"remedy": remedy}):
        return remedy
    helped = sum(map(lowers, trials.to_dict("records")))
    return f"{remedy} (helped in {helped} of {len(trials)} trials above)"


def _untried(rows: pd.DataFrame, words: str, tried: pd.DataFrame) -> Table:
    some = len(tried) > 0
    others = "the other sensitive" if some else "the most sensitive"
    return Table(
        title=f"Reasons of {others} modules at {words}",
        head=("Module", "Suspected reason, at its tensor", "What may help"),
        rows=tuple(
            (str(row["module"]), reasons, _record(tried, str(row["remedy"])))
            for row, reasons in _experiments(rows)
        ),
        reading=(
            "What may help is what the literature advises against the reason; it was not measured "
            "for these modules"
            + (
                ", only for the most sensitive ones of all: in brackets, how often it helped "
                "there. Clipping can do little where ranges of least squared error clip already."
                if some
                else "."
            )
        ),
        code=True,
    )


def _experiments(rows: pd.DataFrame) -> Iterator[tuple[Mapping[str, Any], str]]:
    """What was, or may be, done, each once, and the reasons at that tensor that speak for it."""
    for _, part in rows.groupby(["module", "site", "remedy"], sort=False):
        found = part.to_dict("records")
        about = "; ".join(f"{row['cause']} ({_detail(row)})" for row in found)
        yield found[0], f"{_tensor(found[0])}: {about}"


def _best_remedy(tried: pd.DataFrame) -> Finding:
    """What the remedies against a cause did; more bits are no evidence for one."""
    telling = [(row, reasons) for row, reasons in _experiments(tried) if tests_cause(row)]
    others = sum(1 for _ in _experiments(tried)) - len(telling)
    rest = (
        f" In {counted(others, 'other trial' if telling else 'trial')} a tensor got more bits, "
        "which lowers its divergence whatever the cause."
        if others
        else ""
    )
    if not telling:
        return Finding(
            headline="No remedy that tests a cause was tried", numbers=visible(rest.strip())
        )
    row, reasons = min(telling, key=lambda trial: _after_by_before(trial[0]))
    before = float(row["kl_before"])
    ends = [float(row[f"kl_after{end}"]) for end in ("", "_low", "_high")]
    head = "No remedy that tests a cause helped distinguishably"
    if lowers(row):
        head = (
            f"With {row['remedy']} at its {_tensor(row)}, the divergence of {row['module']} falls "
            f"from {short(before)} to {short(ends[0])} nats"
        )
    words = [outcome(trial) for trial, _ in telling]
    helped, worse = (sum(word.startswith(name) for word in words) for name in ("helps", "worse"))
    return Finding(
        headline=visible(head),
        numbers=visible(
            f"Of {counted(len(telling), 'trial')} of a remedy against a cause {helped} helped and "
            f"{worse} made it worse "
            f"(by divergence). Best: {row['remedy']}, {row['module']}, {reasons}: "
            f"{outcome(row)}, {short(before)} became {short_span(*ends)} nats.{rest}"
        ),
    )


def _after_by_before(row: Mapping[str, Any]) -> float:
    before = float(row["kl_before"])
    return float(row["kl_after"]) / before if before > 0 else math.inf


def _tensor(row: Mapping[str, Any]) -> str:
    return str(row["site"]).rpartition(":")[2].replace("_", " ")


def _detail(row: Mapping[str, Any]) -> str:
    return spelled(signs(str(row["detail"])))


def _measured(row: Mapping[str, Any], reasons: str) -> tuple[str, ...]:
    drop, after = _DASH, [float(row[f"kl_after{end}"]) for end in ("", "_low", "_high")]
    if known(row["drop_before"]) and known(row["drop_after"]):
        between = span(row["drop_after_low"], row["drop_after_high"])
        drop = f"{number(row['drop_before'])} {_ARROW} {number(row['drop_after'])} ({between})"
    return (
        str(row["module"]),
        reasons,
        str(row["remedy"]),
        outcome(row) or _DASH,
        f"{short(float(row['kl_before']))} {_ARROW} {short_span(*after)}",
        drop,
    )
