"""Document to one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from functools import lru_cache
from pathlib import Path
from typing import Any

from vitsense.report.compose_model import LEVELS
from vitsense.report.document import Document, FrontPoint
from vitsense.report.drawing import COLOURS, Picture, cividis
from vitsense.report.inline import inline
from vitsense.report.svg import HEIGHT, WIDTH, histogram_path, sigma_ticks


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
    environment.filters |= {"breakable": breakable, "nowrap": nowrap}
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
    script = (root / "report.js").read_text(encoding="utf-8")
    style = (root / "style.css").read_text(encoding="utf-8") + heat_style()
    fingerprint = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text: str = environment.get_template("report.html.jinja").render(
        d=document,
        pictures={
            name: inline(p.svg, f"p{n}", p.alt) for n, (name, p) in enumerate(pictures.items())
        },
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
        ticks_of=sigma_ticks,
        small=(WIDTH, HEIGHT),
        download=_data_url,
        quoted=shlex.quote,
    )
    return text


def heat_style() -> str:
    """One CSS class per level of the heatmap."""
    return "\n".join(
        f".h{i}{{background:{back};color:{front}}}"
        for i, (back, front) in enumerate(cividis(LEVELS))
    )


def _page_data(document: Document) -> dict[str, Any]:
    """What the page's script needs: the bits of every point of each front."""
    return {
        "models": [
            {
                "front": [
                    {
                        "avg": p.avg_bits,
                        "mb": p.size_mb,
                        "gb": p.bitops_g,
                        "drop": p.drop,
                        "low": p.low,
                        "high": p.high,
                        "bits": _labels(p),
                    }
                    for p in model.front
                ]
            }
            for model in document.models
        ]
    }


def _labels(point: FrontPoint) -> str | list[str]:
    """The formats of a point: one letter each where all are integers, as most are."""
    if all(label.isdecimal() for label in point.labels):
        return "".join("g" if label == "16" else label for label in point.labels)
    return list(point.labels)


def embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data_url(text: str, kind: str = "application/json") -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"
