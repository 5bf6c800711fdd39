"""What each part of a recipe is worth, and its rivals: the ablations of a model's trainings."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitsense.decimals import MINUS, counted, listed, number, span
from vitsense.report.section import Block, Caution, Section, Table, Words, without_dashes
from vitsense.trainings import budget_words

if TYPE_CHECKING:
    from vitsense.report.source import Source
    from vitsense.trainings import AblationFolder

_FULL = "full"
_NOTHING = "\N{EN DASH}"

Row = Mapping[Hashable, Any]


def ablation(source: Source, model: str) -> Section | None:
    """The ablations of the model's weights; None where there are none."""
    digest = next(e["weights_digest"] for e in source.entries if e["key"] == model)
    found = [(one, one.read_record()) for one in source.ablations]
    own = [(one, said) for one, said in found if said["model"]["weights_digest"] == digest]
    return ablation_chapter(own, source.keys.index(model))


def ablation_chapter(
    found: Sequence[tuple[AblationFolder, Mapping[str, Any]]], number_of_model: int
) -> Section | None:
    """The chapter about ablations of one model; None without any.

    Args:
        found: Their folders, each with the record of one of its trainings.
        number_of_model: The model's place.
    """
    blocks: list[Block] = []
    for folder, record in found:
        rows = folder.read_table().to_dict("records")
        said = [f"{folder.name}: {budget_words(record)}", *_accuracies(record)]
        blocks += [Words(text=" ".join(said)), _table(rows, _measure(record))]
        begun = folder.begun - {_folder(row["variant"]) for row in rows}
        if begun:
            names = listed(sorted(begun))
            blocks.append(Caution(texts=(f"Not finished, and not in the table: {names}.",)))
    if not blocks:
        return None
    return Section(
        key=f"ablation-{number_of_model}",
        title="What each part of the recipe is worth",
        blocks=tuple(blocks),
    )


def _folder(variant: str) -> str:
    """What the folders of its trainings are called, without the seed."""
    return variant.replace(" ", "-")


def _measure(record: Mapping[str, Any]) -> str:
    return "top-1" if record["last"].get("top1") is not None else "agreement"


def _accuracies(record: Mapping[str, Any]) -> list[str]:
    fp, untrained = record["fp"], record["ptq"]
    if fp.get("top1") is None:
        return []
    before = "" if untrained is None else f"; quantized, not trained {number(untrained['top1'])} %"
    return [f"Full precision {number(fp['top1'])} % top-1{before}."]


def _table(rows: Sequence[Row], what: str) -> Table:
    return without_dashes(
        Table(
            title=finding(rows),
            head=(
                "Variant",
                "Seeds",
                f"Trained, last ({what}, %)",
                "Against full (points)",
                "Divergence (nats)",
                "Against full (nats)",
                "Time",
            ),
            rows=tuple(_cells(row) for row in rows),
            marked=tuple(i for i, row in enumerate(rows) if row["variant"] == _FULL),
            reading=(
                "full: the recipe; without ...: the recipe less one part; the others are rival "
                "recipes with the same budget. More points and fewer nats are better. Intervals "
                "(95 %) are over seeds and leave out the sampling error of the evaluation images; "
                "against full is paired by seed. Of twenty variants that differ in nothing, about "
                "one is told apart by chance."
            ),
        )
    )


def finding(rows: Sequence[Row]) -> str:
    """Which variants can be told from the recipe, in a sentence.

    Args:
        rows: Of ``ablation.csv``.
    """
    others = [row for row in rows if _known(row["against_full"])]
    if not others:
        return f"{counted(len(rows), 'variant')} trained with one budget"
    if any(math.isinf(row["against_low"]) for row in others):
        return "One seed: what variants differ by cannot be told from the luck of a seed"
    told = [row for row in others if row["against_low"] > 0 or row["against_high"] < 0]
    if told:
        words = listed(
            [f"{row['variant']} ({_signed(row['against_full'])} points)" for row in told]
        )
        rest = "" if len(told) == len(others) else "; the others cannot be told from it"
        return f"Differs from the full recipe: {words}{rest}"
    nats = [row for row in others if row["kl_against_low"] > 0 or row["kl_against_high"] < 0]
    if nats:
        words = listed(
            [f"{row['variant']} ({_signed(row['kl_against_full'], 3)} nats)" for row in nats]
        )
        return f"In accuracy no variant can be told from the full recipe; in divergence {words} can"
    return "No variant can be told from the full recipe"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        str(row["variant"]),
        str(row["seeds"]),
        _mean(row, "last", 1),
        _gap(row, "against", 1),
        _mean(row, "kl", 3),
        _gap(row, "kl_against", 3),
        f"{row['seconds']:.0f} s",
    )


def _mean(row: Row, key: str, digits: int) -> str:
    if not _known(row[key]):
        return _NOTHING
    return number(row[key], digits) + _ends(row[f"{key}_low"], row[f"{key}_high"], digits)


def _gap(row: Row, key: str, digits: int) -> str:
    if not _known(row[f"{key}_full"]):
        return _NOTHING
    ends = _ends(row[f"{key}_low"], row[f"{key}_high"], digits)
    return _signed(row[f"{key}_full"], digits) + ends


def _ends(low: float, high: float, digits: int) -> str:
    return "" if math.isinf(low) or math.isinf(high) else f" ({span(low, high, digits)})"


def _signed(value: float, digits: int = 1) -> str:
    text = number(value, digits)
    return text if text.startswith(MINUS) or not re.search("[1-9]", text) else f"+{text}"


def _known(value: Any) -> bool:
    return value is not None and not math.isnan(float(value))
