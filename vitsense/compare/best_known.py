"""Single modules by the best measurement that a run has of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vitsense.formats import format_of
from vitsense.settings import Direction, Part

if TYPE_CHECKING:
    import pandas as pd

Known = tuple[tuple[str, str, str, str], Mapping[str, Any]]
"""Model, module, part and format of a cell, and what is known of it."""

_MEASURED = ("drop", "drop_low", "drop_high", "agreement", "agreement_low", "agreement_high",
             "kl", "kl_low", "kl_high")  # fmt: skip
_COPIED = (*_MEASURED, "n", "distinguishable", "lost", "gained", "sqnr_db", "sqnr_low", "sqnr_high")


def best_known(
    sensitivity: pd.DataFrame, modules: pd.DataFrame, groups: pd.DataFrame, causes: pd.DataFrame
) -> pd.DataFrame:
    """``sensitivity.csv`` with the cells that the run measured once more, on more images.

    Modes adaptive and fast rate a cell from some of the images, or from an estimate. Groups and
    remedies are measured on all: a group of one module, or a module as it was before its remedies,
    is the same thing as its cell, known better. Lists that rank modules, and the cells that readers
    see, take this table; plans were chosen by the other one.

    Args:
        sensitivity: ``sensitivity.csv``.
        modules: ``modules.csv``.
        groups: ``groups.csv``.
        causes: ``causes.csv``.

    Returns:
        A table with the same rows and columns; ``mode`` is that of the sweep.
    """
    known = dict([*_before_remedies(causes), *_groups_of_one(modules, groups)])
    if not known:
        return sensitivity
    found = sensitivity.copy()
    cells = zip(*(found[c] for c in ("model", "module", "part", "format")), strict=True)
    counts = found["n"].fillna(0) * (found["status"] == "measured")
    for index, cell, seen in zip(found.index, cells, counts, strict=True):
        better = known.get(cell)
        if better is None or int(better["n"]) <= int(seen):
            continue
        columns = [column for column in _COPIED if column in better]
        found.loc[index, columns] = [better[column] for column in columns]
        found.loc[index, ["status", "reason"]] = ["measured", ""]
    return found


def better_formats(rated: pd.DataFrame, known: pd.DataFrame) -> dict[str, dict[str, float]]:
    """In which formats each module is known better than the sweep rated it, and what it costs.

    Args:
        rated: ``sensitivity.csv`` of a run.
        known: `best_known` of it, or one model's rows.

    Returns:
        Module -> format in words -> divergence, nats.
    """
    changed = known[known["kl"].ne(rated.loc[known.index, "kl"]) & known["kl"].notna()]
    found: dict[str, dict[str, float]] = {}
    for module, form, kl in zip(changed["module"], changed["format"], changed["kl"], strict=True):
        found.setdefault(str(module), {})[format_of(str(form)).words] = float(kl)
    return found


def _groups_of_one(modules: pd.DataFrame, groups: pd.DataFrame) -> Iterator[Known]:
    """Groups that are one module, quantized alone."""
    alone = groups[
        (groups["members"] == 1)
        & (groups["direction"] == Direction.ALONE.value)
        & (groups["status"] == "measured")
        & groups["by"].isin(["module", "role", "block", "stage"])
    ]
    members: dict[tuple[str, str, str], list[str]] = {}
    for by in alone["by"].unique():
        for model, group, name in zip(
            modules["model"], modules[by], modules["module"], strict=True
        ):
            members.setdefault((model, by, group), []).append(name)
    for row in alone.to_dict("records"):
        of = members.get((row["model"], row["by"], row["group"]), [])
        if len(of) == 1:
            yield (row["model"], of[0], row["part"], row["format"]), row


def _before_remedies(causes: pd.DataFrame) -> Iterator[Known]:
    """Modules as they are, measured beside their remedies on every image of the run."""
    for row in causes.dropna(subset=["n_before", "kl_before_low"]).to_dict("records"):
        found = {name: row[before(name)] for name in _MEASURED}
        found["distinguishable"] = bool(found["drop_low"] > 0 or found["drop_high"] < 0)
        cell = (row["model"], row["module"], Part.BOTH.value, row["format"])
        yield cell, found | {"n": int(row["n_before"])}


def before(column: str) -> str:
    """The column of ``causes.csv`` that has ``column`` of the module as it is, without remedy."""
    value, _, end = column.partition("_")
    return f"{value}_before_{end}" if end else f"{value}_before"
