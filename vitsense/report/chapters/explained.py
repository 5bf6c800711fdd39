"""Why modules are sensitive and what helped, and which statistics would have told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitsense.formats import format_of
from vitsense.report.formatters import known, number, short, short_span, span
from vitsense.report.remedy import outcome
from vitsense.report.section import Block, Chart, Finding, Section, Series, Shape, Table
from vitsense.schemas import STATISTIC_WORDS
from vitsense.verdict import best_predictor, decisive_format

if TYPE_CHECKING:
    import pandas as pd

    from vitsense.report.source import Source

_SHOWN = 12
_NONE = "\N{EN DASH}"


def causes(source: Source, model: str) -> Section | None:
    """Causes of the most sensitive modules, with the remedy that was measured."""
    rows = source.table("causes", model)
    if rows.empty:
        return None
    tried = rows[rows["kl_after"].notna() & rows["kl_before"].notna()]
    blocks: list[Block] = []
    if len(tried):
        blocks.append(_best_remedy(tried))
    words = format_of(str(rows["format"].iloc[0])).words
    columns = len(_CAUSE_HEAD) if len(tried) else _CAUSE_HEAD.index("Remedy") + 1
    blocks.append(
        Table(
            title=f"Reasons and remedies of the most sensitive modules at {words}",
            head=_CAUSE_HEAD[:columns],
            rows=tuple(_cause(row)[:columns] for row in rows.to_dict("records")),
            reading=(
                "Each remedy was applied to the one tensor named, everything else of the module "
                "stayed as it was, and the same images were measured again; intervals are 95 %. "
                "Before is the module as it is, on all images like its remedies; modes adaptive "
                "and fast rate it above from fewer. "
                "A dash: not tried. It helps, or is worse, where the divergence before is outside "
                "the interval after."
                if len(tried)
                else "What is known to help against each reason; none was measured in this run."
            ),
        )
    )
    place = source.keys.index(model)
    return Section(
        key=f"causes-{place}", title="Why these modules, and what helps", blocks=tuple(blocks)
    )


_CAUSE_HEAD = (
    "Module",
    "Tensor",
    "Reason",
    "Number",
    "Remedy",
    "Divergence before (nats)",
    "After",
    "Result",
    "Loss before (points)",
    "After",
)


def _best_remedy(tried: pd.DataFrame) -> Finding:
    ratio = tried["kl_after"] / tried["kl_before"].where(tried["kl_before"] > 0)
    row = tried.loc[ratio.idxmin()] if ratio.notna().any() else tried.iloc[0]
    before, after = float(row["kl_before"]), float(row["kl_after"])
    helped = float(row["kl_after_high"]) < before
    head = f"{row['module']}: {row['remedy']}" if helped else "No remedy helped distinguishably"
    return Finding(
        headline=f"{head} takes the divergence from {short(before)} to {short(after)} nats"
        if helped
        else head,
        numbers=(
            f"At its {_tensor(row)}, because of: {row['cause']} ({row['detail']}); after: "
            f"{short(float(row['kl_after_low']))} to {short(float(row['kl_after_high']))} nats."
        ),
    )


def _tensor(row: Mapping[str, Any]) -> str:
    return str(row["site"]).rpartition(":")[2].replace("_", " ")


def _cause(row: Mapping[str, Any]) -> tuple[str, ...]:
    def value(column: str) -> str:
        return short(float(row[column])) if known(row[column]) else _NONE

    drop, kl = _NONE, _NONE
    if known(row["kl_after"]):
        kl = short_span(*(float(row[f"kl_after{end}"]) for end in ("", "_low", "_high")))
    if known(row["drop_after"]):
        between = span(row["drop_after_low"], row["drop_after_high"])
        drop = f"{number(row['drop_after'])} ({between})"
    return (
        str(row["module"]),
        _tensor(row),
        str(row["cause"]),
        str(row["detail"]),
        str(row["remedy"]),
        value("kl_before"),
        kl,
        outcome(row) or _NONE,
        number(row["drop_before"]) if known(row["drop_before"]) else _NONE,
        drop,
    )


def predictors(source: Source, model: str) -> Section | None:
    """How well each statistic ranks the modules like what was measured."""
    rows = source.table("predictors", model)
    sentence = best_predictor(model, rows)
    if sentence is None:
        return None
    place = source.keys.index(model)
    text = sentence.removeprefix(f"{model}: ")
    whole = rows[rows["scope"] == "all"]
    blocks: list[Block] = [
        Finding(headline=text[:1].upper() + text[1:].rstrip("."), numbers=_METHOD),
        _chart(whole, place),
        _table(whole),
    ]
    if (rows["scope"] != "all").any():
        blocks.append(_by_role(rows))
    return Section(
        key=f"predictors-{place}", title="What predicts the sensitivity", blocks=tuple(blocks)
    )


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
        reading="Farther from 0 is better; below 0, larger values mean less sensitive modules.",
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

    return Table(
        title="Rank correlation of every statistic with the measured divergence",
        head=("Statistic", *(format_of(name).words for name in forms)),
        rows=tuple((STATISTIC_WORDS.get(s, s), *(shown(s, name) for name in forms)) for s in order),
    )


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
                str(role).replace("_", " "),
                str(ranked[0]["n"]),
                *(_correlation(estimates.get(name)) for name in _ESTIMATES),
                _NONE if best is None else STATISTIC_WORDS[best["statistic"]],
                _correlation(best),
            )
        )
    return Table(
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
            "Roles of fewer than five modules are left out. The best of many statistics is best "
            "partly by chance: its interval does not allow for the choice."
        ),
    )


_ESTIMATES = ("fisher_kl", "hessian_kl")


def _correlation(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return _NONE
    return f"{number(row['spearman'], 2)} ({span(row['low'], row['high'], 2)})"
