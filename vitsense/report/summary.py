"""The report in short: Markdown for a pull request, and HTML for a notebook cell."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitsense.errors import UserInputError
from vitsense.report.chapters.training import TITLE as TRAINED
from vitsense.report.compose import compose
from vitsense.report.document import Card, Document, HeatCell, ModelPart, ModelReport, Status
from vitsense.report.formatters import visible
from vitsense.report.heatmap import heatmap
from vitsense.report.runs_document import RunsDocument
from vitsense.report.section import Caution, Finding, Section, Table
from vitsense.report.training_document import TrainingDocument
from vitsense.runfolder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SYMBOLS = {Status.GOOD: "●", Status.CAUTION: "▲", Status.BAD: "■", Status.PLAIN: "○"}
_FINDINGS = 3
"""Findings that are read without unfolding the others."""


def render_markdown(document: Document) -> str:
    """Warnings, verdict, worst modules, plans and findings as GitHub-flavoured Markdown."""
    lines = [f"## {plain(document.title)}", ""]
    lines += [f"> **Read this first:** {plain(warning)}  " for warning in document.warnings]
    for model in document.models:
        lines += ["", f"### {plain(model.key)}", "", *_cards(model), ""]
        lines += [f"**{plain(model.headline)}**", ""] if model.headline else []
        lines += [f"- {plain(line)}" for line in model.verdict]
        lines += ["", *_worst(model)]
        lines += ["", "Whole plans:", "", *_plans(model)] if model.plans else []
        for section in model.chapters:
            if section.title == TRAINED:
                lines += ["", f"#### {plain(section.title)}", "", *_said(section)]
                lines += _first_table(section)
    if document.findings:
        lines += ["", "### Findings", "", *_findings(document.findings)]
    lines += ["", "### How to get these numbers again", ""]
    lines += ["```", *(visible(command) for command in document.commands), "```"]
    return "\n".join(lines) + "\n"


def render_runs_markdown(document: RunsDocument) -> str:
    """Warnings, verdict and what differs between two runs as GitHub-flavoured Markdown."""
    return _parts(document, {"settings"})


def render_training_markdown(document: TrainingDocument) -> str:
    """Warnings, verdict and tables of a training by itself as GitHub-flavoured Markdown."""
    return _parts(document, {section.key for m in document.models for section in m.chapters})


def _parts(document: RunsDocument | TrainingDocument, shown: Collection[str]) -> str:
    """Warnings, verdict, and the tables of the sections whose keys are shown."""
    lines = [f"## {plain(document.title)}", "", plain(document.question), ""]
    lines += [f"> **Read this first:** {plain(warning)}  " for warning in document.warnings]
    for model in document.models:
        lines += ["", f"### {plain(model.key)}", "", *(_cards(model) if model.cards else ()), ""]
        lines += [f"**{plain(model.headline)}**", ""] if model.headline else []
        lines += [f"- {plain(line)}" for line in model.verdict]
        for section in model.chapters:
            if section.key in shown:
                lines += _first_table(section)
    return "\n".join(lines) + "\n"


def _said(section: Section) -> list[str]:
    """What the section found, and what it warns of."""
    found = [(b.headline, b.numbers) for b in section.blocks if isinstance(b, Finding)]
    warned = [text for b in section.blocks if isinstance(b, Caution) for text in b.texts]
    lines = [f"- **{plain(headline)}.** {plain(numbers)}" for headline, numbers in found]
    return lines + [f"- **Read this first:** {plain(text)}" for text in warned]


def _first_table(section: Section) -> list[str]:
    """The one that sums the section up."""
    for block in section.blocks:
        if isinstance(block, Table):
            rows = [[plain(cell) for cell in row] for row in block.rows]
            return ["", *_table([plain(head) for head in block.head], rows)]
    return []


def plain(text: str) -> str:
    """Text in which nothing is markup: signs that Markdown or HTML would read are escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$@&])", r"\\\1", visible(text))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---"] * len(head)
    return [f"| {' | '.join(row)} |" for row in (head, ruler, *rows)]


