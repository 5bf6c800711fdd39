"""Which statistics would have told how sensitive modules are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitsense.compare.groups import group_label
from vitsense.formats import format_of
from vitsense.report.chapters.unfinished import completing, ended_early
from vitsense.report.formatters import number, span
from vitsense.report.section import (
    Block,
    Chart,
    Finding,
    Section,
    Series,
    Shape,
    Table,
    Words,
    without_dashes,
)
from vitsense.schemas import STATISTIC_WORDS
from vitsense.verdict import best_predictor, decisive_format

if TYPE_CHECKING:
    import pandas as pd

    from vitsense.report.source import Source

_SHOWN = 12
_NONE = "\N{EN DASH}"


def predictors(source: Source, model: str) -> Section | None:
    """How well each statistic ranks the modules like what was measured."""
    rows = source.table("predictors", model)
    sentence = best_predictor(model, rows)
    place = source.keys.index(model)
    title = "What predicts the sensitivity"
    if sentence is None:
        if not ended_early(source):
            return _without(source, model)
        words = completing(source, "Statistics were not compared with the divergence")
        return Section(key=f"predictors-{place}", title=title, blocks=(words,))
    text = sentence.removeprefix(f"{model}: ")
    whole = rows[rows["scope"] == "all"]
    blocks: list[Block] = [
        Finding(headline=text[:1].upper() + text[1:].rstrip("."), numbers=_METHOD),
        _chart(whole, place),
        _table(whole),
    ]
    if (rows["scope"] != "all").any():
        blocks.append(_by_role(rows))
    return Section(key=f"predictors-{place}", title=title, blocks=tuple(blocks))


def _without(source: Source, model: str) -> Section | None:
    """Why statistics were not compared: modes that estimate have nothing to compare them with."""
    mode = source.record["settings"].get("mode")
    if mode not in ("fast", "hessian"):
        return None
    text = (
        f"Not known here: mode {mode} estimates single modules, and statistics are compared with "
        "what was measured. The same command with --mode adaptive does, in a folder of its own."
    )
    key = f"predictors-{source.keys.index(model)}"
    return Section(key=key, title="What predicts the sensitivity", blocks=(Words(text=text),))


_METHOD = (
    "Spearman's rank correlation over modules; 95 % interval by Fisher's z (Bonett and Wright "
    "2000). With the drop, and by role in every format, in predictors.csv."
)


def _ordered(rows: pd.DataFrame, form: str) -> pd.DataFrame:
    part = rows[(rows["format"] == form) & (rows["target"] == "kl")]
    return part.loc[part["spearman"].abs().sort_values(ascending=False, kind="stable").index]


def _chart(rows: pd.DataFrame, place: int) -> Chart:
    form = decisive_format(rows)
    assert form is not None
    best = _ordered(rows, form.name)[:_SHOWN]
    names = [STATISTIC_WORDS.get(s, s) for s in best["statistic"]]
    values = tuple(float(v) for v in best["spearman"])
    said = ", ".join(f"{n} {number(v, 2)}" for n, v in zip(names, values, strict=True))
    return Chart(
        name=f"predictors-{place}",
        title=f"Rank correlation with the measured divergence at {form.words}",
        alt=f"Rank correlations: {said}.",
        reading=(
            "Farther from 0 is better; below 0, larger values mean less sensitive modules. Lines "
            "are 95 % intervals."
        ),
        shape=Shape.BARS,
        x_label="Spearman's rank correlation",
        y_label="",
        series=(
            Series(
                name="rank correlation",
                x=tuple(float(i) for i in range(len(values))),
                y=values,
                low=tuple(float(v) for v in best["low"]),
                high=tuple(float(v) for v in best["high"]),
                colour=place,
                labels=tuple(names),
            ),
        ),
    )


def _table(rows: pd.DataFrame) -> Table:
    """Statistics against formats: correlations with the divergence."""
    forms = list(dict.fromkeys(rows["format"]))
    form = decisive_format(rows)
    assert form is not None
    order = list(_ordered(rows, form.name)["statistic"])
    cells = {
        (r["statistic"], r["format"]): r for r in rows[rows["target"] == "kl"].to_dict("records")
    }

    def shown(statistic: str, name: str) -> str:
        return _correlation(cells.get((statistic, name)))

    estimated = set(_ESTIMATES) & set(rows["statistic"])
    return Table(
        title="Rank correlation of every statistic with the measured divergence",
        head=("Statistic", *(format_of(name).words for name in forms)),
        rows=tuple((STATISTIC_WORDS.get(s, s), *(shown(s, name) for name in forms)) for s in order),
        reading=(
            "Ordered by the distance from 0 at "
            f"{form.words}, with 95 % intervals: one that holds 0 says that the statistic may say "
            "nothing. Statistics of activations are of the module's tensor with the heaviest tail; "
            "SDAM is the standard deviation over channels of the mean absolute value."
            + _unmeasured(estimated)
        ),
    )


def _unmeasured(estimated: set[str]) -> str:
    """How to get the estimates that this run has not."""
    said = {
        "fisher_kl": "The Fisher estimate was not asked for: leave out --no-estimates.",
        "hessian_kl": "Hessian traces were not asked for: --hessian-probes 32 adds them.",
    }
    return "".join(f" {words}" for name, words in said.items() if name not in estimated)


def _by_role(rows: pd.DataFrame) -> Table:
    """Within each role: the estimates, and the statistic of tensors that ranked best."""
    form = decisive_format(rows)
    assert form is not None
    part = rows[(rows["format"] == form.name) & (rows["target"] == "kl") & (rows["scope"] != "all")]
    lines = []
    for role, found in part.groupby("scope", sort=False):
        order = found["spearman"].abs().sort_values(ascending=False, kind="stable").index
        ranked = found.loc[order].to_dict("records")
        estimates = {r["statistic"]: r for r in ranked if r["statistic"] in _ESTIMATES}
        best = next((r for r in ranked if r["statistic"] not in _ESTIMATES), None)
        lines.append(
            (
                group_label(str(role)),
                str(ranked[0]["n"]),
                *(_correlation(estimates.get(name)) for name in _ESTIMATES),
                _NONE if best is None else STATISTIC_WORDS[best["statistic"]],
                _correlation(best),
            )
        )
    return without_dashes(
        Table(
            title=f"Rank correlation within each role at {form.words}",
            head=(
                "Role",
                "Modules",
                *(STATISTIC_WORDS[name] for name in _ESTIMATES),
                "Best statistic of tensors",
                "Its correlation",
            ),
            rows=tuple(lines),
            reading=(
                "Roles of fewer than five modules are left out. The best of many statistics is "
                "best partly by chance: its interval does not allow for the choice."
            ),
        )
    )


_ESTIMATES = ("fisher_kl", "hessian_kl")


def _correlation(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return _NONE
    return f"{number(row['spearman'], 2)} ({span(row['low'], row['high'], 2)})"
