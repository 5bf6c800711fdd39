"""Document to one self-contained HTML file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from vitsense.decimals import predicted
from vitsense.plan.make import REASONS
from vitsense.report.compose_model import LEVELS, heat_level
from vitsense.report.document import Document, ModelReport, PlanWriter
from vitsense.report.drawing import Picture, cividis, diverging
from vitsense.report.formatters import number, span
from vitsense.report.inline import classes_for, inline
from vitsense.report.lean import lean_script, relative_lines
from vitsense.report.runs_document import STEPS, RunsDocument
from vitsense.report.small_pictures import frame, labelled
from vitsense.report.training_document import TrainingDocument


def template_root() -> Path:
    """Folder of the templates: beside this file in a wheel, at the top of a checkout."""
    packaged = Path(__file__).with_name("templates")
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "reports" / "templates"


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template_root()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "breakable": breakable,
        "by_first": by_first,
        "together": together,
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    return environment


def breakable(name: str) -> Any:
    """A name that may break after dots and underscores, and is otherwise shown as it is."""
    from markupsafe import Markup, escape

    broken = re.sub(r"([._])(?=\w)", r"\1<wbr>", str(escape(name)))
    return Markup(broken)  # noqa: S704  escaped above, and only <wbr> was added


def by_first(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Rows that follow each other and have the same first cell, together with that cell."""
    return [(first, list(those)) for first, those in groupby(rows, key=lambda row: row[0])]


_INTERVAL = re.compile(r"\([^() ]+ to [^() ]+\)")


def together(text: str) -> str:
    """The text with intervals, ``(0.4 to 2.0)``, that no line ends within."""
    return _INTERVAL.sub(lambda found: found[0].replace(" ", "\u00a0"), text)


def render_html(document: Document, pictures: dict[str, Picture]) -> str:
    """The report as one HTML file that needs nothing else, byte for byte the same every time."""
    return _page(
        "report.html.jinja",
        ("report.js",),
        heat_style(),
        _page_data(document),
        pictures,
        d=document,
        frame=_frame,
        labelled=labelled,
        drawn=[_drawn(model, len(document.models)) for model in document.models],
        scale=scale_labels(),
        packed=_packed_url,
        quoted=shlex.quote,
    )


def render_runs_html(document: RunsDocument, pictures: dict[str, Picture]) -> str:
    """The comparison of two runs as one HTML file, byte for byte the same every time."""
    shades = enumerate(diverging(STEPS))
    return _page(
        "runs.html.jinja",
        ("report.js", "runs.js"),
        "\n".join(f".d{i}{{background:{back};color:{front}}}" for i, (back, front) in shades),
        {"models": []},
        pictures,
        d=document,
        diverging=_DIVERGING_LABELS,
    )


def render_training_html(document: TrainingDocument, pictures: dict[str, Picture]) -> str:
    """A training by itself as one HTML file, byte for byte the same every time."""
    return _page("training.html.jinja", ("report.js",), "", {"models": []}, pictures, d=document)


_DIVERGING_LABELS = (
    (0, "≤ 1/8"), (3, "1/4"), (7, "1/2"), (STEPS, "1"), (13, "2"), (17, "4"), (20, "≥ 8"),
)  # fmt: skip


def _page(
    template: str,
    scripts: Sequence[str],
    extra_style: str,
    data: Mapping[str, Any],
    pictures: Mapping[str, Picture],
    **values: Any,
) -> str:
    root = template_root()
    figures, figure_style = classes_for(
        {
            name: relative_lines(inline(p.svg, f"p{n}", p.alt))
            for n, (name, p) in enumerate(pictures.items())
        }
    )
    script = "\n".join(lean_script((root / name).read_text(encoding="utf-8")) for name in scripts)
    style = (root / "style.css").read_text(encoding="utf-8") + extra_style + figure_style
    fingerprint = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text: str = (
        _environment()
        .get_template(template)
        .render(
            pictures=figures,
            words=pictures,
            style=style,
            script=script,
            policy=(
                f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
                f"script-src 'sha256-{fingerprint}'"
            ),
            data=embedded(data),
            said=_Said(),
            long=_LONG_NAME,
            number=number,
            span=span,
            predicted=predicted,
            **values,
        )
    )
    return without_needless(text)


def _frame(model: ModelReport) -> str:
    """What the histograms of a model share."""
    return frame(tuple(f"{label} bits" for label, _ in model.columns if label.isdecimal()))