def _cards(model: ModelReport | ModelPart) -> list[str]:
    rows = [
        (plain(c.label), f"**{plain(c.value)}**", plain(c.detail), _word(c)) for c in model.cards
    ]
    return _table(("", "Value", "95 % interval and more", ""), rows)


def _findings(found: Sequence[tuple[str, str]]) -> list[str]:
    lines = [f"- **{plain(headline)}.** {plain(numbers)}" for headline, numbers in found]
    more = len(lines) - _FINDINGS
    if more <= 0:
        return lines
    fold = ["", f"<details><summary>{more} more</summary>", ""]
    return [*lines[:_FINDINGS], *fold, *lines[_FINDINGS:], "", "</details>"]


def _word(card: Card) -> str:
    return f"{_SYMBOLS[card.status]} {card.word}" if card.word else ""


def _worst(model: ModelReport) -> list[str]:
    """The five most sensitive modules in every format, and what the plan gives them."""
    labels = [label for label, _ in model.columns]
    rows = [
        (plain(row.name), row.label, *(plain(_cell(model, cell)) for cell in row.cells))
        for row in (model.rows[k] for k in model.worst[:5])
    ]
    heads = (label + " bits" if label.isdecimal() else label for label in labels)
    what = (
        "divergence (nats)"
        if model.by_divergence
        else f"{model.loss} ({model.loss_unit}; in parentheses: not distinguishable from zero)"
    )
    said = f"Quantized alone, each of the most sensitive modules costs this {what}:"
    return [plain(said), "", *_table(("Module", "Plan", *heads), rows)]


def _plans(model: ModelReport) -> list[str]:
    """What whole plans take and lose, and which of them hold."""
    rows = [
        [plain(cell) for cell in (p.name, p.bits, p.size, p.bitops, p.measured, p.judged)]
        for p in model.plans
    ]
    loss = plain(f"Measured {model.loss}")
    head = ("Plan", "Average bits", "Size (MB)", "10⁹ bit operations", loss, "Verdict")
    return _table(head, rows)


def _cell(model: ModelReport, cell: HeatCell) -> str:
    return cell.text if model.by_divergence else cell.shown


class Run:
    """A finished run in a notebook: its tables, and the verdict as the cell's output."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.table = folder.table

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Open a run folder.

        Raises:
            InputMissingError: the folder is not there or holds no ``run.json``.
        """
        return cls(RunFolder.open(Path(path)))

    def __repr__(self) -> str:
        return f"Run({str(self.folder.path)!r})"

    def heatmap(self, model: str | None = None) -> Figure:
        """Divergence of every module and format as a figure, which a notebook shows.

        Args:
            model: Key of one of the run's models; default: the first.

        Raises:
            UserInputError: the run has no such model.
        """
        keys = [entry["key"] for entry in self.folder.read_run()["models"]]
        key = keys[0] if model is None else model
        if key not in keys:
            raise UserInputError(f"The run has no model {key!r}; it has {', '.join(keys)}.")
        table = self.table("sensitivity")
        return heatmap(table[table["model"] == key], key)

    def _repr_html_(self) -> str:
        """What a notebook shows: warnings, cards and verdict, without style sheets or scripts."""
        from markupsafe import escape

        document = compose(self.folder)
        parts = [f"<div><h3>{escape(document.title)}</h3>"]
        parts += [f"<p><b>⚠ {escape(warning)}</b></p>" for warning in document.warnings]
        for model in document.models:
            parts.append(f"<h4>{escape(model.key)}</h4>")
            parts += [f"<p><b>{escape(model.headline)}</b></p>"] if model.headline else []
            parts.append("<table><tbody>")
            parts += [
                f"<tr><th>{escape(c.label)}</th><td><b>{escape(c.value)}</b></td>"
                f"<td>{escape(c.detail)}</td><td>{escape(_word(c))}</td></tr>"
                for c in model.cards
            ]
            parts.append("</tbody></table>")
            parts += [f"<p>{escape(line)}</p>" for line in model.verdict]
        parts.append(f"<p>{escape(str(self.folder.path / 'report.html'))}</p></div>")
        return "".join(parts)
