"""Document to one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from vitsense.plan.make import REASONS
from vitsense.report.compose_model import LEVELS, heat_level
from vitsense.report.document import Document, ModelReport
from vitsense.report.drawing import COLOURS, Picture, cividis
from vitsense.report.formatters import number, span
from vitsense.report.inline import classes_for, inline
from vitsense.report.sheet import HEIGHT, RUNG, SPARK_HEIGHT, WIDTH
from vitsense.report.svg import height_of, histogram_path, ladder_line, spark_path


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
        "nowrap": nowrap,
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    return environment


def breakable(name: str) -> Any:
    """A name that may break after dots and underscores, and is otherwise shown as it is."""
    from markupsafe import Markup, escape

    broken = re.sub(r"([._])(?=\w)", r"\1<wbr>", str(escape(name)))
    return Markup(broken)  # noqa: S704  escaped above, and only <wbr> was added


def nowrap(text: str) -> str:
    """The text with spaces that do not break."""
    return text.replace(" ", "\u00a0")


def render_html(document: Document, pictures: dict[str, Picture]) -> str:
    """The report as one HTML file that needs nothing else, byte for byte the same every time."""
    environment = _environment()
    root = template_root()
    figures, figure_style = classes_for(
        {name: inline(p.svg, f"p{n}", p.alt) for n, (name, p) in enumerate(pictures.items())}
    )
    script = lean((root / "report.js").read_text(encoding="utf-8"))
    style = (root / "style.css").read_text(encoding="utf-8") + heat_style() + figure_style
    fingerprint = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text: str = environment.get_template("report.html.jinja").render(
        d=document,
        pictures=figures,
        words=pictures,
        style=style,
        script=script,
        policy=(
            f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
            f"script-src 'sha256-{fingerprint}'"
        ),
        data=embedded(_page_data(document)),
        colours=COLOURS,
        path_of=histogram_path,
        spark_path=spark_path,
        ladder_line=ladder_line,
        height_of=height_of,
        drawn=[_drawn(model) for model in document.models],
        scale=scale_labels(),
        number=number,
        span=span,
        small=(WIDTH, HEIGHT, RUNG, SPARK_HEIGHT),
        download=_data_url,
        quoted=shlex.quote,
    )
    return text


def lean(script: str) -> str:
    """A script without indentation and lines that are only a remark."""
    lines = (line.strip() for line in script.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def heat_style() -> str:
    """One CSS class per level of the heatmap."""
    return "\n".join(
        f".h{i}{{background:{back};color:{front}}}"
        for i, (back, front) in enumerate(cividis(LEVELS))
    )


def _drawn(model: ModelReport) -> int:
    """Modules that have a picture."""
    return sum(any(tensor.picture for tensor in row.sheet.tensors) for row in model.rows)


def scale_labels() -> list[tuple[int, str]]:
    """Levels of the heatmap's colours with their divergence, for the legend."""
    values = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 3.0)
    labels = ["≤ 0.0001", "0.001", "0.01", "0.1", "1", "≥ 3"]
    return [(heat_level(value), label) for value, label in zip(values, labels, strict=True)]


def _page_data(document: Document) -> dict[str, Any]:
    """What the page's script needs: the plans of every point of each front."""
    return {"reasons": REASONS, "models": [_front_data(model) for model in document.models]}


def _front_data(model: ModelReport) -> dict[str, Any]:
    front = [
        {
            "point": p.number,
            "avg": p.avg_bits,
            "mb": p.size_mb,
            "gb": p.bitops_g,
            "drop": p.drop,
            "low": p.low,
            "high": p.high,
            "measured": p.measured,
            "labels": p.labels if model.writer is None else "",
            "choices": p.choices,
            "shares": p.shares,
            "text": [p.budget, p.cost, p.predicted],
        }
        for p in model.front
    ]
    return {"front": front, "writer": None if model.writer is None else asdict(model.writer)}


def embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data_url(text: str, kind: str = "application/json") -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"