class _Said:
    """Long explanations are given once; who meets them again is led to the first time."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}
        self.id = ""

    def __call__(self, text: str) -> str:
        """Where the text stood before; empty if it did not: then ``id`` is its anchor, if any."""
        if len(text) < _LONG:
            self.id = ""
            return ""
        if text in self._places:
            return self._places[text]
        self.id = self._places[text] = f"how-{len(self._places)}"
        return ""


_LONG_NAME = 90  # letters of a name of which a table shows two lines, and all to who points at it
_LONG = 160  # letters of an explanation that is worth a link instead


def heat_style() -> str:
    """One CSS class per level of the heatmap."""
    return "\n".join(
        f".h{i}{{background:{back};color:{front}}}"
        for i, (back, front) in enumerate(cividis(LEVELS))
    )


TOGETHER = 12
"""Modules of several models that have pictures on the page; each picture is a kilobyte."""


def _drawn(model: ModelReport, models: int) -> frozenset[int]:
    """Places of the modules whose tensors are drawn on the page: the most sensitive of many."""
    having = [k for k, row in enumerate(model.rows) if any(t.picture for t in row.sheet.tensors)]
    most = max(TOGETHER // models, 2)
    if models == 1 or len(having) <= most:
        return frozenset(having)
    return frozenset(model.worst[:most]).intersection(having)


def scale_labels() -> list[tuple[int, str]]:
    """Levels of the heatmap's colours with their divergence, for the legend."""
    values = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 3.0)
    labels = ["≤ 0.0001", "0.001", "0.01", "0.1", "1", "≥ 3"]
    return [(heat_level(value), label) for value, label in zip(values, labels, strict=True)]


def _page_data(document: Document) -> dict[str, Any]:
    """What the page's script needs: the plans of every point of each front."""
    models = [_front_data(model) for model in document.models]
    return {"reasons": REASONS, "names": POINT, "models": models}


POINT = ("point", "choices", "shares", "text", "labels")
"""What the values of a point of a front are, in order."""


def _front_data(model: ModelReport) -> dict[str, Any]:
    """Points of the front; their numbers are read from the page's table of them."""
    front = []
    # every point's budget is its average bits
    ahead = "".join(model.front[0].budget.partition("=")[:2]) if model.front else ""
    for p in model.front:
        text = f"{p.budget[len(ahead) :]} {p.cost} {p.predicted}"
        values: tuple[Any, ...] = (p.number, p.choices, p.shares, text)
        if model.writer is None:
            values += (p.labels,)
        front.append(values)
    roles = dict(model.roles)
    return {"front": front, "ahead": ahead, "roles": roles, "writer": _writer(model.writer)}


def _writer(writer: PlanWriter | None) -> dict[str, Any] | None:
    """The writer with its table of divergences as a line for every module.

    The places of the next narrower formats are the same for nearly all modules: they are kept once
    for each kind of row, and a module says which.
    """
    if writer is None:
        return None
    kinds = list(dict.fromkeys(tuple(below for _, below in row) for row in writer.nats))
    nats = [" ".join(value for value, _ in row) for row in writer.nats]
    kind = [kinds.index(tuple(below for _, below in row)) for row in writer.nats]
    return {**asdict(writer), "nats": nats, "below": kinds, "kind": kind}


_CELLS = "td|th|tr|li|dt|dd|option"
_PARTS = r"p|ul|dl|div|table|thead|tbody|section|details|summary|figure|figcaption|nav|main|h\d"
_BREAKS = re.compile(rf"\s*\n\s*(?=</?(?:{_CELLS}|{_PARTS})[\s>])")
_OPTIONAL = re.compile(
    rf"</(?:{_CELLS})>\s*(?=<(?:{_CELLS}|/))|</p>(?=<(?:/?(?:p|ul|dl|div|section|details|figure)|"
    r"table|h\d|/li)[\s>])"
)
_TABLES = re.compile(r'</thead>(?=<tbody)|</tbody>(?=<tbody|</table)| scope="col"(?=[\s>])')
_TAG = re.compile(r"<[a-z][^<>]*>")
_QUOTED = re.compile(r'(\s[\w-]+=)"([\w#.:;%()-]+)"(?=[\s>])')
_TEXT = re.compile(r"(?<=>)[^<>]+(?=<)")
_ALONE = re.compile(r"(<(?:script|style|pre)\b.*?</(?:script|style|pre)>)", re.DOTALL)


def without_needless(page: str) -> str:
    """The page without what HTML implies: most quotes, many end tags, and breaks between parts.

    Names cannot hold tags or quotes (they are escaped), so only those of the templates are met.
    A header cell in a row of header cells is one of its column without saying so.

    Source: HTML standard, sections 13.1.2.3 "Attributes", 13.1.2.4 "Optional tags" and 4.9.12.2
    "Forming relationships between data cells and header cells".
    """
    parts = _ALONE.split(page)
    for k in range(0, len(parts), 2):
        text = _TABLES.sub("", _OPTIONAL.sub("", _BREAKS.sub("", parts[k])))
        text = _TEXT.sub(lambda found: found[0].replace("&#39;", "'"), text)
        parts[k] = _TAG.sub(lambda tag: _QUOTED.sub(r"\1\2", tag[0]), text)
    return "".join(parts)


def embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _packed_url(text: str) -> str:
    """The text as a gzip file in an address: an eighth of it unpacked. It carries no time."""
    packed = gzip.compress(text.encode(), mtime=0)
    return f"data:application/gzip;base64,{base64.b64encode(packed).decode()}"
