"""The columns of the sensitivity table for cells that saw a stratified sample, or none at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitsense.sensitivity import sequential
from vitsense.sensitivity.interval import CONFIDENCE
from vitsense.sensitivity.result import Cell
from vitsense.sensitivity.sequential import Estimates, Sample


def estimated_columns(sample: Sample, looks: int) -> list[dict[str, Any]]:
    """Estimates for all images, from the samples of cells; one row of columns for each.

    ``lost`` and ``gained`` count images of the sample; the drop weighs them by what they stand for.
    """
    labelled = bool((sample["labelled"] > 0).all())
    flips = sequential.flips(sample, looks, CONFIDENCE)
    columns: dict[str, Any] = {
        "n": sample["n"].sum(axis=1),
        "agreement": 100 * (1 - flips.value),
        "agreement_low": 100 * (1 - flips.high),
        "agreement_high": 100 * (1 - flips.low),
        **_ends(("kl", "kl_low", "kl_high"), sequential.divergence(sample, looks, CONFIDENCE), 1),
        **_ends(
            ("sqnr_db", "sqnr_low", "sqnr_high"), sequential.sqnr_db(sample, looks, CONFIDENCE), 1
        ),
    }
    if labelled:
        drop = sequential.drop(sample, looks, CONFIDENCE)
        columns |= _ends(("drop", "drop_low", "drop_high"), drop, 100)
        columns |= {name: sample[name].sum(axis=1) for name in ("lost", "gained")}
        columns["distinguishable"] = (drop.low > 0) | (drop.high < 0)
    names = list(columns)
    rows = zip(*(columns[name].tolist() for name in names), strict=True)
    return [_whole(dict(zip(names, row, strict=True))) for row in rows]


def bounded_columns(row: Mapping[str, Any], narrow: Cell) -> tuple[dict[str, Any], str]:
    """What a harmless narrower cell says of a wider one that was not looked at, and in words.

    Args:
        row: Columns of the narrower cell.
        narrow: The cell.
    """
    labelled = row.get("drop_high") is not None
    columns = {name: row[name] for name in ("kl_high", "agreement_low")}
    if labelled:
        columns["drop_high"] = max(row["drop_high"], 0.0)
    most = columns["drop_high"] if labelled else 100 - row["agreement_low"]
    what = "points lost" if labelled else "% of images changed"
    return columns, (
        f"not looked at: {narrow.bits} bits are harmless already (at most {most:.2g} {what} and "
        f"{row['kl_high']:.2g} nats there, {row['n']} images)"
    )


def _ends(names: tuple[str, str, str], found: Estimates, factor: float) -> dict[str, Any]:
    ends = (found.value, found.low, found.high)
    return {name: factor * end for name, end in zip(names, ends, strict=True)}


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """Counts as integers."""
    return row | {name: int(row[name]) for name in ("n", "lost", "gained") if name in row}
